"""Load balancing: assign the samples of a global batch to data-parallel ranks so that the costs are nearly equal.

All ranks wait for the slowest rank at the end of a step. The assignment does not change the loss, because every
sample of the global batch has the same weight.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence


def balanced_order(costs: Sequence[float], ranks: int, micro_batch: int) -> list[int]:
    """Order the samples of one global batch so that the data-parallel ranks get nearly equal total costs.

    The algorithm is longest processing time first (LPT): each sample, in order of decreasing cost, goes to the least
    loaded rank that is not full. Every rank gets the same number of samples.

    Args:
        costs: cost of each sample of the global batch, in any unit.
        ranks: data-parallel size; ``len(costs)`` is a multiple of ``ranks * micro_batch``.
        micro_batch: samples per rank and micro-batch.

    Returns:
        A permutation of the sample indices in the order of Megatron's sampler, which deals ``micro_batch`` samples to
        each rank in turn. Samples of a rank keep their original order.
    """
    room = len(costs) // ranks
    shares: list[list[int]] = [[] for _ in range(ranks)]
    loads = [(0.0, rank) for rank in range(ranks)]
    for sample in sorted(range(len(costs)), key=lambda i: -costs[i]):
        load, rank = heapq.heappop(loads)
        shares[rank].append(sample)
        if len(shares[rank]) < room:
            heapq.heappush(loads, (load + costs[sample], rank))
    for share in shares:
        share.sort()
    return [i for start in range(0, room, micro_batch) for share in shares for i in share[start : start + micro_batch]]
