"""The page of the study, rendered from its JSON results."""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass
from itertools import product
from pathlib import Path

from solopo_nemo.pages.render import write_page as write
from solopo_nemo.pages.tables import Table
from studies.collapse.cells import (
    ALPHAS,
    AUTO,
    FIRST,
    FORMS,
    GAPS,
    HIGHER,
    OBJECTIVES,
    QUESTIONS,
    STEPS,
    VANILLA,
    Outcome,
    by_cell,
    pooled,
)  # fmt: skip
from studies.collapse.rule import (
    FALLEN,
    HARDLY,
    SMALL_GAP,
    Agreement,
    Choice,
    agreement,
    alarm,
    choices,
    collapsed,
    controls,
)  # fmt: skip
from studies.collapse.start import Replay, StartFacts
from studies.paths import ASSETS
from studies.results import Results

LEAST = (5.0, 3.0, 2.0, 1.0)
"""Thresholds of the collapse warning that are evaluated, in nats."""
TINY = 1e-6
NEEDED = 4
"""Number of settings in which ``auto`` must reach the swept optimum."""


@dataclass(frozen=True)
class Study:
    """The data of the page.

    Attributes:
        seeds: number of seeds of the map.
        planned: number of cells of the whole map.
        base: context length -> right answers and questions of the starting model, summed over the seeds.
        facts: gap -> measurements of the starting model.
        replays: trainings with decomposed gradients.
        outcomes: outcomes of the finished cells.
    """

    seeds: int
    planned: int
    base: dict[int, tuple[int, int]]
    facts: dict[int, StartFacts]
    replays: list[Replay]
    outcomes: list[Outcome]

    @classmethod
    def read(cls, path: Path) -> Study:
        """Read the results file of ``tools/collapse.py``.

        Raises:
            UserError: the file is missing or has another format.
        """
        return Results.read(path).parse(cls._of)

    @classmethod
    def _of(cls, results: Results) -> Study:
        about = results.about
        return cls(
            seeds=about["seeds"],
            planned=about["planned"],
            base={int(length): (right, asked) for length, (right, asked) in about["base"].items()},
            facts={row["gap"]: StartFacts(**row) for row in about["facts"]},
            replays=[Replay.from_json(row) for row in about["replays"]],
            outcomes=[Outcome.from_json(row) for row in results.runs],
        )


def write_page(study: Study, page: Path, folder: Path) -> None:
    """Write the page and its figures.

    Args:
        study: data of the page.
        page: Markdown file to write.
        folder: folder of the figures, below the folder of the page.
    """
    from studies.collapse.figures import draw_all

    made, agreements = choices(study.outcomes), _agreements(study)
    write(
        page,
        ASSETS / "collapse.md.jinja",
        folder=str(folder.resolve().relative_to(page.parent.resolve())),
        study=study,
        seeds=max((len(found) for found in by_cell(study.outcomes).values()), default=0),
        objectives=OBJECTIVES,
        forms=FORMS,
        alphas=ALPHAS,
        gaps=GAPS,
        steps=STEPS,
        questions=QUESTIONS,
        rates=sorted({outcome.cell.rate for outcome in study.outcomes}),
        fallen=round(100 * FALLEN),
        small_gap=_number(SMALL_GAP),
        hardly=_number(100 * HARDLY),
        base={length: 100 * right / asked for length, (right, asked) in study.base.items()},
        facts=_facts(study),
        replays=_replays(study),
        lost=_lost(study),
        agreements=_agreement_table(agreements),
        failed={FORMS[f].title: c.safe_collapsed for f, c in agreements["all together"].items() if c.safe_collapsed},
        alarms=_alarms(study),
        choices=_choices(made),
        reached={
            FORMS[form].title: (sum(c.reached for c in made if c.form == form), count)
            for form in FORMS
            if (count := sum(c.form == form for c in made))
        },
        verdict=_verdict(made),
        charts={chart.name: chart for chart in draw_all(study, folder)},
    )


def _facts(study: Study) -> Table:
    head = ("long context", "log-probability short / long (nats)", "gap a token (nats; ORPO's in log-odds)")
    rows = [
        (
            f"{facts.gap}x",
            f"{_number(facts.logp_short)} / {_number(facts.logp_long)}",
            f"{_number(facts.gaps['dpo'])}; {_number(facts.gaps['orpo'])}",
            f"{_number(100 * facts.ahead)} %",
            _number(facts.carried),
            *(f"{_number(facts.critical[name])} / {_number(facts.lasting[name])}" for name in OBJECTIVES),
        )
        for facts in study.facts.values()
    ]
    return Table((*head, "of it, long side ahead", "`k`", *OBJECTIVES.values()), rows, "l")


