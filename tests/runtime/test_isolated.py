"""Work in other processes: results, errors, killed processes, and that nothing outlives the process that started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from processes import is_alive, wait_until

from solopo_nemo.runtime import cli
from solopo_nemo.runtime.errors import RunFault, UserError
from solopo_nemo.runtime.isolated import Progress, ready, run_isolated, run_tasks

ROOT = Path(__file__).resolve().parents[2]


def square(task: int) -> int:
    return task * task


def fail_at_three(task: int) -> None:
    if task == 3:
        raise UserError("three")


def die_at_three(task: int) -> None:
    if task == 3:
        os.kill(os.getpid(), signal.SIGKILL)


def write_pid(folder: Path, _: int) -> None:
    (folder / f"{os.getpid()}.pid").touch()
    threading.Event().wait()  # until it is killed


def started_with(_: int) -> str:
    return os.environ["STARTED"]


def start(value: str) -> None:
    assert "STARTED" not in os.environ
    if value == "bad":
        raise UserError("bad start")
    os.environ["STARTED"] = value


def endless() -> Iterator[int]:
    number = 0
    while True:
        yield number
        number += 1


def broken() -> Iterator[int]:
    yield from range(5)
    raise UserError("the source broke")


@pytest.mark.parametrize("workers", [1, 3])
def test_every_task_comes_back_with_its_result(workers: int) -> None:
    assert sorted(run_tasks(square, range(7), workers)) == [(n, n * n) for n in range(7)]


def ahead(folder: Path, task: int) -> int:
    taken = len(list(folder.glob("taken-*")))
    under_way = taken - len(list(folder.glob("done-*")))
    (folder / f"done-{task}").touch()
    return under_way


def test_a_task_is_taken_when_a_worker_is_free(tmp_path: Path) -> None:
    def tasks() -> Iterator[int]:
        for number in range(20):
            (tmp_path / f"taken-{number}").touch()
            yield number

    assert {under_way for _, under_way in run_tasks(partial(ahead, tmp_path), tasks(), 2)} <= {1, 2}


@pytest.mark.parametrize(
    ("work", "tasks", "error", "message"),
    [
        (fail_at_three, endless, UserError, "three"),
        (
            die_at_three,
            endless,
            RunFault,
            r"^(task \d+ or )?task 3( or task \d+)?: its process was killed.*fewer workers",
        ),
        (square, broken, UserError, "the source broke"),
    ],
)
def test_what_ends_a_pool_is_said(
    work: Callable[[int], Any], tasks: Callable[[], Iterator[int]], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        for _ in run_tasks(work, tasks(), 2, name=lambda task: f"task {task}"):
            pass


def test_workers_are_started_once() -> None:
    results = run_tasks(started_with, range(6), 2, start=partial(start, "yes"))
    assert {result for _, result in results} == {"yes"}
    assert list(run_tasks(started_with, range(1), 1, start=partial(start, "one"))) == [(0, "one")]
    with pytest.raises(UserError, match="bad start"):
        list(run_tasks(started_with, range(6), 2, start=partial(start, "bad")))


def chatty(progress: Progress, error: str) -> str:
    done = progress("stage", 1)
    print("to stdout")
    print("to stderr", file=sys.stderr)
    done()
    if error == "user":
        raise UserError("mend it")
    if error == "crash":
        raise ValueError("crashed")
    if error == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    return f"{os.environ.get('RANK')} {os.environ.get('CUDA_VISIBLE_DEVICES')}"


def test_an_isolated_process_is_no_rank_and_prints_only_when_it_crashes(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert run_isolated("it", chatty, "") == "None None"
    assert run_isolated("it", chatty, "", cuda=False) == "None "
    assert run_isolated("it", chatty, "", cuda="GPU-a") == "None GPU-a"
    with pytest.raises(UserError, match="mend it"):
        run_isolated("it", chatty, "user")
    with pytest.raises(
        RunFault, match=r"^scoring a checkpoint: its process was killed, perhaps because memory ran out"
    ):
        run_isolated("scoring a checkpoint", chatty, "kill")
    assert capfd.readouterr() == ("", "")
    with pytest.raises(ValueError, match="crashed"):
        run_isolated("it", chatty, "crash")
    out, err = capfd.readouterr()
    assert (out, sorted(err.splitlines())) == ("", ["to stderr", "to stdout"])


def remember(_: Progress) -> None:
    os.environ["READY"] = "yes"


def remembered(_: Progress) -> str | None:
    return os.environ.get("READY")


def never_done(_: Progress) -> None:
    threading.Event().wait()


def test_the_first_work_finds_a_process_that_is_ready() -> None:
    with ready(remember):
        found = [run_isolated("it", remembered, cuda=cuda) for cuda in (False, True, True)]
    assert found == [None, "yes", None]
    with ready(never_done):
        pass  # it is killed, as nobody needs it any more


PROGRAM = """
import signal
import sys
from functools import partial
from pathlib import Path
from solopo_nemo.runtime import cli
from solopo_nemo.runtime.isolated import preload, run_isolated, run_tasks
from test_isolated import isolated_pid, write_pid

def main():
    how, folder = sys.argv[1], Path(sys.argv[2])
    if how == "pool":
        list(run_tasks(partial(write_pid, folder), range(2), 2))
    if how == "preloaded":
        preload(["json"])
    run_isolated("it", isolated_pid, folder)

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for what it runs in the background
    cli.run(main)
"""


def isolated_pid(_: Progress, folder: Path) -> None:
    print("not to be seen")
    write_pid(folder, 0)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.parametrize(("how", "processes"), [("pool", 2), ("fresh", 1), ("preloaded", 1)])
def test_processes_end_with_the_one_that_started_them(
    tmp_path: Path, how: str, processes: int, number: signal.Signals
) -> None:
    script = tmp_path / "script.py"
    script.write_text(PROGRAM)
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{Path(__file__).parent}:{ROOT / 'tests' / 'support'}"}
    with subprocess.Popen(
        [sys.executable, str(script), how, str(tmp_path)], env=environment, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        wait_until(lambda: len(list(tmp_path.glob("*.pid"))) == processes)
        if number == signal.SIGINT:
            os.killpg(process.pid, number)  # as a terminal does
            assert process.communicate(timeout=300) == ("", f"{cli.STOPPED}\n")
            assert process.returncode == cli.EXIT_RESUMABLE
        else:
            process.kill()
    wait_until(lambda: not any(is_alive(int(file.stem)) for file in tmp_path.glob("*.pid")), 20)
