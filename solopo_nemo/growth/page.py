"""The page of a growth: a line a round, and the scores by length."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

from matplotlib.figure import Figure

from solopo_nemo.growth.plan import GrowthSettings
from solopo_nemo.growth.rounds import Round, summary
from solopo_nemo.pages import figures
from solopo_nemo.pages.figures import Chart, Look
from solopo_nemo.pages.render import write_page
from solopo_nemo.pages.tables import Table
from solopo_nemo.pages.theme import Theme
from solopo_nemo.runtime.paths import ASSETS

_COLOURS, _MARKERS = ("grey", "blue", "orange", "green", "purple"), "os^Dv"
_CHART = Chart("scores", "Score by length after each round", "Bars: 95 % intervals over questions.")


def write_growth_page(settings: GrowthSettings, rounds: Sequence[Round]) -> Path:
    """Write `report/index.html` below the output folder, and return its path."""
    folder = settings.out / "report"
    figures.draw(folder, _CHART.name, lambda theme: _scores(settings, rounds, theme))
    facts = {
        "model": settings.model,
        "questions": settings.source,
        "recipe": " ".join((settings.recipe, *settings.overrides)),
        "policy": summary(settings, [*rounds])["policy"],
    }
    rule = (
        f"A round goes on while the score at its length is at least {100 * settings.reach:g} % of the score at "
        f"{settings.name(settings.short)}, and the score at {settings.name(settings.short)} is at most "
        f"{settings.guard:g} points below that of the starting model."
    )
    template = ASSETS / "growth.html.jinja"
    table, last = rounds_table(settings, rounds), rounds[-1]
    return write_page(folder / "index.html", template, facts=facts, rule=rule, table=table, charts=[_CHART], last=last)


def rounds_table(settings: GrowthSettings, rounds: Sequence[Round]) -> Table:
    """A line for each round."""
    short = settings.name(settings.short)
    head = ("round", "length", "pairs", "steps", short, "length", "gain there", "twice the length", "then")
    rows = [
        (
            str(one.number) if one.number else "start",
            settings.name(one.length) if one.number else "-",
            f"{one.pairs:,}" if one.number else "-",
            f"{one.steps:,}" if one.number else "-",
            *(str(one.scores.get(length, "-")) for length in (settings.short, one.length)),
            "-" if one.gain is None or not one.number else f"{100 * one.gain.value:+.1f}",
            str(one.scores.get(2 * one.length, "-")),
            one.verdict.partition(":")[0] if one.number else "-",
        )
        for one in rounds
    ]
    return Table(head, rows, align="lrrrrrrrl", wide=(2, 3))


def _scores(settings: GrowthSettings, rounds: Sequence[Round], theme: Theme) -> Figure:
    figure, (axis,) = figures.panels(1, height=3.6)
    for one, colour, marker in zip(rounds, cycle(_COLOURS), cycle(_MARKERS), strict=False):
        label = f"round {one.number}, {settings.name(one.length)}" if one.number else "start"
        spans = {length: mean.percent for length, mean in one.scores.items()}
        figures.points(axis, theme, Look(label, colour, marker), spans)
    ticks = sorted({length for one in rounds for length in one.scores})
    figures.powers_of_two(axis, {length: settings.name(length) for length in ticks})
    axis.set(ylim=(-3, 103), xlabel="context length", ylabel="score")
    figures.legend(figure, 3)
    return figure
