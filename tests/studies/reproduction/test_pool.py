"""Jobs in a pool: their order and lines, what failed, what was killed, and what time is left for."""

from __future__ import annotations

import os
import re
import signal
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pytest
from rich.console import Console
from rich.progress import Progress

from solopo_nemo.runtime.errors import RunFault, UserError
from studies.reproduction.pool import Done, Job, Pool


def pool(executor: Executor, folder: Path) -> Pool:
    return Pool(executor, 2, folder, Progress(console=Console(stderr=True, width=200), disable=True))


def refuse(why: str) -> None:
    raise UserError(why)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_every_job_is_done_and_has_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jobs = [Job(f"job {n}", pow, (n, 2), 1.0) for n in range(5)]
    with ThreadPoolExecutor(2) as executor:
        found = pool(executor, tmp_path).run("squares", jobs, lambda name, done: f"{name} gave {done.value}")
    assert found == {f"job {n}": n * n for n in range(5)}
    assert sorted(capsys.readouterr().err.splitlines()) == [f"job {n} gave {n * n}" for n in range(5)]


def test_failures_are_said_last_and_stop_nothing(tmp_path: Path) -> None:
    seen: list[str] = []

    def tell(name: str, done: Done) -> str:
        seen.append(name)
        return name

    jobs = [Job("a", refuse, ("no data",), 1.0), Job("b", pow, (2, 2), 1.0), Job("c", refuse, ("no disk",), 1.0)]
    jobs += [Job("d", pow, (3, 2), 1.0)]
    with ThreadPoolExecutor(2) as executor, pytest.raises(RunFault) as failed:
        pool(executor, tmp_path).run("some", jobs, tell)
    assert sorted(re.split("; ", str(failed.value))) == [
        "a: no data",
        "c: no disk",
        "the same command goes on from here",
    ]
    assert sorted(seen) == ["b", "d"]


def test_a_killed_worker_is_a_fault_that_names_the_job_and_the_logs(tmp_path: Path) -> None:
    with (
        ProcessPoolExecutor(1) as executor,
        pytest.raises(RunFault, match=rf"last words: a worker was killed.*{re.escape(str(tmp_path))}.*goes on"),
    ):
        pool(executor, tmp_path).run("some", [Job("last words", die, (), 1.0)])


def test_nothing_is_begun_once_time_is_over(tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as executor:
        assert pool(executor, tmp_path).run("none", [Job("a", pow, (2, 2), 1.0)], until=0.0) == {}
