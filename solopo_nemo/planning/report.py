"""Printing of a plan."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape

from solopo_nemo.pages.tables import Table
from solopo_nemo.planning.overview import Overview
from solopo_nemo.planning.parameters import StageParameters
from solopo_nemo.planning.search import Plan
from solopo_nemo.planning.state import GIB

SMALL = 0.01
"""Parts below this share of the peak are combined into one row."""


def print_overview(found: Overview, recipe: str, model: str, console: Console) -> None:
    """Print a plan.

    Args:
        found: the plan.
        recipe: name of the recipe.
        model: name of the model.
        console: output.
    """
    machine, run = found.machine, found.plan.run
    billions = StageParameters.of(run.shape).total / 1e9
    sequences = ", ".join(f"{s.name} {s.inputs:,}" for s in run.workload.policy)
    console.print(f"[bold]{recipe}[/bold] of {escape(model)} ({billions:.2f} billion parameters), {run.layout}")
    console.print(f"tokens: {sequences}; {run.global_batch} samples a step, {run.micro_batch} a micro-batch")
    console.print(
        f"{machine.gpus} GPUs of {machine.memory_gib:g} GiB ({machine.usable:.0%} usable), "
        f"{machine.gpus_per_node} a node;"
        f" assumed: {machine.tflops:g} TFLOPS at {machine.mfu:.0%}, {machine.node_gbs:g} GB/s in a node, "
        f"{machine.network_gbs:g} GB/s between nodes"
    )
    console.print(_parts(found.plan).terminal())
    if found.plan.fits:
        console.print(f"[bold green]fits[/bold green], {_times(found.plan, found)}")
    else:
        console.print(f"[bold red]does not fit[/bold red]; {found.advice}")
    reached = f"longest long prompt at this layout: {found.longest:,} tokens, {_limit(found, found.longest)}"
    console.print(reached if found.longest else "no length fits")
    if found.best:
        console.print(_best(found).terminal())
        if traced := found.traced:
            console.print(
                f"the first, traced itself: {traced.peak_gib:.1f} GiB, {'fits' if traced.fits else 'does not fit'} "
                f"(in {traced.seconds:.0f} s, not run)"
            )
    else:
        console.print("no layout of these GPUs fits at this length")
    if found.furthest:
        long, plan = found.furthest
        where = f"{plan.run.layout}, {plan.run.recompute}"
        console.print(f"longest long prompt at any layout: {long:,} tokens, {_limit(found, long)} ({where})")
    window = run.shape.window
    if found.lengths.long + found.lengths.response > window:
        console.print(f"note: longer than the model's window of {window:,} tokens: model.rope_scaling extends it")


def _limit(found: Overview, long: int) -> str:
    if found.limit(long) == "memory":
        return "by memory"
    return "by the model's window, which model.rope_scaling extends"


def _parts(plan: Plan) -> Table:
    memory = plan.memory
    shown = {name: size for name, size in memory.parts.items() if size >= SMALL * memory.peak}
    rows = [(name, f"{size / GIB:.2f}", memory.formulas[name]) for name, size in shown.items()]
    rest = sum(memory.parts.values()) - sum(shown.values())
    title = f"Peak: {memory.gib:.1f} GiB a GPU, on stage {memory.stage} during {memory.moment}"
    return Table(("part", "GiB", "bytes are"), [*rows, ("everything else", f"{rest / GIB:.2f}", "")], "lrl", title)


def _best(found: Overview) -> Table:
    rows = [
        (
            str(plan.run.layout),
            plan.run.recompute,
            f"{plan.memory.gib:.1f}",
            f"{plan.time.total:.1f}",
            f"{plan.time.utilisation:.0%}",
            f"{plan.hours(found.samples):.1f}",
        )
        for plan in found.best
    ]
    return Table(
        ("layout", "recompute", "GiB modelled", "s a step", "MFU", "h an epoch"),
        rows,
        "llr",
        title=f"Fastest layouts that fit at {found.lengths.long:,} tokens",
        note=f"overrides of the first: {' '.join(_overrides(found.best[0]))}",
    )


def _overrides(plan: Plan) -> list[str]:
    return [*plan.run.layout.overrides(), f"model.recompute={plan.run.recompute}"]


def _times(plan: Plan, found: Overview) -> str:
    time = plan.time
    waits = {**time.exposed, "pipeline bubble": time.bubble}
    shown = "".join(f", {name} {seconds:.1f}" for name, seconds in waits.items() if seconds >= 0.05)
    return (
        f"{time.total:.1f} s a step (compute {time.compute:.1f}{shown}), {time.utilisation:.0%} MFU in all, "
        f"{plan.hours(found.samples):.1f} h an epoch of {found.epoch or f'{found.samples:,} samples'}"
    )
