"""The ranks of a host: they are killed with a start that is refused, and a closed terminal stops them as SIGTERM does."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import psutil
import pytest
from processes import wait_until

from solopo_nemo.config.schema import load_config
from solopo_nemo.runtime.errors import UserError
from solopo_nemo.runtime.json_files import write_json
from solopo_nemo.training import checks, ranks
from solopo_nemo.training.checkpoints.record import RunRecord
from solopo_nemo.training.launch import _run_here
from solopo_nemo.training.paths import Paths
from solopo_nemo.training.ranks import EXIT_RESUMABLE, Wait, begin_ranks

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

    with begin_ranks(*arguments) as wait:
        closing = threading.Thread(target=close)
        closing.start()
        assert wait() == EXIT_RESUMABLE
        closing.join()
    assert not any(psutil.pid_exists(pid) for pid in begun(tmp_path))


@pytest.mark.parametrize(
    ("steps", "words", "only_reference", "early"),
    [
        (4, [], False, 0),
        (5, [], False, 1),
        (4, ["trainer.resume=never"], False, 1),
        (4, [], True, 1),
        (None, [], False, 1),
    ],
)
def test_a_run_with_its_last_checkpoint_gets_ranks_only_when_it_asks(
    steps: int | None,
    words: list[str],
    only_reference: bool,
    early: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The report alone may be missing. The preparation can still find that the checkpoint is damaged."""
    began: list[tuple[object, ...]] = []

    @contextmanager
    def begin(*given: object) -> Iterator[Wait]:
        began.append(given)
        yield lambda: 7

    def refuse(*_: object) -> None:
        raise UserError(f"{len(began)} started before the checks")

    monkeypatch.setattr(ranks, "begin_ranks", begin)
    monkeypatch.setattr(checks, "check_all", refuse)
    monkeypatch.setenv("SOLOPO_START", "")
    (tmp_path / "initial").mkdir()
    (tmp_path / "checkpoints" / "step_000004").mkdir(parents=True)
    if steps:
        record = RunRecord("f00d", 1, steps, "fp32", "", "", [2], {})
        write_json(Paths(tmp_path).record, asdict(record))
    config = load_config("solo_dpo", [f"output_dir={tmp_path}", *words])
    with pytest.raises(UserError, match=f"^{early} started"):
        _run_here(config, only_reference, None)
    began.clear()
    with ranks.start_ranks(config, early=False) as wait:
        assert not began
        assert wait() == 7
    assert len(began) == 1
