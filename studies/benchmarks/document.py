"""The page ``docs/performance.md``, generated from the results."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from solopo_nemo.pages.render import write_page
from solopo_nemo.pages.tables import Table
from studies.benchmarks.agreement import TOLERANCE, check_agreement
from studies.benchmarks.charts import ADAPTERS, HEADS, ONE_RANK, SYSTEMS, by_length, draw_all, head_peaks
from studies.benchmarks.goals import GOALS, Goal
from studies.benchmarks.results import BUDGET_GIB, Collected, Spread, peak_gib, step_seconds
from studies.benchmarks.suite import SUITE, read_suite
from studies.paths import ASSETS
from studies.results import Run, read_yaml

REASONS = "reasons.yaml"
"""File next to the results: name of a goal -> reason why it is missed."""
GPU_CHECK = "gpu/check.md"
"""The tables of ``tools/gpu_check.py``, below the results."""
_NOT_MEASURED = "not measured"

Form = Callable[[float], str]


def write(folder: Path, document: Path) -> Path:
    """Write the document and its plots from a folder of results.

    Args:
        folder: folder of the JSON files and of :data:`REASONS`. The plots are written there.
        document: Markdown file to write.

    Returns:
        The path of the document.

    Raises:
        UserError: a JSON file is not a results file.
    """
    results, suite, checked = Collected.read(folder), read_suite(SUITE), folder / GPU_CHECK
    worst = check_agreement(results.select((*ONE_RANK, "lora")))
    return write_page(
        document,
        ASSETS / "performance.md.jinja",
        folder=folder.name,
        facts=_facts([run for name in (*suite["cpu"], *suite["gpu"]) for run in results.runs.get(name, [])]),
        goals=Table(("figure", "goal", "measured", "", "from"), [_goal(goal, results) for goal in GOALS], "l"),
        missed=_missed(results, read_yaml(folder / REASONS, missing={})),
        commands=_commands(results, suite),
        seconds=_by_length(results, step_seconds, seconds),
        peaks=_by_length(results, peak_gib, gib),
        lora=_lora(results),
        budget=f"{BUDGET_GIB:g}",
        longest=_longest(results),
        scaling=_scaling(results),
        heads=_heads(results),
        charts=draw_all(results, folder),
        gpu_check=checked.read_text(encoding="utf-8") if checked.is_file() else "",
        gpu=_gpu(results, suite["gpu"]),
        tolerance=f"{TOLERANCE:g}",
        agreement="" if math.isnan(worst) else f"{worst:.1e}",
    )


def seconds(value: float) -> str:
    """Format a time in seconds."""
    return f"{value:.1f}" if value >= 20 else f"{value:.2f}"


def gib(value: float) -> str:
    """Format a memory size in GiB."""
    return f"{value:.2f}"


def with_spread(spread: Spread | None, form: Form) -> str:
    """Format a median, with its extremes in brackets if they differ; empty without measurements."""
    if spread is None:
        return ""
    middle, low, high = (form(value) for value in (spread.median, spread.low, spread.high))
    return middle if low == high else f"{middle} ({low} to {high})"


def _facts(runs: Sequence[Run]) -> Table:
    """A table of machine, model, versions and commit."""
    own = [run for run in runs if "trl" not in run["versions"]]
    facts = {
        "machine": (_machine(run["machine"]) for run in runs),
        "model": (_shape(run["spec"]["shape"]) for run in runs if "shape" in run["spec"]),
        "this project": (_versions(run) for run in own),
        "TRL": (_versions(run) for run in runs if run not in own),
        "measured at commit": (run["revision"] for run in runs if run["revision"]),
    }
    rows = [(name, "; ".join(_distinct(values))) for name, values in facts.items()]
    return Table(("", ""), [row for row in rows if row[1]], "l")


def _distinct(values: Iterable[str]) -> list[str]:
    return sorted(set(values))


def _machine(machine: Mapping[str, Any]) -> str:
    gpu = f", {machine['gpu']}" if "gpu" in machine else ""
    return f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']:g} GiB{gpu}"


def _versions(run: Run) -> str:
    return ", ".join(f"{name} {version}" for name, version in run["versions"].items())


def _shape(shape: Mapping[str, Any]) -> str:
    tied = "one tensor for input and output embedding" if shape["tied"] else "input and output embeddings of their own"
    return (
        f"Qwen2, random weights: hidden {shape['hidden']}, {shape['layers']} layers, {shape['heads']} heads and "
        f"{shape['kv_heads']} KV heads, feed-forward {shape['ffn']}, vocabulary {shape['vocabulary']:,}, {tied}"
    )


def _goal(goal: Goal, results: Collected) -> list[str]:
    value, sources = goal.measure(results), ", ".join(f"`{name}`" for name in goal.sources)
    if value is None:
        return [goal.title, goal.bound, _NOT_MEASURED, "", sources]
    digits = 1 if value.median >= 20 else 2 if value.median >= 0.2 else 3
    shown = with_spread(value, lambda v: f"{v:.{digits}f}{goal.unit}")
    return [goal.title, goal.bound, shown, "met" if goal.met(value) else "**missed**", sources]


def _missed(results: Collected, reasons: Mapping[str, Any]) -> list[tuple[str, str]]:
    measured = [(goal, goal.measure(results)) for goal in GOALS]
    return [
        (goal.title, reasons.get(goal.name, "no reason known yet"))
        for goal, value in measured
        if value is not None and not goal.met(value)
    ]


def _commands(results: Collected, suite: Mapping[str, Mapping[str, str]]) -> Table:
    """A table of the suite's commands, and of the commands of other results."""
    rows = []
    others = dict.fromkeys(results.runs.keys() - suite["cpu"].keys() - suite["gpu"].keys(), "")
    for name, arguments in {**suite["cpu"], **dict(sorted(others.items()))}.items():
        rounds = 1 + max((run["round"] for run in results.runs.get(name, [])), default=-1)
        commands = results.commands(name) or [_command(arguments)]
        rows.append((f"`{name}`", "<br>".join(f"`{c}`" for c in commands), str(rounds or _NOT_MEASURED)))
    return Table(("name", "command", "rounds"), rows, "llr")


