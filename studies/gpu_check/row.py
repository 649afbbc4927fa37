"""One row, in this process: ``python -m studies.gpu_check.row '{"check": "sliding window", "precision": "bf16"}'``."""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path
from typing import Any

import torch

OUT_OF_MEMORY = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
"""What libraries beside torch's allocator say where memory is missing."""


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
        said = " ".join(str(error).split())[:300]
        if any(words in said for words in OUT_OF_MEMORY):
            return {"note": "out of memory"}
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{'/'.join(Path(place.filename).parts[-2:])}:{place.lineno}"
        return {"ok": False, "note": f"{type(error).__name__}: {said} ({where})"}


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
