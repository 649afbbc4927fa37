"""The page of the study, out of its JSON."""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from solopo_nemo.runtime.output import atomic_text
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
)
from studies.collapse.choice import Choice, choices
from studies.collapse.figures import draw_all
from studies.collapse.outcome import pooled
from studies.collapse.rule import (
    FALLEN,
    HARDLY,
    SMALL_GAP,
    Agreement,
    agreement,
    alarm,
    by_cell,
    collapsed,
    controls,
)
from studies.collapse.study import Study

_ASSETS = Path(__file__).resolve().parents[1] / "assets"
LEAST = (5.0, 3.0, 2.0, 1.0)
"""Least falls in nats that the collapse warning is tried with."""
TINY = 1e-6
NEEDED = 4
"""Settings in which ``auto`` has to reach the swept optimum."""


def write_page(study: Study, page: Path, figures: Path) -> None:
    """Write the page and its figures.

    Args:
        study: what it is made of.
        page: the Markdown file.
        figures: folder of the figures, below the page's own.
    """
    drawn = draw_all(study, figures)
    environment = Environment(
        loader=FileSystemLoader(_ASSETS), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    made = choices(study.outcomes)
    text = environment.get_template("collapse.md.jinja").render(
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
        small_gap=SMALL_GAP,
        hardly=HARDLY,
        base={length: 100 * right / asked for length, (right, asked) in study.base.items()},
        agreements=_agreements(study),
        lost=_lost(study),
        alarms=[alarm(study.outcomes, least) for least in LEAST],
        choices=made,
        reached={form: sum(c.reached for c in made if c.form == form) for form in FORMS},
        tried={form: sum(c.form == form for c in made) for form in FORMS},
        verdict=_verdict(made),
        figures={name: f"{figures.resolve().relative_to(page.parent.resolve())}/{name}" for name in drawn},
        number=_number,
    )
    with atomic_text(page) as stream:
        stream.write(text.rstrip() + "\n")


def _agreements(study: Study) -> dict[str, dict[str, Agreement]]:
    """Prediction and outcome by form: of all seeds, and of those that the rule was not written on."""
    later = [outcome for outcome in study.outcomes if outcome.cell.seed != FIRST]
    sets = {"all together": study.outcomes} | ({"unseen by the rule": later} if later else {})
    return {name: {form: agreement(outcomes, study.facts, form) for form in FORMS} for name, outcomes in sets.items()}


def _lost(study: Study) -> list[dict[str, Any]]:
    """By form, gap and learning rate, how many cells lost the short contexts, and what the long ones became."""
    beside = controls(study.outcomes)
    rates = sorted({outcome.cell.rate for outcome in study.outcomes})
    rows: dict[tuple[str, int, float], list[tuple[bool, float]]] = {where: [] for where in product(FORMS, GAPS, rates)}
    for (_, form, alpha, gap, rate), found in by_cell(study.outcomes).items():
        if alpha in (AUTO, VANILLA):
            continue
        _, long, asked = pooled(found)
        rows[form, gap, rate].append((collapsed(found, beside), long / asked))
    return [
        {
            "form": FORMS[form].title,
            "gap": gap,
            "rate": rate,
            "cells": len(cells),
            "lost": sum(lost for lost, _ in cells),
            "best": 100 * max(long for _, long in cells),
        }
        for (form, gap, rate), cells in rows.items()
        if cells
    ]


def _verdict(made: list[Choice]) -> str:
    """In words, whether ``auto`` reaches the swept optimum in the form that it is meant for."""
    meant = [c for c in made if c.form == HIGHER]
    if len(meant) < NEEDED:
        return "not resolved"
    return "reached" if all(c.reached for c in meant) else "not reached everywhere"


def _number(value: float, digits: int = 2) -> str:
    if math.isinf(value):
        return "unlimited"
    return f"{value:.0f}" if abs(value) >= 100 else f"{0.0 if abs(value) < TINY else value:.{digits}g}"
