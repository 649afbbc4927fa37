"""A growth: run what is missing of each round, and decide after each whether to go on."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

import solopo_nemo
from solopo_nemo.evaluation.measured import Measured, figures
from solopo_nemo.evaluation.scores import Mean
from solopo_nemo.evaluation.suites import SUITES
from solopo_nemo.growth.plan import GrowthSettings, Phase, json_rows, phases
from solopo_nemo.runtime.environment import without_ranks
from solopo_nemo.runtime.errors import UserError, require
from solopo_nemo.runtime.guard import guarded
from solopo_nemo.runtime.signals import stopping_at_once

_GRACE = 1800.0  # seconds that a training may take to save


@dataclass(frozen=True)
class Round:
    """A finished round; round 0 is the starting model.

    Attributes:
        number: of the round.
        length: of its long prompts; of round 0 that of round 1.
        scores: length -> score, 0 to 1, with its interval.
        gain: paired difference at `length` from the model before; None if that was not evaluated there.
        pairs: number of pairs.
        steps: optimizer steps.
        seconds: of training.
        verdict: why the growth goes on or stops.
        goes_on: whether it goes on.
        kept: whether its model is one that the growth may end with.
    """

    number: int
    length: int
    scores: dict[int, Mean]
    gain: Mean | None
    pairs: int = 0
    steps: int = 0
    seconds: float = 0.0
    verdict: str = "the starting model"
    goes_on: bool = True
    kept: bool = True


def grow(settings: GrowthSettings) -> tuple[int, list[Round]]:
    """Run the rounds until the rule stops them, or the last length is done.

    Each phase is a command of another tool in a process of its own, which ends with this one. A finished phase is
    recognised by the last file of its tool and not run again; an interrupted one goes on by its tool's own means.

    Returns:
        The exit code of the phase that ended otherwise than with 0, else 0; and the finished rounds.

    Raises:
        UserError: a finished phase had other settings, or the model that a phase needs, or the last one, is gone.
    """
    done: list[Round] = []
    console = Console(stderr=True, highlight=False, markup=False)
    with stopping_at_once():
        for number in range(len(settings.lengths) + 1):
            for phase in phases(settings, number):
                if phase.finished():
                    continue
                _require_policy(settings, number if phase.name == "evaluation" else number - 1)
                if code := _run(phase, console):
                    return code, done
            done.append(finished_round(settings, number, done))
            console.print(f"{settings.folder(number).name}: {done[-1].verdict}", soft_wrap=True)
            if not done[-1].goes_on:
                break
    _require_policy(settings, _kept(done))
    return 0, done


def _require_policy(settings: GrowthSettings, number: int) -> None:
    """Refuse to go on without the model after a round."""
    folder = Path(settings.policy(number))
    if not (folder / "config.json").is_file() or not [*folder.glob("*.safetensors")]:
        raise UserError(f"{folder}: the model of round {number} is gone: bring the folder back, or give another --out")


def _kept(rounds: list[Round]) -> int:
    """Return the number of the round with whose model the growth ends."""
    return max(one.number for one in rounds if one.kept)


def _run(phase: Phase, console: Console) -> int:
    """Run a phase; return its exit code."""
    console.rule(f"{phase.folder.name}: {phase.name}")
    console.print(phase.shown, soft_wrap=True)
    phase.folder.mkdir(parents=True, exist_ok=True)
    phase.note()
    root = Path(solopo_nemo.__file__).parents[1]
    paths = os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))
    with guarded(phase.command, _GRACE, env=without_ranks() | {"PYTHONPATH": paths}) as process:
        code = process.wait()
    require(code != 0 or phase.done.is_file(), f"{phase.folder}: {phase.name} finished without {phase.done}")
    return code


def finished_round(settings: GrowthSettings, number: int, before: list[Round]) -> Round:
    """Read the results of a round, and decide by the rule.

    The growth goes on while both hold: the score at the round's length is at least `reach` times the short score, and
    the short score is at most `guard` points below that of the starting model.
    """
    folder, length = settings.folder(number), settings.lengths[max(number, 1) - 1]
    measured = Measured.read(folder / "evaluation")
    earlier = Measured.read(settings.folder(max(number - 1, 0)) / "evaluation")
    views = figures(SUITES[settings.suite], [earlier, measured])
    at = {view.view.where["length"]: view for view in views if [*view.view.where] == ["length"]}
    scores = {one: at[one].means[1] for one in settings.evaluated(number)}
    found = {one: mean for one, mean in scores.items() if mean is not None}
    if number == 0:
        return Round(number, length, found, None)
    short, here, start = (
        100 * mean.value for mean in (found[settings.short], found[length], before[0].scores[settings.short])
    )
    verdict, goes_on, kept = "goes on", True, True
    if short < start - settings.guard:
        verdict = f"stops: the short score fell by {start - short:.1f} points, more than {settings.guard:g}"
        goes_on = kept = False
    elif here < settings.reach * short:
        verdict = f"stops: {here:.1f} here is below {100 * settings.reach:g} % of the short score {short:.1f}"
        goes_on = False
    elif number == len(settings.lengths):
        verdict, goes_on = "ends: the last length is done", False
    steps = json_rows(folder / "train" / "metrics.jsonl")
    return Round(
        number,
        length,
        found,
        at[length].gains[1],
        pairs=sum(1 for _ in (folder / "triplets.jsonl").open(encoding="utf-8")),
        steps=len(steps),
        seconds=sum(step["seconds"] for step in steps),
        verdict=verdict,
        goes_on=goes_on,
        kept=kept,
    )


def summary(settings: GrowthSettings, rounds: list[Round]) -> dict[str, Any]:
    """The rounds as plain JSON values, scores from 0 to 100, and the model that the growth ends with."""

    return {
        "policy": settings.policy(_kept(rounds)),
        "verdict": rounds[-1].verdict,
        "rounds": [
            {
                "round": one.number,
                "length": one.length,
                "scores": {settings.name(length): mean.as_json(2) for length, mean in one.scores.items()},
                "gain": one.gain.as_json(2) if one.gain else None,
                "pairs": one.pairs,
                "steps": one.steps,
                "seconds": round(one.seconds, 1),
                "verdict": one.verdict,
            }
            for one in rounds
        ],
    }
