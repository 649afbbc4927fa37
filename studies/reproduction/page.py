"""``docs/reproduction.md``: every number in it comes out of the results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from solopo_nemo.runtime.errors import UserError
from studies.reproduction.charts import Chart
from studies.reproduction.claims import Claim, Comparison, all_claims
from studies.reproduction.collected import Collected
from studies.reproduction.methods import ALPHA, LEARNING_RATE, METHODS, OBJECTIVES, SAFE
from studies.reproduction.runs import BASE
from studies.reproduction.start import Pretraining
from studies.reproduction.statistics import Interval, over_seeds
from studies.reproduction.study import COMPARED, SLOWER, TIMED
from studies.reproduction.world import LONG, SHORT_SENTENCES, facts_of, prompt_tokens

_ASSETS = Path(__file__).resolve().parents[1] / "assets"
REASONS = "reasons.yaml"
"""Beside the results: why a claim does not hold or is not resolved, by its text."""
Rows = list[list[str]]


def render(results: Collected, charts: Sequence[Chart], folder: str, reasons: Mapping[str, str]) -> str:
    """The page as Markdown.

    Args:
        results: of all studies.
        charts: figures that lie in the folder.
        folder: of results and figures, as seen from the page.
        reasons: what was found about claims that do not hold or are not resolved, by claim.

    Raises:
        UserError: a reason for something that is no claim.
    """
    page = Environment(loader=FileSystemLoader(_ASSETS), undefined=StrictUndefined, trim_blocks=True)
    lengths = results.lengths()
    claims = all_claims(results)
    if unknown := reasons.keys() - {claim.text for claim in claims}:
        raise UserError(f"{folder}/{REASONS}: {sorted(unknown)[0]!r} is no claim")
    size = results.about["size"]
    return page.get_template("reproduction.md.jinja").render(
        folder=folder,
        size=size,
        facts=_facts(results),
        claims=claims,
        reasons=reasons,
        verdicts=[[claim.text, claim.where, f"**{claim.verdict}**"] for claim in claims],
        comparisons=[row for claim in claims for row in _comparisons(claim)],
        accuracy_head=["method", *(f"{length}x" for length in lengths)],
        accuracy=_accuracy(results, lengths),
        costs=_costs(results),
        times=_times(results),
        rates=_rates(results),
        slower=f"{SLOWER:g}",
        rate=f"{LEARNING_RATE:g}",
        alphas=", ".join(f"{value:g} ({OBJECTIVES[objective]})" for objective, value in ALPHA.items()),
        safe=SAFE,
        charts=charts,
        questions=size["questions"] * size["seeds"],
        world={
            "short": SHORT_SENTENCES,
            "short_tokens": prompt_tokens(1),
            "long": LONG,
            "long_tokens": prompt_tokens(LONG),
            "longest": max(lengths),
            "longest_tokens": f"{prompt_tokens(max(lengths)):,}",
            "facts": facts_of(SHORT_SENTENCES),
        },
        start=Pretraining(),
    )


def _facts(results: Collected) -> Rows:
    about, size = results.about, results.about["size"]
    machine = about["machine"]
    runs = [run for study in results.runs.values() for found in study.values() for run in found]
    shared = sum(about["seconds"].values())
    total = (shared + sum(run.wall for run in runs)) / 60
    return [
        ["machine", f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']:g} GiB"],
        ["versions", ", ".join(f"{name} {version}" for name, version in about["versions"].items())],
        ["commit", about["revision"] or "unknown"],
        ["trainings", f"{sum(bool(run.recipe) for run in runs)}, of {size['steps']} steps"],
        ["minutes of a worker, all together", f"{total:.0f} (starting model and pairs {shared / 60:.0f})"],
    ]


def percent(interval: Interval | None) -> str:
    """An accuracy with its interval, in percent."""
    if interval is None:
        return ""
    return f"{100 * interval.mean:.1f} ({100 * interval.low:.0f}-{100 * interval.high:.0f})"


def _title(name: str) -> str:
    return "starting model" if name == BASE else METHODS[name].title


def _accuracy(results: Collected, lengths: Sequence[int]) -> Rows:
    return [
        [_title(name), *(percent(results.accuracy("main", name, [length])) for length in lengths)]
        for name in (BASE, *METHODS)
        if results.results("main", name)
    ]


def _costs(results: Collected) -> Rows:
    rows = []
    for name, method in METHODS.items():
        found = results.results("main", name)
        if found:
            seconds = over_seeds([run.seconds for run in found])
            low, high = min(run.seconds for run in found), max(run.seconds for run in found)
            tokens = sum(run.tokens for run in found) / len(found)
            peak = max(run.peak_gib for run in found)
            rows.append(
                [
                    method.title,
                    f"{seconds.mean:.0f} ({low:.0f}-{high:.0f})",
                    f"{tokens / 1000:,.0f}",
                    f"{1024 * peak:.0f}",
                    f"{found[0].flops / 1e9:.2f}",
                ]
            )
    return rows


def _rates(results: Collected) -> Rows:
    """The first seed at the shared learning rate and at a slower one, on short and on the trained long contexts."""
    rows = []
    for name in COMPARED:
        slower = results.results("rate", name)
        shared = [run for run in results.results("main", name) if slower and run.seed == slower[0].seed]
        if shared:
            accuracies = [run.accuracy(length) for length in (1, LONG) for run in (shared[0], slower[0])]
            rows.append([_title(name), *(f"{100 * accuracy:.1f}" for accuracy in accuracies)])
    return rows


def _times(results: Collected) -> Rows:
    rows = []
    for long in TIMED:
        solo, vanilla = (results.results("time", f"{name}-orpo-{long}x") for name in ("solo", "expand"))
        if solo and vanilla:
            times = [run.seconds / run.steps for run in (vanilla[0], solo[0])]
            rows.append(
                [
                    f"{long}x",
                    f"{prompt_tokens(long):,}",
                    *(f"{seconds:.3f}" for seconds in times),
                    f"{times[1] / times[0]:.2f}",
                    f"{solo[0].flops / vanilla[0].flops:.2f}",
                ]
            )
    return rows


def _comparisons(claim: Claim) -> Rows:
    return [[claim.text, claim.rule, c.what, _difference(c), c.verdict] for c in claim.comparisons]


def _difference(comparison: Comparison) -> str:
    interval, points = comparison.interval, comparison.unit == "points"
    if interval is None:
        return ""
    scale, digits = (100, 1) if points else (1, 2)
    sign = "+" if points or interval.mean < 0 or interval.low < 0 else ""
    mean, low, high = (f"{scale * value:{sign}.{digits}f}" for value in (interval.mean, interval.low, interval.high))
    return f"{mean} ({low} to {high})"
