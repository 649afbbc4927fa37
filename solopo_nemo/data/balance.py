"""Which data-parallel rank gets which sample of a global batch: equal cost rather than equal luck.

All ranks wait for the slowest at the end of a step. Which rank a sample of the global batch runs on changes
nothing but that, since every sample has the same weight in the loss.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence


def balanced_order(costs: Sequence[float], ranks: int, micro_batch: int) -> list[int]:
    """Order the samples of one global batch so that the data-parallel ranks get nearly equal sums of cost.

    Longest first to the least loaded rank that has room (LPT): every rank gets equally many.

    Args:
        costs: of each sample of the global batch, in any unit.
        ranks: data-parallel size; ``len(costs)`` is a multiple of ``ranks * micro_batch``.
        micro_batch: samples that a rank runs at a time.

    Returns:
        A permutation of the samples, as Megatron's sampler cuts it: ``micro_batch`` samples for each rank in
        turn, again and again. Within a rank the samples keep their order.
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
