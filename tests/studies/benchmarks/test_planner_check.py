"""The configurations on which predictions are checked, and the comparison; measuring is studies/benchmarks/planner.py check."""

from __future__ import annotations

from solopo_nemo.core import head
from solopo_nemo.planning import head_steps
from studies.benchmarks import planner_check as check


def test_every_dimension_is_checked_more_than_once() -> None:
    assert len(check.SPECS) >= 20
    assert len({spec.key() for spec in check.SPECS}) == len(check.SPECS)
    for varied in (
        [spec.shape.hidden for spec in check.SPECS],
        [spec.shape.layers for spec in check.SPECS],
        [spec.shape.vocabulary for spec in check.SPECS],
        [spec.long for spec in check.SPECS],
        [spec.tensor for spec in check.SPECS],
        [spec.context for spec in check.SPECS],
        [spec.recompute for spec in check.SPECS],
    ):
        assert len(set(varied)) > 1
        assert sum(value != max(varied, key=varied.count) for value in varied) > 1


def test_a_comparison_takes_the_rank_that_needs_most() -> None:
    spec = check.SPECS[0]
    predicted = check.predict(spec).above_model
    row = check.compare(spec, {"peak_bytes": [predicted / 4, predicted / 1.25]})
    assert abs(row.error - 0.25) < 1e-9
    assert check.table([row]).rows[0][-1] == "+25.0%"


def test_the_head_has_the_tile_that_is_planned_for() -> None:
    assert head_steps.VOCABULARY_TILE == head.VOCABULARY_TILE
    assert head_steps.GPU_VOCABULARY_TILE == head.GPU_VOCABULARY_TILE
