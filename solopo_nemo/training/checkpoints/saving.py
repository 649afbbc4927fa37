"""Saves checkpoints: writes to a temporary folder, verifies, renames, and removes older ones. Asynchronous on a GPU."""

from __future__ import annotations

import random
import shutil
import signal
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
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
    damaged,
    find_damage,
    last_saved,
    no_good_one,
    put_aside,
    record_file,
    remove_checkpoints,
    saved_checkpoints,
    sync_folder,
    write_manifest,
)
from solopo_nemo.training.checkpoints.resume import other_run, to_resume_from
from solopo_nemo.training.paths import Paths

Records = dict[str, FileRecord]
"""Size and hash of files by their path below the checkpoint."""


class Checkpoints(pl.Callback):
    """Saves a checkpoint at intervals, after a request to stop, and at the end of the run.

    1. Every rank writes to a temporary folder. On a GPU a process of Megatron writes while the training continues.
    2. A thread of every rank reads back and hashes the files of the rank. On a GPU the training continues.
    3. When all ranks have finished, rank 0 writes the manifest, renames the folder and removes older checkpoints.

    A crash before the third step leaves the earlier checkpoints unchanged. It works at any layout, and a checkpoint
    loads at any other.

    Args:
        paths: paths of the run. A checkpoint also has ``context`` and ``hf`` of the initial one, configuration and
            record.
        every: optimizer steps between two checkpoints.
        keep: number of the newest checkpoints that are kept; None keeps all.
        resume: value of ``trainer.resume``; None resumes no checkpoint.
        stop: request to stop, which ends the run after the step in which a rank received it.
    """

    def __init__(self, paths: Paths, every: int, keep: int | None, resume: str | None, stop: StopRequest) -> None:
        self.paths, self.every, self.keep, self.stop = paths, every, keep, stop
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._resume, self._damage = resume, Future[str | None]()
        self._choose()
        self._written: tuple[int, Path, Future[Records | str]] | None = None

    def _choose(self) -> None:
        """Chooses the checkpoint to resume, and starts to verify this rank's share of it in the thread."""
        saved = saved_checkpoints(self.paths.checkpoints)
        self.resumed = None if self._resume is None else to_resume_from(self._resume, saved)
        if self.resumed is not None:
            share = environment.rank(), environment.world_size()
            self._damage = self._reader.submit(find_damage, self.resumed, *share)

    def verified(self) -> Path:
        """The checkpoint to load, after all ranks have verified their shares of it. A collective of all ranks.

        A damaged checkpoint of the run is renamed, and the one before it is taken.

        Raises:
            UserError: the checkpoint is damaged, and ``trainer.resume`` names it or no other one is left.
        """
        while self.resumed is not None:
            found: list[str | None] = [None] * dist.get_world_size()
            dist.all_gather_object(found, self._damage.result())
            damage = next(filter(None, found), None)
            if damage is None:
                return self.resumed
            if self._resume and self.resumed == Path(self._resume):
                raise damaged(self.resumed, "trainer.resume", damage)
            if dist.get_rank() == 0:
                put_aside(self.resumed, damage)
            dist.barrier()
            self._choose()
        raise no_good_one(self.paths.checkpoints)

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Replaces Lightning's signal handlers, which stop only the rank that receives the signal.

        Raises:
            UserError: the restored learning-rate schedule ends at another step than this run.
        """
        for number in SIGNALS:
            signal.signal(number, self.stop.note)
        if self.resumed:
            scheduler: Any = trainer.lr_scheduler_configs[0].scheduler
            if scheduler.max_steps != trainer.max_steps:
                changed = f"optimizer steps: {scheduler.max_steps} there, {trainer.max_steps} here"
                raise other_run(self.resumed, self.paths, [changed])
            restore_random_numbers(self.resumed)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Saves after every ``every`` steps, after the last step, and before an early stop."""
        step, stop = trainer.global_step, self.stop.agree()
        self._complete(wait=False)
        if step % self.every == 0 or step == trainer.max_steps or stop:
            self.save(trainer)
        if stop:
            self.finish(trainer)
            raise SIGTERMException  # on all ranks; Lightning then ends the run

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Waits for the last checkpoint."""
        self.finish(trainer)

    def save(self, trainer: pl.Trainer) -> None:
        """Starts a checkpoint, and on a CPU completes it. A collective of all ranks."""
        self.finish(trainer)
        step = trainer.global_step
        # a name of this start: processes that a killed start left behind do not write to it
        temporary = self.paths.checkpoints / f".{PREFIX}{step:06d}.{environment.job_token()}.tmp"
        if dist.get_rank() == 0:
            temporary.mkdir(parents=True)
            (temporary / "rng").mkdir()
        dist.barrier()
        read_back = partial(self._begin_reading, step, temporary)
        try:
            save_random_numbers(temporary)
            if device.saves_asynchronously():
                trainer.save_checkpoint(temporary, storage_options={"finalize_fn": read_back})
            else:
                trainer.save_checkpoint(temporary)
                read_back()
                self._complete()
        except (Exception, CheckpointException):
            shutil.rmtree(temporary, ignore_errors=True)  # the disk may be full
            raise

    def finish(self, trainer: pl.Trainer) -> None:
        """Waits for a checkpoint that is still being written or verified. A collective of all ranks."""
        writer = trainer.strategy.checkpoint_io
        if isinstance(writer, AsyncFinalizableCheckpointIO):
            writer.maybe_finalize_save_checkpoint(blocking=True)
        self._complete()

    def _begin_reading(self, step: int, temporary: Path) -> None:
        """Starts the verification, when all ranks have written their files."""
        self._written = step, temporary, self._reader.submit(self._read_back, temporary, dist.get_rank())

    def _read_back(self, temporary: Path, rank: int) -> Records | str:
        """The records of a rank's files, or the problem with them in words. It runs in the thread."""
        try:
            if rank == 0:
                for part in ("context", "hf"):
                    shutil.copytree(self.paths.initial / part, temporary / part, dirs_exist_ok=True)
                for file in filter(Path.is_file, (self.paths.config, self.paths.record)):
                    shutil.copy(file, temporary)
            entries = written_entries(temporary / "weights", rank)
            own = {
                str(path.relative_to(temporary)): record_file(path, entries=entries.pop(path, ()))
                for path in _own_files(temporary, rank)
            }
        except (OSError, ValueError) as error:
            return str(error)
        return f"{min(entries).name} is missing" if entries else own

    def _complete(self, wait: bool = True) -> None:
        """Gives a checkpoint its name when all ranks have verified it. A collective if a checkpoint is being written.

        Args:
            wait: whether to wait for the verification; otherwise it returns if a rank has not finished.

        Raises:
            RunFault: a file differs from what was written.
        """
        if self._written is None:
            return
        step, temporary, own = self._written
        if not wait:
            done = torch.tensor(int(own.done()), device=device.current())
            dist.all_reduce(done, op=dist.ReduceOp.MIN)
            if not done:
                return
        self._written = None
        results: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(results, own.result())
        if problem := next((result for result in results if isinstance(result, str)), None):
            raise RunFault(
                f"{temporary.name}: the checkpoint of step {step} was not written as it should be: {problem}; "
                f"{last_saved(self.paths.checkpoints)}"
            )
        if dist.get_rank() == 0:
            write_manifest(temporary, {name: record for part in results for name, record in part.items()})
            temporary.rename(self.paths.checkpoints / f"{PREFIX}{step:06d}")
            sync_folder(self.paths.checkpoints)
            if self.keep is not None:
                remove_checkpoints(saved_checkpoints(self.paths.checkpoints)[: -self.keep])
        dist.barrier()


