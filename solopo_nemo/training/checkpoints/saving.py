"""Saves checkpoints: writes beside, verifies, renames, then removes older ones; asynchronous on a GPU."""

from __future__ import annotations

import random
import shutil
import signal
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch.utilities.exceptions import SIGTERMException
from megatron.core import parallel_state, tensor_parallel
from nemo.utils.callbacks.dist_ckpt_io import AsyncFinalizableCheckpointIO
from torch.distributed.checkpoint import CheckpointException, FileSystemReader

from solopo_nemo.runtime import device, environment
from solopo_nemo.runtime.errors import RunFault
from solopo_nemo.runtime.signals import SIGNALS, StopRequest
from solopo_nemo.training.checkpoints.files import (
    PREFIX,
    FileRecord,
    record_file,
    remove_checkpoints,
    saved_checkpoints,
    sync_folder,
    write_manifest,
)


class Checkpoints(pl.Callback):
    """Saves every so many steps, when the run is asked to stop, and at its end.

    Args:
        folder: where.
        every: steps.
        keep: newest ones kept; None keeps all.
        initial: checkpoint that the run started from; its ``context`` and ``hf`` are the same for all.
        resumed: checkpoint that this run goes on from.
        stop: ends the run after the step in which any rank was asked to.
    """

    def __init__(
        self, folder: Path, every: int, keep: int | None, initial: Path, resumed: Path | None, stop: StopRequest
    ) -> None:
        self.folder, self.every, self.keep, self.initial = folder, every, keep, initial
        self.resumed, self.stop = resumed, stop

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Replace Lightning's signal handlers, which stop only the rank that gets the signal."""
        for number in SIGNALS:
            signal.signal(number, self.stop.note)
        if self.resumed:
            restore_random_numbers(self.resumed)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Save after every ``every`` steps, after the last one, and before stopping early."""
        step, stop = trainer.global_step, self.stop.agree()
        if step % self.every == 0 or step == trainer.max_steps or stop:
            self.save(trainer)
        if stop:
            finish_pending(trainer)
            raise SIGTERMException  # on all ranks: Lightning's way out of a run

    def save(self, trainer: pl.Trainer) -> None:
        """Write to a temporary name, verify, rename: a crash in between leaves the earlier checkpoints unchanged."""
        finish_pending(trainer)
        step = trainer.global_step
        # no other start of the job, nor what a killed one left running, writes to this name
        temporary = self.folder / f".{PREFIX}{step:06d}.{environment.job_token()}.tmp"
        if dist.get_rank() == 0:
            temporary.mkdir(parents=True)
            (temporary / "rng").mkdir()
        dist.barrier()
        complete = partial(self._complete, step, temporary)
        try:
            save_random_numbers(temporary)
            if device.saves_asynchronously():
                trainer.save_checkpoint(temporary, storage_options={"finalize_fn": complete})
            else:
                trainer.save_checkpoint(temporary)
                complete()
        except (Exception, CheckpointException):
            shutil.rmtree(temporary, ignore_errors=True)  # the disk may be full
            raise

    def _complete(self, step: int, temporary: Path) -> None:
        """On all ranks, when all of them have written their files."""
        rank = dist.get_rank()
        if rank == 0:
            for part in ("context", "hf"):
                shutil.copytree(self.initial / part, temporary / part, dirs_exist_ok=True)
        results: list[Any] = [None] * dist.get_world_size()
        try:
            entries = written_entries(temporary / "weights", rank)
            own: Any = {
                str(path.relative_to(temporary)): record_file(path, entries=entries.pop(path, ()))
                for path in _own_files(temporary, rank)
            }
            if entries:
                raise ValueError(f"{min(entries).name} is missing")
        except (OSError, ValueError) as error:
            own = str(error)
        dist.all_gather_object(results, own)
        problem = next((result for result in results if isinstance(result, str)), None)
        if problem:
            raise RunFault(
                f"{temporary.name}: the checkpoint of step {step} was not written as it should be: {problem}"
            )
        if rank == 0:
            files: dict[str, FileRecord] = {name: record for part in results for name, record in part.items()}
            write_manifest(temporary, files)
            temporary.rename(self.folder / f"{PREFIX}{step:06d}")
            sync_folder(self.folder)
            if self.keep is not None:
                remove_checkpoints(saved_checkpoints(self.folder)[: -self.keep])
        dist.barrier()


def finish_pending(trainer: pl.Trainer) -> None:
    """Wait for a checkpoint that is still being written."""
    writer = trainer.strategy.checkpoint_io
    if isinstance(writer, AsyncFinalizableCheckpointIO):
        writer.maybe_finalize_save_checkpoint(blocking=True)


def _own_files(checkpoint: Path, rank: int) -> Iterable[Path]:
    """The files that a rank wrote; rank 0 has those of no rank, too."""
    own = [*checkpoint.glob(f"weights/__{rank}_*.distcp"), checkpoint / "rng" / f"rank_{rank:05d}.pt"]
    if rank:
        return own
    shared = (p for p in checkpoint.rglob("*") if p.is_file() and p.suffix != ".distcp" and p.parent.name != "rng")
    return [*own, *shared]


def written_entries(weights: Path, rank: int) -> dict[Path, list[tuple[int, int]]]:
    """Offset and length of every tensor that a rank wrote, by file, from the index of a distributed checkpoint."""
    places: dict[Path, list[tuple[int, int]]] = {}
    for place in FileSystemReader(weights).read_metadata().storage_data.values():
        if place.relative_path.startswith(f"__{rank}_"):
            places.setdefault(weights / place.relative_path, []).append((place.offset, place.length))
    return places


def _layout() -> list[int]:
    return [
        dist.get_world_size(),
        parallel_state.get_tensor_model_parallel_world_size(),
        parallel_state.get_context_parallel_world_size(),
        parallel_state.get_pipeline_model_parallel_world_size(),
    ]


def save_random_numbers(checkpoint: Path) -> None:
    """Write the state of this rank's random-number generators."""
    state = {
        "layout": _layout(),
        "python": random.getstate(),
        "numpy": [x.tolist() if isinstance(x, np.ndarray) else x for x in np.random.get_state()],
        "torch": torch.get_rng_state(),
        "cuda": device.random_state(),
        "megatron": dict(tensor_parallel.get_cuda_rng_tracker().get_states()),
    }
    torch.save(state, checkpoint / "rng" / f"rank_{dist.get_rank():05d}.pt")


def restore_random_numbers(checkpoint: Path) -> None:
    """Restore the generators; at another layout all ranks start from the seed."""
    path = checkpoint / "rng" / f"rank_{dist.get_rank():05d}.pt"
    state: dict[str, Any] = torch.load(path, weights_only=True) if path.is_file() else {"layout": None}
    if state["layout"] != _layout():
        return
    random.setstate(state["python"])
    np.random.set_state(tuple(state["numpy"]))
    torch.set_rng_state(state["torch"])
    device.set_random_state(state["cuda"])
    tensor_parallel.get_cuda_rng_tracker().set_states(state["megatron"])
