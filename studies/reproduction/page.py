"""The page ``docs/reproduction.md``, generated from the results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from solopo_nemo.pages.render import write_page as write
from solopo_nemo.pages.tables import Table
from solopo_nemo.runtime.errors import UserError
from studies.paths import ASSETS
from studies.reproduction.charts import draw_all
from studies.reproduction.claims import Claim, Comparison, all_claims
from studies.reproduction.collected import Collected
from studies.reproduction.methods import ALPHA, LEARNING_RATE, METHODS, OBJECTIVES, SAFE
from studies.reproduction.runs import BASE
from studies.reproduction.start import Pretraining
from studies.reproduction.statistics import Interval, over_seeds
from studies.reproduction.study import COMPARED, SLOWER, TIMED
from studies.reproduction.world import LONG, SHORT_SENTENCES, facts_of, prompt_tokens
from studies.results import read_yaml

REASONS = "reasons.yaml"
"""File next to the results: text of a claim -> reason why it does not hold or is not resolved."""


def write_page(folder: Path, document: Path) -> Path:
    """Write the page and its plots.

    Args:
        folder: folder of the results, and of the plots.
        document: page to write.

    Returns:
        The path of the page.

    Raises:
        UserError: there are no results, or :data:`REASONS` has an unknown claim.
    """
    results = Collected.read(folder)
    reasons, claims, size = read_yaml(folder / REASONS, missing={}), all_claims(results), results.about["size"]
    if unknown := reasons.keys() - {claim.text for claim in claims}:
        raise UserError(f"{folder / REASONS}: {sorted(unknown)[0]!r} is no claim")
    verdicts = [(claim.text, claim.where, f"**{claim.verdict}**") for claim in claims]
    lengths = results.lengths()
    return write(
        document,
        ASSETS / "reproduction.md.jinja",
        folder=folder.name,
        size=size,
        facts=_facts(results),
        reasons=reasons,
        verdicts=Table(("claim", "in the paper", "here"), verdicts, "l"),
        comparisons=_comparisons(claims),
        accuracy=_accuracy(results, lengths),
        costs=_costs(results),
        times=_times(results),
        rates=_rates(results),
        slower=f"{SLOWER:g}",
        rate=f"{LEARNING_RATE:g}",
        alphas=", ".join(f"{value:g} ({OBJECTIVES[objective]})" for objective, value in ALPHA.items()),
        safe=SAFE,
        charts=draw_all(results, folder),
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


def _facts(results: Collected) -> Table:
    about, size = results.about, results.about["size"]
    machine = about["machine"]
    runs = [run for study in results.runs.values() for found in study.values() for run in found]
    shared = sum(about["seconds"].values())
    total = (shared + sum(run.wall for run in runs)) / 60
    rows = [
        ("machine", f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']:g} GiB"),
        ("versions", ", ".join(f"{name} {version}" for name, version in about["versions"].items())),
        ("commit", about["revision"] or "unknown"),
        ("trainings", f"{sum(bool(run.recipe) for run in runs)}, of {size['steps']} steps"),
        ("minutes of a worker, all together", f"{total:.0f} (starting model and pairs {shared / 60:.0f})"),
    ]
    return Table(("", ""), rows, "l")


def percent(interval: Interval | None) -> str:
    """Format an accuracy and its interval in percent."""
    if interval is None:
        return ""
    return f"{100 * interval.mean:.1f} ({100 * interval.low:.0f}-{100 * interval.high:.0f})"


def _title(name: str) -> str:
    return "starting model" if name == BASE else METHODS[name].title


def _accuracy(results: Collected, lengths: Sequence[int]) -> Table:
    rows = [
        (_title(name), *(percent(results.accuracy("main", name, [length])) for length in lengths))
        for name in (BASE, *METHODS)
        if results.results("main", name)
    ]
    return Table(("method", *(f"{length}x" for length in lengths)), rows)


def _costs(results: Collected) -> Table:
    rows = []
    for name, method in METHODS.items():
        if found := results.results("main", name):
            seconds = [run.seconds for run in found]
            cells = (
                f"{over_seeds(seconds).mean:.0f} ({min(seconds):.0f}-{max(seconds):.0f})",
                f"{sum(run.tokens for run in found) / len(found) / 1000:,.0f}",
                f"{1024 * max(run.peak_gib for run in found):.0f}",
                f"{found[0].flops / 1e9:.2f}",
            )
            rows.append((method.title, *cells))
    return Table(("method", "seconds", "thousand tokens", "peak (MiB)", "GFLOP a sample"), rows)


def _rates(results: Collected) -> Table:
    """Accuracy of the first seed at the shared and at the lower learning rate, on short and long contexts."""
    rows = []
    for name in COMPARED:
        slower = results.results("rate", name)
        shared = [run for run in results.results("main", name) if slower and run.seed == slower[0].seed]
        if shared:
            accuracies = [run.accuracy(length) for length in (1, LONG) for run in (shared[0], slower[0])]
            rows.append((_title(name), *(f"{100 * accuracy:.1f}" for accuracy in accuracies)))
    return Table(("method", *(f"{n}x, {rate:g}" for n in (1, LONG) for rate in (LEARNING_RATE, SLOWER))), rows)


def _times(results: Collected) -> Table:
    rows = []
    for long in TIMED:
        solo, vanilla = (results.results("time", f"{name}-orpo-{long}x") for name in ("solo", "expand"))
        if solo and vanilla:
            times = [run.seconds / run.steps for run in (vanilla[0], solo[0])]
            shares = (times[1] / times[0], solo[0].flops / vanilla[0].flops)
            cells = (*(f"{seconds:.3f}" for seconds in times), *(f"{share:.2f}" for share in shares))
            rows.append((f"{long}x", f"{prompt_tokens(long):,}", *cells))
    return Table(("long", "tokens", "Long", "SoLo", "SoLo over Long", "by the cost model"), rows, "r")


def _comparisons(claims: Sequence[Claim]) -> Table:
    rows = [(claim.text, claim.rule, c.what, _difference(c), c.verdict) for claim in claims for c in claim.comparisons]
    head = ("claim", "it holds if", "for", "difference or share (95 % interval)", "verdict")
    return Table(head, rows, "lllrl")


def _difference(comparison: Comparison) -> str:
    interval, points = comparison.interval, comparison.unit == "points"
    if interval is None:
        return ""
    scale, digits = (100, 1) if points else (1, 2)
    sign = "+" if points or interval.mean < 0 or interval.low < 0 else ""
    mean, low, high = (f"{scale * value:{sign}.{digits}f}" for value in (interval.mean, interval.low, interval.high))
    return f"{mean} ({low} to {high})"
