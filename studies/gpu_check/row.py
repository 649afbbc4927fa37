"""One row, in this process: ``python -m studies.gpu_check.row '{"check": "sliding window", "precision": "bf16"}'``."""

from __future__ import annotations

import json
import sys
from typing import Any

import torch


def main(asked: dict[str, Any]) -> dict[str, Any]:
    """The row's values; what went wrong is one of them."""
    try:
        if "check" in asked:
            from studies.gpu_check.checks import check

            return check(asked["check"], asked["precision"])
        from studies.gpu_check.timed import measure

        return measure(asked["system"], asked["shape"], asked["long"])
    except torch.OutOfMemoryError:
        return {"note": "out of memory"}
    except Exception as error:
        return {"ok": False, "note": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
