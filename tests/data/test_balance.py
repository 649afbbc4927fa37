from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from solopo_nemo.data.balance import balanced_order


def loads(costs: list[float], order: list[int], ranks: int, micro_batch: int) -> list[float]:
    """What each rank runs when Megatron's sampler cuts ``order``."""
    sums = [0.0] * ranks
    for place, sample in enumerate(order):
        sums[place // micro_batch % ranks] += costs[sample]
    return sums


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 4), st.data())
def test_a_permutation_with_equal_counts_near_the_mean(
    ranks: int, micro: int, rounds: int, data: st.DataObject
) -> None:
    count = ranks * micro * rounds
    costs = data.draw(st.lists(st.floats(0.1, 100.0), min_size=count, max_size=count))
    order = balanced_order(costs, ranks, micro)
    assert sorted(order) == list(range(count))
    sums = loads(costs, order, ranks, micro)
    assert max(sums) - min(sums) <= max(costs) + 1e-9


def test_long_samples_are_spread() -> None:
    costs = [9.0, 9.0, 1.0, 1.0]
    assert max(loads(costs, [0, 1, 2, 3], 2, 2)) == 18
    assert loads(costs, balanced_order(costs, 2, 2), 2, 2) == [10.0, 10.0]


def test_one_rank_keeps_the_order() -> None:
    assert balanced_order([3.0, 1.0, 2.0], 1, 1) == [0, 1, 2]
