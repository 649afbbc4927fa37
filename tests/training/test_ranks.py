"""The ranks of a host: they are killed with a start that is refused, and a closed terminal stops them as SIGTERM does."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

import psutil
import pytest
from processes import wait_until

from solopo_nemo.runtime.errors import UserError
from solopo_nemo.training.ranks import EXIT_RESUMABLE, begin_ranks

ENDLESS = "import sys, time; open(sys.argv[1] + '/' + str(__import__('os').getpid()), 'w'); time.sleep(600)"


def begun(folder: Path) -> list[int]:
    return [int(file.name) for file in folder.iterdir()]


@pytest.fixture
def arguments(tmp_path: Path) -> tuple[object, str, list[str]]:
    from torch.distributed.launcher.api import LaunchConfig

    launch = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=2, run_id=tmp_path.name, rdzv_backend="c10d",
        rdzv_endpoint="localhost:0", local_addr="localhost", max_restarts=0, monitor_interval=0.1,
    )  # fmt: skip
    return launch, sys.executable, ["-c", ENDLESS, str(tmp_path)]


@pytest.mark.parametrize("seconds", [0, 120])
def test_a_refused_start_kills_its_ranks(arguments: tuple, tmp_path: Path, seconds: int) -> None:  # type: ignore[type-arg]
    with pytest.raises(UserError, match="refused"), begin_ranks(*arguments):
        if seconds:
            wait_until(lambda: len(begun(tmp_path)) == 2, seconds)
        raise UserError("refused")
    assert not any(psutil.pid_exists(pid) for pid in begun(tmp_path))


def test_a_closed_terminal_stops_them(arguments: tuple, tmp_path: Path) -> None:  # type: ignore[type-arg]
    def close() -> None:
        wait_until(lambda: len(begun(tmp_path)) == 2)
        os.kill(os.getpid(), signal.SIGHUP)

    with begin_ranks(*arguments) as ranks:
        closing = threading.Thread(target=close)
        closing.start()
        assert ranks() == EXIT_RESUMABLE
        closing.join()
    assert not any(psutil.pid_exists(pid) for pid in begun(tmp_path))
