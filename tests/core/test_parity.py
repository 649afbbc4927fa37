"""Every layout against one process with the same weights: loss, all metrics, every gradient, three steps on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import engine
import pytest
import torch
from layouts import LAYOUTS, OBJECTIVES, SINGLE, TRAINED, Layout, is_compared_in_gate, is_followed_in_gate
from spawn import run_ranks

pytestmark = pytest.mark.distributed
STEPS = 3
WRONG_FACTOR = Layout("cp2_wrong_factor", 2, cp=2)
DIFFERENCES = ("rewards/margin", "align/gap", "align/signed_gap", "loss/align")


def check_gradients(got: dict[str, torch.Tensor], want: dict[str, torch.Tensor]) -> None:
    assert got.keys() == want.keys()
    for name, grad in want.items():
        assert grad.abs().max() > 0, name
        error = (got[name] - grad).abs().max() / grad.abs().max()
        assert error < 1e-4, f"{name}: {error:.1e}"


def single_process(layout: Layout) -> Layout:
    return Layout("single", 1, tied=layout.tied, family=layout.family, window=layout.window, turns=layout.turns)


Cells = dict[Layout, dict[str, int]]
"""How many optimizer steps to take by layout and objective."""


def run_all(cells: Cells) -> dict[Layout, dict[str, Any]]:
    return {layout: run_one(layout, steps) for layout, steps in cells.items()}


def run_one(layout: Layout, steps: dict[str, int]) -> dict[str, Any]:
    if layout != WRONG_FACTOR:
        return engine.run_layout(layout, steps)
    from solopo_nemo.core import head

    right = head.reduce_from_tensor_model_parallel_region

    def wrong(x: Any, group: Any) -> Any:
        total = right(x, group=group)
        return total + (layout.cp - 1) * (total - total.detach())  # the same sum, its gradient times the ranks

    with patch.object(head, "reduce_from_tensor_model_parallel_region", wrong):
        return engine.run_layout(layout, steps)


def cells_of(items: list[pytest.Item]) -> Cells:
    """What the selected tests look at, and the same of one process."""
    cells: Cells = {WRONG_FACTOR: {"solo_dpo": 0}, SINGLE: {"solo_dpo": 0}}
    for item in items:
        if item.path == Path(__file__) and isinstance(item, pytest.Function) and hasattr(item, "callspec"):
            layout, objective = item.callspec.params["layout"], item.callspec.params["objective"]
            for one in (layout, single_process(layout)):
                steps = cells.setdefault(one, {})
                steps[objective] = max(steps.get(objective, 0), STEPS * (item.originalname == FOLLOWED.__name__))
    return cells


@pytest.fixture(scope="module")
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[Layout, dict[str, Any]]:
    everything: dict[Layout, dict[str, Any]] = {}
    cells, folder = cells_of(request.session.items), tmp_path_factory.mktemp("parity")
    for world in sorted({layout.world for layout in cells}):
        here = {layout: steps for layout, steps in cells.items() if layout.world == world}
        everything |= run_ranks(world, run_all, (here,), folder / f"{world}.pt")
    return everything


def table(objectives: Iterable[str], is_in_gate: Callable[[Layout, str], bool]) -> pytest.MarkDecorator:
    """All layouts with all objectives; what the gate leaves out is marked ``long``."""
    return pytest.mark.parametrize(
        ("layout", "objective"),
        [
            pytest.param(one, name, id=f"{one.name}-{name}", marks=() if is_in_gate(one, name) else pytest.mark.long)
            for one in LAYOUTS
            for name in objectives
        ],
    )


@table(OBJECTIVES, is_compared_in_gate)
def test_layout_agrees_with_one_process(results: dict[Layout, Any], layout: Layout, objective: str) -> None:
    got, want = results[layout][objective], results[single_process(layout)][objective]
    assert got["routing"][0] == want["routing"][0]
    assert got["metrics"].keys() == want["metrics"].keys()
    for key, value in want["metrics"].items():
        # a difference of two rewards is as exact as the rewards, not as its own size
        operand = abs(want["metrics"].get("rewards/chosen", 0.0)) if key in DIFFERENCES else 0.0
        assert got["metrics"][key] == pytest.approx(value, rel=1e-5, abs=1e-6 * operand), key
    check_gradients(got["grads"], want["grads"])


@table(TRAINED, is_followed_in_gate)
def test_layout_trains_as_one_process(results: dict[Layout, Any], layout: Layout, objective: str) -> None:
    got, want = (results[one][objective] for one in (layout, single_process(layout)))
    # a token that two experts suit equally well may go to the other one after some updates: another function from there
    same = [a == b for a, b in zip(got["routing"], want["routing"], strict=True)][: STEPS + 1]
    steps = [*same, False].index(False)
    assert steps >= STEPS, "the routing differs after the first updates"
    assert got["losses"][:steps] == pytest.approx(want["losses"][:steps], rel=1e-4)
    assert len(set(want["losses"][: STEPS + 1])) == STEPS + 1, "the optimizer did not move the model"


FOLLOWED = test_layout_trains_as_one_process


def test_a_wrong_gradient_factor_would_be_seen(results: dict[Layout, Any]) -> None:
    """The gradient of the sum over context-parallel ranks, multiplied by their number: the loss does not show it."""
    got, want = results[WRONG_FACTOR]["solo_dpo"], results[SINGLE]["solo_dpo"]
    assert got["metrics"]["loss"] == pytest.approx(want["metrics"]["loss"], rel=1e-5)
    with pytest.raises(AssertionError, match=r"weight: 1\.0e\+00"):
        check_gradients(got["grads"], want["grads"])
