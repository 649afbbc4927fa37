"""One run at a time in an output folder, and nothing in the way of the next one after a kill."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from solopo_nemo.runtime.errors import UserError
from solopo_nemo.training.callbacks import ownership
from solopo_nemo.training.callbacks.ownership import Ownership
from solopo_nemo.training.output_lock import OutputLock, lock_file

OWNER = """
import sys
from pathlib import Path
from solopo_nemo.training.output_lock import OutputLock

with OutputLock(Path(sys.argv[1])):
    print("owned", flush=True)
    sys.stdin.read()
"""


@contextmanager
def another_run(output: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that owns the folder, until its standard input closes."""
    words = [sys.executable, "-c", OWNER, str(output)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "owned\n"
        yield process


def rewrite(output: Path, **changes: object) -> None:
    path = lock_file(output)
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_second_run_is_refused_and_the_first_one_is_named(tmp_path: Path) -> None:
    with another_run(tmp_path) as first:
        with pytest.raises(UserError, match=rf"in use by another run \(host .*, process {first.pid}, since 20"):
            OutputLock(tmp_path).__enter__()
        assert lock_file(tmp_path).exists()
    with OutputLock(tmp_path):
        assert lock_file(tmp_path).exists()
    assert not lock_file(tmp_path).exists()


def test_what_a_killed_run_left_is_taken_over(tmp_path: Path) -> None:
    with another_run(tmp_path) as first:
        first.kill()
    assert lock_file(tmp_path).exists()
    with OutputLock(tmp_path):
        pass


def test_a_run_that_has_ended_and_that_nobody_has_reaped_is_no_owner(tmp_path: Path) -> None:
    with another_run(tmp_path) as first:
        first.kill()
        os.waitid(os.P_PID, first.pid, os.WEXITED | os.WNOWAIT)
        assert psutil.Process(first.pid).status() == psutil.STATUS_ZOMBIE
        with OutputLock(tmp_path):
            pass


def test_a_process_number_that_was_given_again_is_no_owner(tmp_path: Path) -> None:
    with another_run(tmp_path):
        rewrite(tmp_path, created=0.0)
        with OutputLock(tmp_path):
            pass


def test_a_silent_owner_on_another_host_is_dead(tmp_path: Path) -> None:
    with another_run(tmp_path):
        rewrite(tmp_path, machine="another", host="node7")
        with OutputLock(tmp_path, patience=0.0):
            pass


def test_an_owner_on_another_host_that_touches_its_lock_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("solopo_nemo.training.output_lock.BEAT", 0.01)
    with OutputLock(tmp_path):
        rewrite(tmp_path, machine="another", host="node7")
        with pytest.raises(UserError, match="host node7"):
            OutputLock(tmp_path).__enter__()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}"])
def test_a_file_that_a_kill_cut_short_is_no_owner(text: str, tmp_path: Path) -> None:
    lock_file(tmp_path).write_text(text)
    with OutputLock(tmp_path):
        pass


def test_a_refused_run_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="bad input"), OutputLock(tmp_path / "run"):
        raise UserError("bad input")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        OutputLock(tmp_path / "file" / "run").__enter__()


def test_a_restarted_job_waits_for_its_earlier_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with another_run(tmp_path) as first:
        monkeypatch.setattr("solopo_nemo.training.output_lock.time.sleep", lambda _: first.communicate())
        with OutputLock(tmp_path):
            assert first.poll() == 0
            assert lock_file(tmp_path).exists()


OTHER = json.dumps({"host": "node7", "pid": 7, "created": 7.0, "since": "today"})


def test_a_silent_owner_leaves_the_lock_of_the_one_that_took_its_place(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match=r"another start \(host node7, process 7, since today\) has taken"),
        OutputLock(tmp_path),
    ):
        lock_file(tmp_path).write_text(OTHER)
        raise RuntimeError("the ranks have ended themselves")
    assert lock_file(tmp_path).read_text() == OTHER


def test_an_owner_that_was_silent_ends_itself(tmp_path: Path) -> None:
    program = OWNER.replace("\n\nwith", "\nimport solopo_nemo.training.output_lock as own\nown.BEAT = 0.01\n\nwith")
    words, pipe = [sys.executable, "-c", program, str(tmp_path)], subprocess.PIPE
    with subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout and process.stderr
        assert process.stdout.readline() == "owned\n"
        (tmp_path / "other").write_text(OTHER)
        (tmp_path / "other").rename(lock_file(tmp_path))  # the owner must not read half of it
        assert process.wait() == 2
        assert process.stderr.read().startswith(f"error: output_dir={tmp_path}: another start (host node7")
    assert lock_file(tmp_path).read_text() == OTHER


def test_rank_0_looks_at_the_end_of_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[Path] = []
    monkeypatch.setattr(ownership, "end_at_once", ended.append)
    Ownership(tmp_path).on_train_batch_end()  # without a lock, as in tests
    with OutputLock(tmp_path) as lock:
        check, mine = Ownership(tmp_path), lock.path.read_text()
        check.on_train_batch_end()
        lock.path.unlink()
        check.on_train_batch_end()
        assert not ended
        lock.path.write_text(OTHER)
        check.on_train_batch_end()
        assert ended == [tmp_path]
        lock.path.write_text(mine)
