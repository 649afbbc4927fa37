"""A plugin that spoils runs: imported by their ranks (``+plugins=[injected]``), told by INJECT what to do.

INJECT is a JSON list: ``what`` to do in the forward pass of step ``step`` (counted from this start, from 1) on ``rank``.
It may "wait" there, until the file INJECT_UNTIL exists. With INJECT_IDS, a folder, each rank also writes which samples
it computed in which step.
"""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

ORDERS: list[dict[str, Any]] = json.loads(os.environ.get("INJECT", "[]"))


def _do(what: str, logp: Any) -> Any:
    if what == "signal":
        os.kill(os.getpid(), signal.SIGTERM)
    elif what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "hang":
        time.sleep(1e6)
    elif what == "wait":
        while not Path(os.environ["INJECT_UNTIL"]).exists():
            time.sleep(0.02)
    elif what == "memory":
        import torch

        torch.empty(1 << 50)
    elif what == "nan":
        return logp * float("nan")
    elif what == "nan gradient":
        logp.register_hook(lambda gradient: gradient * float("inf"))
    return logp


def _install() -> None:
    from megatron.core.num_microbatches_calculator import get_num_microbatches

    from solopo_nemo.nemo_model.reduction import ObjectiveReduction

    forward, calls, rank = ObjectiveReduction.forward, [0], int(os.environ["RANK"])

    def injected(self: ObjectiveReduction, batch: Any, logp: Any) -> Any:
        step, micro_batch = divmod(calls[0], get_num_microbatches())
        calls[0] += 1
        if "INJECT_IDS" in os.environ:
            with (Path(os.environ["INJECT_IDS"]) / f"{rank}.jsonl").open("a") as stream:
                stream.write(json.dumps({"step": step, "ids": batch["ids"]}) + "\n")
        for order in ORDERS:
            if (step + 1, micro_batch, rank) == (order["step"], 0, order["rank"]):
                logp = _do(order["what"], logp)
        return forward(self, batch, logp)

    ObjectiveReduction.forward = injected  # type: ignore[method-assign]


if "RANK" in os.environ:
    _install()
