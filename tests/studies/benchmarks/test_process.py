"""Measured processes: what they say when they fail, and that nothing of them is left."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from studies.benchmarks.process import MeasurementError, run_process


def test_a_failure_has_its_last_lines_and_the_log(tmp_path: Path) -> None:
    code = "import os, sys; print('threads', os.environ['OMP_NUM_THREADS']); sys.exit(3)"
    with pytest.raises(MeasurementError, match=r"a step ended with code 3: threads 2 \(all of it: .*out\.log\)"):
        run_process([sys.executable, "-c", code], 2, tmp_path / "new" / "out.log", "a step")


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
        run_process([sys.executable, "-c", parent], 1, tmp_path / "out.log", "a step")
    psutil.wait_procs([psutil.Process(pid) for pid in [int(started.read_text())] if psutil.pid_exists(pid)], timeout=10)
    pid = int(started.read_text())
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
