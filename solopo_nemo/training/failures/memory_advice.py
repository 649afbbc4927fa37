"""The planner's prediction for a run: whether it fits into the devices' memory, and what to change if it does not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from solopo_nemo.config.schema import RunConfig
from solopo_nemo.data.prepared import load_prepared
from solopo_nemo.planning import CPU, GPU, Lengths, Machine, ModelShape, Run, advise, is_known, load_shape, memory
from solopo_nemo.runtime import device, environment
from solopo_nemo.training.paths import Paths


def longest_lengths(summary: Mapping[str, Any]) -> Lengths:
    """The largest lengths of prompts and responses in tokenized data, as the lengths of one sample.

    Args:
        summary: summary of the tokenized data.
    """
    return of_sample({column: int(statistics["max"]) for column, statistics in summary["tokens"].items()})


def of_sample(lengths: Mapping[str, int]) -> Lengths:
    """The planner's lengths of a sample. Every response counts as the longest.

    Args:
        lengths: number of tokens by column of the sample.
    """
    prompts = {column: size for column, size in lengths.items() if column.startswith("prompt")}
    answers = {column: size for column, size in lengths.items() if column not in prompts}
    long, rejected = max(prompts.values()), sum(column.startswith("rejected") for column in answers)
    return Lengths(long, prompts.get("prompt_short", long), max(answers.values(), default=1), max(rejected, 1))


def own_machine(world: int) -> tuple[str, Machine]:
    """The planner's name of this process's device, and its description of the machine.

    This process is a rank, or starts all ranks on this host. They share its memory if there is no GPU.

    Args:
        world: number of ranks of the run.
    """
    ranks_here = environment.local_world_size() if environment.started_as_rank() else world
    if device.cuda():
        return GPU, Machine(world, max(ranks_here, device.count()), device.memory_gib())
    return CPU, Machine(world, ranks_here, device.memory_gib() / ranks_here)


def shortage(
    config: RunConfig, shape: ModelShape, summary: Mapping[str, Any], where: str, machine: Machine
) -> str | None:
    """One line that says what to change if the run does not fit into memory by the planner's prediction.

    Args:
        config: configuration of the run.
        shape: shape of its model.
        summary: summary of its tokenized data.
        where, machine: result of :func:`own_machine`.

    Returns:
        The line; None if the run fits, or if the planner has no prediction for it.
    """
    lengths = longest_lengths(summary)
    run = Run.of(config, shape, lengths, machine.gpus, where)
    if not is_known(run) or memory(run).gib <= machine.budget_gib:
        return None
    return f"out of memory by the planner's prediction: {advise(config, shape, lengths, machine, where)}"


def memory_advice(config: RunConfig, world: int) -> str:
    """One line that says what to change in a run that ran out of memory.

    Args:
        config: configuration of a prepared run.
        world: number of its ranks.

    Returns:
        The nearest layout that fits the longest sequences, its overrides, and the predicted peak of a rank before and
        after.
    """
    paths = Paths(config.output)
    where, machine = own_machine(world)
    lengths = longest_lengths(load_prepared(paths.tokenized).summary)
    return advise(config, load_shape(str(paths.initial / "hf")), lengths, machine, where)
