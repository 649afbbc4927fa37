"""Advice after out of memory: the planner's nearest layout that fits."""

from __future__ import annotations

from solopo_nemo.config.schema import RunConfig
from solopo_nemo.data.prepared import load_prepared
from solopo_nemo.planning import CPU, GPU, Lengths, advise, load_shape
from solopo_nemo.runtime import device, environment
from solopo_nemo.training.paths import Paths


def memory_advice(config: RunConfig) -> str:
    """The smallest change with which a run should fit on its ranks, for the longest sequences of its data.

    Args:
        config: of a run that is prepared.

    Returns:
        One line of overrides, with the predicted peak of a rank before and after.
    """
    paths, ranks_here = Paths(config.output), environment.local_world_size()
    tokens = load_prepared(paths.tokenized).summary["tokens"]
    longest = {column: int(statistics["max"]) for column, statistics in tokens.items()}
    long = max(size for column, size in longest.items() if column.startswith("prompt"))
    response = max(longest.get("chosen", 1), longest.get("rejected", 1))
    lengths = Lengths(long, longest.get("prompt_short", long), response)
    shape = load_shape(str(paths.initial / "hf"))
    where, gib = (GPU, device.memory_gib()) if device.cuda() else (CPU, device.memory_gib() / ranks_here)
    return advise(config, shape, lengths, environment.world_size(), gib, where, gpus_per_node=ranks_here)
