"""A signal to any process of a run saves and stops all of it, with exit code 75, and the same command goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from runs import ENVIRONMENT, command, ranks, rows, start, until

from solopo_nemo.runtime import cli
from solopo_nemo.runtime.signals import SIGNALS, Stopped, StopRequest, handled_by, held_back, stopping_at_once
from solopo_nemo.training.ranks import EXIT_RESUMABLE

LONG = ["trainer.max_steps=100000", "trainer.checkpoint_every=100000", "evaluation.name=none", "parallel.data=2"]


def test_a_signal_stops_at_once_only_inside_the_block() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    with pytest.raises(Stopped, match="SIGUSR1"), stopping_at_once():
        os.kill(os.getpid(), signal.SIGUSR1)
    assert signal.getsignal(signal.SIGUSR1) == before
    stop = StopRequest()
    with handled_by(stop.note):
        os.kill(os.getpid(), signal.SIGTERM)
    assert stop.received


class _Interrupted(Exception):
    pass


def test_signals_wait_until_a_block_has_run() -> None:
    done: list[str] = []

    def interrupt(number: int, _: object) -> None:
        raise _Interrupted(number)

    with handled_by(interrupt):
        with pytest.raises(_Interrupted, match=str(int(signal.SIGUSR1))), held_back():
            os.kill(os.getpid(), signal.SIGUSR1)
            done.append("whole")
        assert signal.getsignal(signal.SIGUSR1) is interrupt
    assert done == ["whole"]


def test_a_thread_other_than_the_main_one_gets_no_signals_to_hold_back() -> None:
    before = signal.getsignal(signal.SIGUSR1)

    def work() -> object:
        with held_back():
            return signal.getsignal(signal.SIGUSR1)

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(work).result() == before


ENDING = """
import os, signal
from solopo_nemo.runtime import cli

class Late:
    def __del__(self):  # when Python has given the signals back already
        os.kill(os.getpid(), signal.SIGTERM)

late = Late()
signal.signal(signal.SIGTERM, lambda *_: None)
cli.run(lambda: cli.EXIT_RESUMABLE)
"""


def test_a_signal_while_python_shuts_down_does_not_change_the_exit_code() -> None:
    done = subprocess.run([sys.executable, "-c", ENDING], env=ENVIRONMENT, check=False, timeout=300)
    assert done.returncode == EXIT_RESUMABLE


def test_before_python_shuts_down_a_resumable_end_changes_no_handler() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with pytest.raises(SystemExit):
        cli.run(lambda: EXIT_RESUMABLE)
    assert [signal.getsignal(number) for number in SIGNALS] == before


SPARING = """
import os, signal, subprocess, sys, time
from solopo_nemo.runtime.signals import StopRequest, spare_helpers

stop = StopRequest()
signal.signal(signal.SIGUSR1, stop.note)
spare_helpers()
helper = subprocess.Popen(["sleep", "60"])
helper.send_signal(signal.SIGUSR1)
helper.send_signal(signal.SIGTERM)
os.kill(os.getpid(), signal.SIGUSR1)
while not stop.received:  # a loop that never waits can miss another thread's signal: Python 3.11 forgets the flag
    time.sleep(0.01)
sys.exit(-helper.wait())
"""


def test_a_signal_to_all_processes_spares_what_a_rank_has_started() -> None:
    done = subprocess.run([sys.executable, "-c", SPARING], env=ENVIRONMENT, check=False, timeout=300)
    assert done.returncode == signal.SIGTERM


ISOLATED = """
import signal, sys, time
from pathlib import Path
from solopo_nemo.runtime import cli
from solopo_nemo.runtime.isolated import run_isolated
from solopo_nemo.runtime.signals import SIGNALS, StopRequest, stopping_at_once

def work(progress):
    Path(sys.argv[1]).touch()
    time.sleep(600)

def main():
    for number in SIGNALS:
        signal.signal(number, StopRequest().note)  # as a rank does
    with stopping_at_once():
        run_isolated("the work", work)

if __name__ == "__main__":
    cli.run(main)
"""


def test_two_signals_end_a_piece_of_work_in_a_process_of_its_own(tmp_path: Path) -> None:
    program, begun = tmp_path / "program.py", tmp_path / "begun"
    program.write_text(ISOLATED)
    process = start([sys.executable, str(program), str(begun)])
    until(begun.exists, process)
    process.send_signal(signal.SIGUSR1)
    process.send_signal(signal.SIGTERM)
    try:
        assert process.wait(timeout=300) == EXIT_RESUMABLE
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


EARLY = """
import concurrent.futures.process as executors, os

class Early(executors._ExecutorManagerThread):
    def start(self):
        os.kill(os.getpid(), signal.SIGTERM)
        super().start()

executors._ExecutorManagerThread = Early
"""


def test_a_signal_while_the_process_is_started_ends_the_work_as_any_other(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(ISOLATED.replace("def main():", EARLY + "def main():"))
    done = subprocess.run(
        [sys.executable, str(program), str(tmp_path / "begun")], env=ENVIRONMENT, check=False, timeout=300,
        capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (EXIT_RESUMABLE, f"{cli.STOPPED}\n")


def steps(output: Path) -> list[int]:
    return [row["step"] for row in rows(output)] if (output / "metrics.jsonl").exists() else []


def saved_and_stopped(output: Path, before: int) -> int:
    """Check that a run stopped after its last step, saved, and left nothing half done; that step."""
    got = steps(output)
    assert got == list(range(1, len(got) + 1))
    assert len(got) > before
    assert len([p for p in (output / "checkpoints").iterdir() if p.name == f"step_{len(got):06d}"]) == 1
    assert not list(output.glob("checkpoints/.*"))
    return len(got)


@pytest.mark.slow
@pytest.mark.distributed
def test_a_signal_to_a_rank_or_the_launcher_stops_all_and_loses_nothing(tmp_path: Path) -> None:
    output = tmp_path / "out"

    importing = start(command(output, *LONG))
    until(lambda: list(output.glob(".initial.tmp*")), importing)
    importing.send_signal(signal.SIGTERM)
    assert importing.wait() == EXIT_RESUMABLE, importing.communicate()
    assert not (output / "initial").exists()

    torchrun = start(command(output, *LONG, torchrun=True))
    until(lambda: len(steps(output)) > 2, torchrun)
    ranks(torchrun)[1].send_signal(signal.SIGUSR1)
    out, err = torchrun.communicate()
    assert torchrun.returncode != 0
    assert f"exitcode  : {EXIT_RESUMABLE}" in err, err
    stopped = saved_and_stopped(output, before=2)

    launcher = start(command(output, *LONG))
    until(lambda: len(steps(output)) > stopped + 2, launcher)
    launcher.send_signal(signal.SIGTERM)
    out, err = launcher.communicate()
    assert launcher.returncode == EXIT_RESUMABLE, out + err
    assert "Traceback" not in err
    assert out.count("the same command goes on") == 1
    saved_and_stopped(output, before=stopped + 2)
    assert not list(output.glob(".*"))
