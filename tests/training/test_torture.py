"""A two-rank training killed at random moments, saving included: the result is that of an undisturbed run."""

from __future__ import annotations

import itertools
import random
import subprocess
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from runs import command, ranks, rows, run, start, started, until

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

SETTINGS = [
    "parallel.data=2",
    "trainer.checkpoint_every=3",
    "evaluation.name=none",
    "logger.tensorboard=false",
]


def steps_of(output: Path) -> int:
    metrics = output / "metrics.jsonl"
    return len(metrics.read_bytes().splitlines()) if metrics.exists() else 0


def saving(output: Path, pattern: str) -> Callable[[], object]:
    """A file or folder appears that was not there before."""
    there = set(output.glob(pattern))
    return lambda: set(output.glob(pattern)) - there


def later_step(output: Path, steps: int) -> Callable[[], object]:
    """So many steps were taken since the ranks have begun (the file is cut when they do)."""
    log = output / "logs" / "rank_00000.log"
    before = log.read_text().count(": loss ") if log.exists() else 0
    return lambda: log.exists() and log.read_text().count(": loss ") >= before + steps


MOMENTS: dict[str, Callable[[Path, random.Random], Callable[[], object]]] = {
    "a step": lambda output, chance: later_step(output, chance.randint(1, 5)),
    "saving begins": lambda output, _: saving(output, "checkpoints/.step_*.tmp"),
    "weights are written": lambda output, _: saving(output, "checkpoints/.step_*.tmp/weights/*.distcp"),
    "weights are listed": lambda output, _: saving(output, "checkpoints/.step_*.tmp/weights/.metadata"),
    "files are copied": lambda output, _: saving(output, "checkpoints/.step_*.tmp/hf"),
    "a checkpoint has its name": lambda output, _: saving(output, "checkpoints/step_*"),
}


def kill_all(process: subprocess.Popen[str]) -> None:
    parent = psutil.Process(process.pid)
    everybody = [parent, *parent.children(recursive=True)]
    for one in everybody:
        with suppress(psutil.NoSuchProcess):  # it has ended by itself meanwhile
            one.kill()
    process.wait()
    psutil.wait_procs(everybody)


def ranks_started(process: subprocess.Popen[str]) -> Callable[[], object]:
    return lambda: len(ranks(process)) == 2


@pytest.mark.parametrize("kills", [8, *(pytest.param(kills, marks=pytest.mark.long) for kills in (20, 60))])
def test_kills_leave_no_trace(finished: Path, tmp_path: Path, kills: int) -> None:
    chance = random.Random(kills)
    whole, tortured = started(finished, tmp_path / "whole"), started(finished, tmp_path / "tortured")
    steps = max(30, 2 * kills)
    settings = [*SETTINGS, f"trainer.max_steps={steps}"]
    run(whole, *settings)

    # every moment, and a fifth of all before there is anything to go on from but the ranks
    starts = kills // 4 if kills < 10 else kills // 5
    moments = ["start"] * starts + list(itertools.islice(itertools.cycle(MOMENTS), kills - starts))
    chance.shuffle(moments)
    saved, happened = 0, Counter[str]()
    for moment in moments:
        with (tmp_path / "output").open("ab") as stream:
            process = start(command(tortured, *settings), stdout=stream, stderr=stream)
        event = ranks_started(process) if moment == "start" else MOMENTS[moment](tortured, chance)
        until(event, process)
        kill_all(process)
        happened[moment] += 1
        names = [p.name for p in tortured.glob("checkpoints/step_*")]
        assert len(names) >= saved, "a kill has cost a checkpoint"
        saved = min(len(names), 2)
    assert happened.total() == kills
    assert steps_of(tortured) < steps, "the last kills came after the end"

    run(tortured, *settings)
    assert rows(tortured) == rows(whole)
    for file in ("hf/model.safetensors", "hf/config.json", "config.yaml"):
        ours, theirs = ((output / file).read_bytes() for output in (tortured, whole))
        assert ours.replace(b"tortured", b"whole") == theirs, file
    left, wanted = (
        {str(p.relative_to(output)) for p in output.rglob("*") if "logs" not in p.parts} for output in (tortured, whole)
    )
    assert left == wanted
