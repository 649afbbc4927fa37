"""A checkpoint is read back beside the training, and has its name only when that is done; a schedule is not extended."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch.distributed as dist
from test_checkpoints import make

from solopo_nemo.runtime import device
from solopo_nemo.runtime.errors import RunFault, UserError
from solopo_nemo.runtime.signals import StopRequest
from solopo_nemo.training.checkpoints import saving
from solopo_nemo.training.checkpoints.files import find_damage, saved_checkpoints
from solopo_nemo.training.checkpoints.saving import Checkpoints
from solopo_nemo.training.paths import Paths


class Writer:
    """A trainer whose files are written, asynchronously as far as its callback knows, when :meth:`written` says so."""

    def __init__(self) -> None:
        self.global_step, self.max_steps = 0, 100
        self.strategy = SimpleNamespace(checkpoint_io=None)
        self.written: Callable[[], None] = lambda: None

    def save_checkpoint(self, folder: Path, storage_options: dict[str, Any]) -> None:
        (folder / "weights").mkdir()
        (folder / "weights" / "__0_0.distcp").write_text("weights")
        self.written = storage_options["finalize_fn"]

    def step(self, checkpoints: Checkpoints) -> None:
        self.global_step += 1
        checkpoints.on_train_batch_end(self, None, None, None, 0)  # type: ignore[arg-type]


@pytest.fixture
def checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Checkpoints]:
    """Saves every fifth step."""
    monkeypatch.setattr(device, "saves_asynchronously", lambda: True)
    monkeypatch.setattr(saving, "save_random_numbers", lambda folder: (folder / "rng" / "rank_00000.pt").touch())
    monkeypatch.setattr(saving, "written_entries", lambda *_: {})
    paths = Paths(tmp_path)
    for part in ("context", "hf"):
        (paths.initial / part).mkdir(parents=True)
    paths.config.write_text("recipe: solo_dpo\n")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield Checkpoints(paths, 5, 1, None, StopRequest())
    dist.destroy_process_group()


def test_training_goes_on_while_a_checkpoint_is_read_back(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, may_read, record_file = Writer(), threading.Event(), saving.record_file
    monkeypatch.setattr(saving, "record_file", lambda *a, **k: may_read.wait() and record_file(*a, **k))
    folder = checkpoints.paths.checkpoints
    for _ in range(5):
        trainer.step(checkpoints)
    trainer.written()
    for _ in range(4):  # would wait here
        trainer.step(checkpoints)
    assert saved_checkpoints(folder) == []
    may_read.set()
    trainer.step(checkpoints)  # the next one is due: the one before is completed first
    (saved,) = saved_checkpoints(folder)
    assert (saved.name, find_damage(saved)) == ("step_000005", None)
    assert (saved / "config.yaml").is_file()
    trainer.written()
    checkpoints.on_train_end(trainer, None)  # type: ignore[arg-type]
    assert [path.name for path in saved_checkpoints(folder)] == ["step_000010"]


def lost(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(saving, "written_entries", lambda weights, _: {weights / "__0_1.distcp": [(0, 1)]})


def full(patch: pytest.MonkeyPatch) -> None:
    def copy(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "context")

    patch.setattr(shutil, "copytree", copy)


@pytest.mark.parametrize(("fault", "words"), [(lost, r"__0_1\.distcp is missing"), (full, "No space left on device")])
def test_a_checkpoint_that_is_not_on_the_disk_ends_the_run(
    fault: Callable[[pytest.MonkeyPatch], None], words: str, checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Writer()
    for _ in range(5):
        trainer.step(checkpoints)
    fault(monkeypatch)
    trainer.written()
    with pytest.raises(RunFault, match=rf"step 5 was not written .*{words}.*; nothing has been saved"):
        checkpoints.finish(trainer)  # type: ignore[arg-type]
    assert saved_checkpoints(checkpoints.paths.checkpoints) == []


def test_ranks_load_the_newest_checkpoint_that_is_as_it_was_written(
    checkpoints: Checkpoints, caplog: pytest.LogCaptureFixture
) -> None:
    def start(resume: str) -> Path:
        return Checkpoints(checkpoints.paths, 5, 1, resume, StopRequest()).verified()

    folder = checkpoints.paths.checkpoints
    older, newest = (make(folder, step, shards=1) for step in (4, 8))
    assert start("auto") == newest
    with (newest / "weights" / "__0_0.distcp").open("r+b") as stream:
        stream.seek(1 << 21)
        stream.write(b"x")
    with pytest.raises(UserError, match=rf"trainer\.resume={newest}: the checkpoint is damaged"):
        start(str(newest))
    logging.getLogger("solopo_nemo").propagate = True
    assert start("auto") == older
    assert "put aside as damaged_step_000008" in caplog.text
    assert saved_checkpoints(folder) == [older]
    (older / "weights" / "common.pt").unlink()
    with pytest.raises(UserError, match="every checkpoint is damaged"):
        start("auto")


def test_a_learning_rate_that_ends_before_the_run_is_refused(checkpoints: Checkpoints) -> None:
    """Version 0.1 recorded no number of steps: the restored schedule tells it."""
    checkpoints.resumed = checkpoints.paths.checkpoints / "step_000004"
    restored = SimpleNamespace(scheduler=SimpleNamespace(max_steps=8))
    trainer = SimpleNamespace(lr_scheduler_configs=[restored], max_steps=12)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("signal.signal", lambda *_: None)
        with pytest.raises(UserError, match=r"optimizer steps: 8 there, 12 here\): choose another output_dir"):
            checkpoints.on_train_start(trainer, None)  # type: ignore[arg-type]