def _command(arguments: str) -> str:
    return f"python tools/benchmark.py {' '.join(arguments.split())}"


def _by_length(results: Collected, value: Callable[[Run], float], form: Form) -> Table:
    columns = [by_length(results, value, system) for system in SYSTEMS]
    lengths = sorted({long for points in columns for long in points})
    rows = [[f"{long:,}", *(with_spread(points.get(long), form) for points in columns)] for long in lengths]
    return Table(("long prompt", *(look.label for look in SYSTEMS.values())), rows, "r")


def _longest(results: Collected) -> Table:
    rows = []
    for source, what in (
        ("memory", "one rank"),
        ("memory_recompute", "one rank, full recompute"),
        ("memory_cp4", "CP 4, each rank within the budget"),
    ):
        for system in _distinct(run["spec"]["system"] for run in results.runs.get(source, [])):
            found = results.bracket(source, system=system)
            if found:
                rows.append([SYSTEMS[system].label, what, *(f"{long:,}" if long else "not tried" for long in found)])
    return Table(("system", "layout", "longest that fits", "shortest measured that does not"), rows, "llr")


def _lora(results: Collected) -> Table:
    rows = []
    for long in sorted({run["spec"]["long"] for run in results.select("lora")}):
        for system, label in ADAPTERS.items():
            cells = _cells(results, "lora", {"system": system, "long": long})
            rows += [[f"{long:,}", label, *cells]] if cells[0] else []
    return Table(("long prompt", "system", "seconds a step", "peak (GiB)"), rows, "rlrr")


def _scaling(results: Collected) -> Table:
    rows = []
    for source, note in (("scaling_time", ""), ("scaling_memory", ""), ("longest_step", ", full recompute")):
        layouts = {tuple(run["spec"][key] for key in ("long", "tensor", "context")) for run in results.select(source)}
        for long, tensor, context in sorted(layouts):
            common = {"long": long, "tensor": tensor, "context": context}
            rows.append([f"{long:,}{note}", str(tensor), str(context), *_cells(results, source, common)])
    return Table(("long prompt", "TP", "CP", "seconds a step", "peak of a rank (GiB)"), rows, "r")


def _cells(results: Collected, source: str, common: Mapping[str, Any]) -> list[str]:
    """Table cells with time and peak of a specification."""
    pairs = ((step_seconds, seconds), (peak_gib, gib))
    return [with_spread(results.spread(source, value, **common), form) for value, form in pairs]


def _heads(results: Collected) -> Table:
    columns = [head_peaks(results, head) for head in HEADS]
    lengths = sorted({run["spec"]["long"] for run in results.runs.get("head", [])})
    rows = [
        [f"{n:,}", *(with_spread(points.get(n), lambda v: f"{v:.3f}") or "does not fit" for points in columns)]
        for n in lengths
    ]
    return Table(("prompt", *(look.label for look in HEADS.values())), rows, "r")


def _gpu(results: Collected, suite: Mapping[str, str]) -> Table:
    rows = []
    for name, arguments in suite.items():
        command = f"`{_command(arguments)}`"
        found = sorted({(run["spec"]["system"], run["spec"]["long"]) for run in results.select(name)})
        rows += [
            [command, system, f"{long:,}", *_cells(results, name, {"system": system, "long": long})]
            for system, long in found
        ] or [[command, "", "", "", ""]]
    return Table(("command", "system", "long prompt", "seconds a step", "peak of a rank (GiB)"), rows, "llr")
