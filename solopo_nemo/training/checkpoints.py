"""Checkpoints of a run: whole or not there, newest kept, restartable at any layout.

Each is a NeMo checkpoint (``weights``, ``context``) with an ``hf`` folder (configuration and
tokenizer), named by its step.
"""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch.distributed as dist
from lightning.pytorch.utilities.exceptions import SIGTERMException

from solopo_nemo.errors import UserError
from solopo_nemo.model.hf import is_checkpoint
from solopo_nemo.training.signals import SIGNALS, StopRequest

PREFIX = "step_"


def step_of(checkpoint: Path) -> int:
    """The optimizer step after which a checkpoint was saved."""
    return int(checkpoint.name.removeprefix(PREFIX))


def saved_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    found = [p for p in folder.glob(f"{PREFIX}*") if p.name.removeprefix(PREFIX).isdigit()]
    return sorted(found, key=step_of)


def to_resume_from(resume: str, folder: Path) -> Path | None:
    """The checkpoint that ``trainer.resume`` means.

    Raises:
        UserError: a named checkpoint is none.
    """
    if resume == "never":
        return None
    if resume == "auto":
        return next(iter(reversed(saved_checkpoints(folder))), None)
    path = Path(resume)
    if not is_checkpoint(path) or not path.name.removeprefix(PREFIX).isdigit():
        raise UserError(
            f"trainer.resume={resume}: no checkpoint there; give auto, never or a folder like {PREFIX}000100"
        )
    return path


class Checkpoints(pl.Callback):
    """Saves every so many steps, when the run is asked to stop, and at its end.

    Args:
        folder: where.
        every: steps.
        keep: newest ones kept.
        initial: checkpoint that the run started from; its ``context`` and ``hf`` are the same for all.
        stop: ends the run after the step in which any rank was asked to.
    """

    def __init__(self, folder: Path, every: int, keep: int, initial: Path, stop: StopRequest) -> None:
        self.folder, self.every, self.keep, self.initial, self.stop = folder, every, keep, initial, stop

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Take the signals back from Lightning, which stops the rank that gets one, and no other."""
        for number in SIGNALS:
            signal.signal(number, self.stop.note)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Save after every ``every`` steps, after the last one, and before stopping early."""
        step, stop = trainer.global_step, self.stop.agree()
        if step % self.every == 0 or step == trainer.max_steps or stop:
            self.save(trainer)
        if stop:
            raise SIGTERMException  # on all ranks: Lightning's way out of a run

    def save(self, trainer: pl.Trainer) -> None:
        """Write beside, then rename: a crash in between leaves the earlier checkpoints as they were."""
        final = self.folder / f"{PREFIX}{trainer.global_step:06d}"
        temporary = self.folder / f".{final.name}.tmp"
        if dist.get_rank() == 0:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        dist.barrier()
        trainer.save_checkpoint(temporary)
        dist.barrier()
        if dist.get_rank() == 0:
            for part in ("context", "hf"):
                shutil.copytree(self.initial / part, temporary / part, dirs_exist_ok=True)
            shutil.rmtree(final, ignore_errors=True)
            temporary.rename(final)
            for old in saved_checkpoints(self.folder)[: -self.keep]:
                shutil.rmtree(old)
        dist.barrier()
