"""One rank of a measurement: the training of a recipe with a measuring callback. Started by ``torchrun``."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from solopo_nemo.config.schema import load_config
from solopo_nemo.runtime import cli, environment, logs
from solopo_nemo.runtime.output import atomic_text
from solopo_nemo.runtime.signals import StopRequest
from studies.benchmarks.memory import PeakMemory, megatron_state, storage_bytes


class StepMeter(pl.Callback):
    """Measures the seconds of each step and the peak memory over all steps, then stops the run.

    A step lasts from before its micro-batches are fetched until after its metrics are written. It thus includes the
    overhead of Lightning and NeMo.

    Args:
        steps: number of steps to measure.
        result: JSON file of this rank.
    """

    def __init__(self, steps: int, result: Path) -> None:
        self.steps, self.result = steps, result
        self.seconds: list[float] = []
        self._memory = PeakMemory()
        self._started = 0.0

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Measure the baseline before the first step, and start the clock."""
        if not self.seconds:
            state = _training_state(trainer).values()
            self._memory.start(pl_module.parameters(), [tensor for tensors in state for tensor in tensors])
        torch.cuda.synchronize()
        self._started = time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Stop the clock. After the last step, write the result and stop the run."""
        torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - self._started)
        if len(self.seconds) < self.steps:
            return
        trainer.should_stop = True
        peak = self._memory.peak()
        state = {"weights": list(pl_module.parameters()), **_training_state(trainer)}
        values = {
            "seconds": self.seconds,
            "peak_bytes": peak,
            "baseline_bytes": self._memory.baseline,
            "state_bytes": {kind: storage_bytes(tensors) for kind, tensors in state.items()},
            "threads": torch.get_num_threads(),
        }
        with atomic_text(self.result) as stream:
            stream.write(json.dumps(values))


def _training_state(trainer: pl.Trainer) -> dict[str, list[torch.Tensor]]:
    """:func:`megatron_state`, and a reference policy."""
    strategy: Any = trainer.strategy
    optimizer = strategy.lightning_module.optimizers(use_pl_optimizer=False).mcore_optimizer
    state = {**megatron_state(strategy.megatron_parallel, optimizer), "reference": []}
    for callback in trainer.callbacks:
        module = getattr(callback, "module", None)
        if isinstance(module, torch.nn.Module):
            state["reference"] += list(module.parameters())
    return state


def main() -> None:
    """``python -m studies.benchmarks.rank REQUEST.json``: recipe, overrides, steps, folder of the results."""
    request = json.loads(Path(sys.argv[1]).read_text())
    config = load_config(request["recipe"], request["overrides"])
    with logs.quiet_imports():
        from solopo_nemo.training.fit import fit
    rank = environment.rank()
    logs.to_file(config.output / "logs", rank)
    meter = StepMeter(request["steps"], Path(request["results"]) / f"rank-{rank}.json")
    fit(config, StopRequest(), callbacks=[meter])


if __name__ == "__main__":
    cli.run(main)
