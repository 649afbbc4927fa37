"""Every layout against one process with the same weights: loss, all metrics, every gradient, three steps on."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import engine
import pytest
import torch
from layouts import LAYOUTS, OBJECTIVES, SINGLE, TRAINED, Layout
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
    return Layout("single", 1, tied=layout.tied, family=layout.family)


def run_all(layouts: list[Layout]) -> dict[Layout, dict[str, Any]]:
    return {layout: run_one(layout) for layout in layouts}


def run_one(layout: Layout) -> dict[str, Any]:
    if layout != WRONG_FACTOR:
        return engine.run_layout(layout, list(OBJECTIVES), STEPS)
    from solopo_nemo.core.head import _SumOverContext

    with patch.object(_SumOverContext, "backward", staticmethod(lambda ctx, grad: (layout.cp * grad, None))):
        return engine.run_layout(layout, ["solo_dpo"], 0)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[Layout, dict[str, Any]]:
    everything: dict[Layout, dict[str, Any]] = {}
    folder = tmp_path_factory.mktemp("parity")
    for world in sorted({x.world for x in LAYOUTS}):
        layouts = [x for x in LAYOUTS if x.world == world]
        layouts += [WRONG_FACTOR] if world == WRONG_FACTOR.world else []
        if world == 1:
            layouts += dict.fromkeys(single_process(x) for x in LAYOUTS)
        everything |= run_ranks(world, run_all, (layouts,), folder / f"{world}.pt")
    return everything


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda x: x.name)
def test_layout_agrees_with_one_process(results: dict[Layout, Any], layout: Layout, objective: str) -> None:
    got, want = results[layout][objective], results[single_process(layout)][objective]
    assert got["metrics"].keys() == want["metrics"].keys()
    for key, value in want["metrics"].items():
        # a difference of two rewards is as exact as the rewards, not as its own size
        operand = abs(want["metrics"].get("rewards/chosen", 0.0)) if key in DIFFERENCES else 0.0
        assert got["metrics"][key] == pytest.approx(value, rel=1e-5, abs=1e-6 * operand), key
    check_gradients(got["grads"], want["grads"])
    assert got["losses"] == pytest.approx(want["losses"], rel=1e-4)
    if objective in TRAINED:
        assert len(set(want["losses"])) == STEPS + 1, "the optimizer did not move the model"


def test_a_wrong_gradient_factor_would_be_seen(results: dict[Layout, Any]) -> None:
    """The gradient of the sum over context-parallel ranks, multiplied by their number: the loss does not show it."""
    got, want = results[WRONG_FACTOR]["solo_dpo"], results[SINGLE]["solo_dpo"]
    assert got["metrics"]["loss"] == pytest.approx(want["metrics"]["loss"], rel=1e-5)
    with pytest.raises(AssertionError, match=r"weight: 1\.0e\+00"):
        check_gradients(got["grads"], want["grads"])
