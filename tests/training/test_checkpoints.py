"""Checkpoints on disk: a manifest finds every damage, and a start goes on from the right one."""

from __future__ import annotations

import hashlib
import io
import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from solopo_nemo.config.schema import RunConfig, load_config, save_config
from solopo_nemo.runtime.errors import UserError
from solopo_nemo.training.checkpoints.files import (
    FileRecord,
    find_damage,
    put_damaged_aside,
    record_file,
    remove_checkpoints,
    remove_leftovers,
    saved_checkpoints,
    write_manifest,
)
from solopo_nemo.training.checkpoints.resume import settle_earlier_run, to_resume_from
from solopo_nemo.training.paths import Paths

RANDOM = "rng/rank_00000.pt"


def make(folder: Path, step: int, shards: int = 0) -> Path:
    checkpoint = folder / f"step_{step:06d}"
    for name in ("weights/metadata.json", "weights/__0_0.distcp", "weights/common.pt", "context/io.json", RANDOM):
        (checkpoint / name).parent.mkdir(parents=True, exist_ok=True)
        (checkpoint / name).write_text(f"{name} of step {step}")
    for rank in range(shards):
        (checkpoint / "weights" / f"__{rank}_0.distcp").write_bytes(bytes((1 << 22) + 1))
    files = [p for p in checkpoint.rglob("*") if p.is_file()]
    write_manifest(checkpoint, {str(p.relative_to(checkpoint)): record_file(p) for p in files})
    return checkpoint


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[3] ^= 1
    path.write_bytes(content)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "one bit": (lambda c: flip(c / "weights" / "__0_0.distcp"), "weights/__0_0.distcp has other contents"),
    "cut short": (lambda c: (c / "weights" / "common.pt").write_bytes(b"w"), "weights/common.pt has 1 bytes"),
    "file lost": (lambda c: (c / "context" / "io.json").unlink(), "context/io.json is missing"),
    "no manifest": (lambda c: (c / "manifest.json").unlink(), "manifest.json is missing"),
    "manifest cut short": (lambda c: (c / "manifest.json").write_text('{"weights'), "manifest.json cannot be read"),
    "another manifest": (lambda c: (c / "manifest.json").write_text("[1]"), "manifest.json cannot be read"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_found_named_and_passed_over(case: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    damage, words = DAMAGE[case]
    first, second = make(tmp_path, 10), make(tmp_path, 20)
    assert find_damage(second) is None
    damage(second)
    assert words in str(find_damage(second))
    logging.getLogger("solopo_nemo").propagate = True
    put_damaged_aside(saved_checkpoints(tmp_path))
    assert words in caplog.text
    assert saved_checkpoints(tmp_path) == [first]
    assert (tmp_path / "damaged_step_000020").is_dir()
    damage(first)
    with pytest.raises(UserError, match="every checkpoint is damaged"):
        put_damaged_aside(saved_checkpoints(tmp_path))


@pytest.mark.parametrize("keeps_mtime", [True, False])
def test_the_ranks_share_the_large_files(keeps_mtime: bool, tmp_path: Path) -> None:
    checkpoint = make(tmp_path, 10, shards=3)
    shard = checkpoint / "weights" / "__2_0.distcp"
    state, content = shard.stat(), bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    os.utime(shard, ns=(state.st_atime_ns, state.st_mtime_ns + (not keeps_mtime)))
    assert find_damage(checkpoint, None) is None  # a start, whose ranks will look
    found = [find_damage(checkpoint, rank, 2) for rank in range(2)]
    assert found == ["weights/__2_0.distcp has other contents than were written", None]
    for small in ("weights/common.pt", "rng/rank_00000.pt"):
        flip(checkpoint / small)
        assert find_damage(checkpoint, None) == f"{small} has other contents than were written"
        flip(checkpoint / small)


def test_what_a_kill_leaves_is_no_checkpoint_and_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, old = make(tmp_path, 20), make(tmp_path, 10)
    (tmp_path / ".step_000030.token.tmp" / "weights").mkdir(parents=True)
    monkeypatch.setattr("shutil.rmtree", lambda *_, **__: None)  # killed before anything is removed
    remove_checkpoints([old])
    assert saved_checkpoints(tmp_path) == [kept]
    monkeypatch.undo()
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == [kept]


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(tmp_path / "out")


def configure(paths: Paths, resume: str, *overrides: str) -> RunConfig:
    return load_config("solo_dpo", [f"output_dir={paths.output}", f"trainer.resume={resume}", *overrides])


def start(paths: Paths, resume: str, *overrides: str) -> Path | None:
    """What a start does about an earlier one, up to the checkpoint that its ranks load."""
    config = configure(paths, resume, *overrides)
    settle_earlier_run(config, paths)
    save_config(config, paths.config)
    return to_resume_from(resume, saved_checkpoints(paths.checkpoints))


def test_auto_goes_on_from_the_newest(paths: Paths) -> None:
    assert start(paths, "auto") is None
    make(paths.checkpoints, 2)
    newest = make(paths.checkpoints, 11)
    assert start(paths, "auto", "parallel.tensor=2", "trainer.micro_batch=2", "trainer.keep_checkpoints=9") == newest


def test_other_settings_are_refused_before_any_file_moves(paths: Paths) -> None:
    start(paths, "auto")
    newest = make(paths.checkpoints, 2)
    with pytest.raises(UserError, match=r"optim\.lr"):
        start(paths, "auto", "optim.lr=0.5")
    assert newest.is_dir()


def test_never_puts_the_run_aside_unless_the_scheduler_restarted_it(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert start(paths, "never") is None
    newest = make(paths.checkpoints, 2)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert start(paths, "never") == newest
    monkeypatch.delenv("SLURM_RESTART_COUNT")
    paths.tensorboard.mkdir(parents=True)
    assert start(paths, "never") is None
    assert (paths.output / "previous" / "1" / "tensorboard").is_dir()
    assert (paths.output / "previous" / "1" / "checkpoints" / "step_000002").is_dir()


@pytest.mark.parametrize("moved", range(5))
def test_a_kill_while_a_run_is_put_aside_leaves_a_run_that_can_be(
    moved: int, paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(paths, "auto")
    make(paths.checkpoints, 2)
    for path in (paths.accuracy, paths.metrics, paths.record):
        path.write_text("of the first run")
    renamed, rename = [], Path.rename

    def killed(self: Path, target: Path) -> None:
        if len(renamed) == moved:
            raise KeyboardInterrupt
        renamed.append(rename(self, target))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            start(paths, "never")
    assert start(paths, "never") is None
    assert not any(path.exists() for path in (paths.accuracy, paths.metrics, paths.record))
    assert len([*(paths.output / "previous").glob("*/checkpoints/step_000002")]) == 1


def test_a_named_checkpoint_is_where_the_run_starts_once(paths: Paths) -> None:
    start(paths, "auto")
    named, later = make(paths.checkpoints, 4), make(paths.checkpoints, 6)
    assert start(paths, str(named)) == named
    assert not later.exists()
    assert (paths.output / "previous" / "1" / later.name).is_dir()
    # the same command again, as a scheduler gives it: the run goes on, also when the named one is gone by then
    newest = make(paths.checkpoints, 8)
    remove_checkpoints([named])
    assert start(paths, str(named)) == newest
    foreign = make(paths.output.parent / "other", 3)
    assert start(paths, str(foreign)) == foreign
    assert not newest.exists()


def test_a_named_checkpoint_has_to_be_a_whole_one(paths: Paths) -> None:
    named = make(paths.output.parent, 4)
    flip(named / "weights" / "__0_0.distcp")
    with pytest.raises(UserError, match="damaged"):
        start(paths, str(named))
    (named / "weights" / "metadata.json").unlink()
    with pytest.raises(UserError, match="no checkpoint there"):
        start(paths, str(named))


def archived(*tensors: torch.Tensor) -> tuple[bytes, list[tuple[int, int]]]:
    """A file as Megatron writes it: archives one after another, with a few bytes of its own between them."""
    content, entries = b"", []
    for tensor in tensors:
        stream = io.BytesIO()
        torch.save(tensor, stream)
        content += b"gap"
        entries.append((len(content), len(stream.getvalue())))
        content += stream.getvalue()
    return content + b"end", entries


def test_a_file_is_hashed_and_its_entries_are_checked_in_one_pass(tmp_path: Path) -> None:
    content, entries = archived(torch.arange(50.0), torch.ones(7))
    path = tmp_path / "__0_0.distcp"
    path.write_bytes(content)
    record = record_file(path, entries=reversed(entries))
    assert record == record_file(path) == FileRecord(len(content), hashlib.sha256(content).hexdigest())


@pytest.mark.parametrize(("change", "words"), [("cut", "ends within an entry"), ("flip", "another checksum")])
def test_an_entry_that_reads_back_otherwise_is_named(change: str, words: str, tmp_path: Path) -> None:
    content, entries = archived(torch.arange(50.0), torch.ones(700))
    path = tmp_path / "__0_0.distcp"
    offset, length = entries[1]
    middle = bytearray(content)
    middle[offset + length // 2] ^= 1
    path.write_bytes(bytes(middle) if change == "flip" else content[: offset + length - 1])
    with pytest.raises(ValueError, match=words):
        record_file(path, entries=entries)
