"""Jobs in a pool (their lines, what failed, what was killed, what time is left for), and measured commands."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from solopo_nemo.runtime.errors import RunFault, UserError
from studies.pool import Done, Job, MeasurementError, Pool, run_measured


def refuse(why: str) -> None:
    raise UserError(why)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def threads() -> str:
    print("a word for the log")
    return os.environ["OMP_NUM_THREADS"]


def test_every_job_is_done_and_has_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jobs = [Job(f"job {n}", pow, (n, 2), 1.0) for n in range(5)]
    found = Pool(2, tmp_path).run("squares", jobs, lambda name, done: f"{name} gave {done.value}")
    assert found == {f"job {n}": n * n for n in range(5)}
    assert sorted(capsys.readouterr().err.splitlines()) == [f"job {n} gave {n * n}" for n in range(5)]


def test_failures_are_said_last_and_stop_nothing(tmp_path: Path) -> None:
    seen: list[str] = []

    def tell(name: str, done: Done) -> str:
        seen.append(name)
        return name

    jobs = [Job("a", refuse, ("no data",), 1.0), Job("b", threads, (), 1.0), Job("c", refuse, ("no disk",), 1.0)]
    with pytest.raises(RunFault) as failed:
        Pool(1, tmp_path / "logs").run("some", jobs, tell)
    assert str(failed.value) == "a: no data; c: no disk; the same command goes on from here"
    assert seen == ["b"]
    (log,) = (tmp_path / "logs").iterdir()
    assert "a word for the log" in log.read_text()


def test_a_killed_worker_is_a_fault_that_names_the_job_and_the_logs(tmp_path: Path) -> None:
    with pytest.raises(RunFault, match=rf"last words: its process was killed.*{re.escape(str(tmp_path))}.*goes on"):
        Pool(1, tmp_path).run("some", [Job("last words", die, (), 1.0)])


def test_nothing_is_begun_once_time_is_over(tmp_path: Path) -> None:
    assert Pool(2, tmp_path).run("none", [Job("a", die, (), 1.0)], until=0.0) == {}


def test_a_failure_has_its_last_lines_and_the_log(tmp_path: Path) -> None:
    code = "import os, sys; print('threads', os.environ['OMP_NUM_THREADS']); sys.exit(3)"
    with pytest.raises(MeasurementError, match=r"a step ended with code 3: threads 2 \(all of it: .*out\.log\)"):
        run_measured([sys.executable, "-c", code], 2, tmp_path / "new" / "out.log", "a step")


def test_an_interruption_leaves_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started, child = tmp_path / "started", "import signal; signal.pause()"
    parent = (
        "import pathlib, signal, subprocess, sys\n"
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}], start_new_session=True)\n"
        f"pathlib.Path({str(started)!r}).write_text(str(child.pid))\n"
        "signal.pause()\n"
    )
    wait = subprocess.Popen.wait

    def interrupted(process: subprocess.Popen[bytes], timeout: float | None = None) -> int:
        monkeypatch.setattr(subprocess.Popen, "wait", wait)
        while not (started.exists() and started.read_text()):
            assert process.poll() is None
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess.Popen, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_measured([sys.executable, "-c", parent], 1, tmp_path / "out.log", "a step")
    psutil.wait_procs([psutil.Process(pid) for pid in [int(started.read_text())] if psutil.pid_exists(pid)], timeout=60)
    pid = int(started.read_text())
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
