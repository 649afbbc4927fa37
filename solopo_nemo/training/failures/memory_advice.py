"""Memory of a run on its devices by the planner's prediction: whether it fits, and what to change where it does not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from solopo_nemo.config.schema import RunConfig
from solopo_nemo.data.prepared import load_prepared
from solopo_nemo.planning import CPU, GPU, Lengths, Machine, ModelShape, Run, advise, is_known, load_shape, memory
from solopo_nemo.runtime import device, environment
from solopo_nemo.training.paths import Paths


def longest_lengths(summary: Mapping[str, Any]) -> Lengths:
    """The longest prompts and answers of tokenized data, as of one sample.

    Args:
        summary: of the data.
    """
    return of_sample({column: int(statistics["max"]) for column, statistics in summary["tokens"].items()})


def of_sample(lengths: Mapping[str, int]) -> Lengths:
    """The planner's lengths of a sample, from its tokens by column; every answer counts as the longest."""
    prompts = {column: size for column, size in lengths.items() if column.startswith("prompt")}
    answers = {column: size for column, size in lengths.items() if column not in prompts}
    long, rejected = max(prompts.values()), sum(column.startswith("rejected") for column in answers)
    return Lengths(long, prompts.get("prompt_short", long), max(answers.values(), default=1), max(rejected, 1))


def this_machine(world: int, ranks_here: int) -> tuple[str, Machine]:
    """The device that a run computes on here, and the machine as the planner sees it.

    Args:
        world: ranks of the run.
        ranks_here: those on this host, which share its memory where there is no GPU.
    """
    if device.cuda():
        return GPU, Machine(world, max(ranks_here, device.count()), device.memory_gib())
    return CPU, Machine(world, ranks_here, device.memory_gib() / ranks_here)


def own_machine(world: int) -> tuple[str, Machine]:
    """The same for this process: a rank, or the one that starts all ranks here."""
    return this_machine(world, environment.local_world_size() if environment.started_as_rank() else world)


def shortage(
    config: RunConfig, shape: ModelShape, summary: Mapping[str, Any], where: str, machine: Machine
) -> str | None:
    """What to change in a run that does not fit by the planner's prediction, as one line; None where it fits, or where
    the planner has no formulas.

    Args:
        config, shape: of the run and its model.
        summary: of its tokenized data.
        where, machine: as :func:`this_machine` gives them.
    """
    lengths = longest_lengths(summary)
    run = Run.of(config, shape, lengths, machine.gpus, where)
    if not is_known(run) or memory(run).gib <= machine.budget_gib:
        return None
    return f"out of memory by the planner's prediction: {advise(config, shape, lengths, machine, where)}"


def memory_advice(config: RunConfig, world: int) -> str:
    """What to change in a run that ran out of memory: the nearest layout that fits its longest sequences.

    Args:
        config: of a run that is prepared.
        world: its ranks.

    Returns:
        One line: the layout, its overrides, and the predicted peak of a rank before and after.
    """
    paths = Paths(config.output)
    where, machine = own_machine(world)
    lengths = longest_lengths(load_prepared(paths.tokenized).summary)
    return advise(config, load_shape(str(paths.initial / "hf")), lengths, machine, where)