def _own_files(checkpoint: Path, rank: int) -> Iterable[Path]:
    """The files that a rank wrote. Rank 0 also has the files that belong to no rank."""
    own = [*checkpoint.glob(f"weights/__{rank}_*.distcp"), checkpoint / "rng" / f"rank_{rank:05d}.pt"]
    if rank:
        return own
    shared = (p for p in checkpoint.rglob("*") if p.is_file() and p.suffix != ".distcp" and p.parent.name != "rng")
    return [*own, *shared]


def written_entries(weights: Path, rank: int) -> dict[Path, list[tuple[int, int]]]:
    """Offset and length in bytes of every tensor that a rank wrote, by file, from a distributed checkpoint's index."""
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
    """Writes the states of this rank's random-number generators: Python, NumPy, torch, device and Megatron."""
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
    """Restores the generators of :func:`save_random_numbers`. At another layout they keep the state of the seed."""
    path = checkpoint / "rng" / f"rank_{dist.get_rank():05d}.pt"
    state: dict[str, Any] = torch.load(path, weights_only=True) if path.is_file() else {"layout": None}
    if state["layout"] != _layout():
        return
    random.setstate(state["python"])
    np.random.set_state(tuple(state["numpy"]))
    torch.set_rng_state(state["torch"])
    device.set_random_state(state["cuda"])
    tensor_parallel.get_cuda_rng_tracker().set_states(state["megatron"])