def _replays(study: Study) -> Table:
    parts = {"rest": "rest of the loss", "carried": "alignment, long side", "own": "alignment, short side"}
    rows = []
    for taken in study.replays:
        first, last = taken.velocities[0], taken.velocities[-1]
        rows.append(
            (
                OBJECTIVES[taken.objective],
                FORMS[taken.form].title,
                f"{taken.gap}x",
                *(", ".join(_number(getattr(half, part)) for half in taken.halves) for part in parts),
                f"{taken.down} of {len(taken.velocities)} steps",
                f"{_number(first.short)} to {_number(last.short)}",
            )
        )
    more = ("alignment pulls down in", "short log-probability (nats)")
    return Table(("objective", "form", "long", *parts.values(), *more), rows, "l")


def _lost(study: Study) -> Table:
    """Number of collapsed cells and scores on long contexts, by form, gap and learning rate."""
    beside = controls(study.outcomes)
    rates = sorted({outcome.cell.rate for outcome in study.outcomes})
    found: dict[tuple[str, int, float], list[tuple[bool, float]]] = {where: [] for where in product(FORMS, GAPS, rates)}
    for (_, form, alpha, gap, rate), outcomes in by_cell(study.outcomes).items():
        if alpha not in (AUTO, VANILLA):
            _, long, asked = pooled(outcomes)
            found[form, gap, rate].append((collapsed(outcomes, beside), long / asked))
    rows = [
        (
            FORMS[form].title,
            f"{gap}x",
            f"{rate:g}",
            str(len(cells)),
            str(sum(lost for lost, _ in cells)),
            f"{100 * max(long for _, long in cells):.1f}",
        )
        for (form, gap, rate), cells in found.items()
        if cells
    ]
    return Table(("form", "long", "learning rate", "cells", "collapsed", "best long accuracy, %"), rows, "l")


def _agreements(study: Study) -> dict[str, dict[str, Agreement]]:
    """Prediction and outcome by form, for all seeds and for the seeds that were not used to derive the rule."""
    later = [outcome for outcome in study.outcomes if outcome.cell.seed != FIRST]
    sets = {"all together": study.outcomes} | ({"unseen by the rule": later} if later else {})
    return {name: {form: agreement(outcomes, study.facts, form) for form in FORMS} for name, outcomes in sets.items()}


def _agreement_table(agreements: dict[str, dict[str, Agreement]]) -> Table:
    kinds = ("called safe, kept", "called safe, collapsed", "called unsafe, kept", "called unsafe, collapsed")
    rows = [
        (name, FORMS[form].title, *map(str, astuple(counts)))
        for name, by_form in agreements.items()
        for form, counts in by_form.items()
    ]
    return Table(("seeds", "form", *kinds), rows, "l")


def _alarms(study: Study) -> Table:
    rows = [[f"{value:g}" for value in astuple(alarm(study.outcomes, least))] for least in LEAST]
    kinds = ("collapsed, warned", "collapsed, silent", "kept, warned", "kept, silent")
    return Table(("least fall (nats)", *kinds), rows, "l")


def _choices(made: list[Choice]) -> Table:
    rows = []
    for c in made:
        value, low, high = (f"{100 * v:+.1f}" for v in (c.difference.value, c.difference.low, c.difference.high))
        rows.append(
            (
                OBJECTIVES[c.objective],
                FORMS[c.form].title,
                f"{c.gap}x",
                f"{c.rate:g}",
                f"{c.best:g}: {100 * c.scores[c.best]:.1f}",
                f"{', '.join(f'{alpha:g}' for alpha in c.chosen)}: {100 * c.scores[AUTO]:.1f}",
                f"{value} ({low} to {high})",
                "reached" if c.reached else "not reached",
            )
        )
    head = ("objective", "form", "long", "learning rate", "best alpha, %", "auto's alpha, %", "difference (95 %)", "")
    return Table(head, rows, "l")


def _verdict(made: list[Choice]) -> str:
    """A sentence that states whether ``auto`` reaches the swept optimum in the form for which it is designed."""
    meant = [c for c in made if c.form == HIGHER]
    if len(meant) < NEEDED:
        return "not resolved"
    return "reached" if all(c.reached for c in meant) else "not reached everywhere"


def _number(value: float, digits: int = 2) -> str:
    if math.isinf(value):
        return "unlimited"
    return f"{value:.0f}" if abs(value) >= 100 else f"{0.0 if abs(value) < TINY else value:.{digits}g}"
