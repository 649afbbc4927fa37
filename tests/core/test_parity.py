"""Every layout against one process with the same weights: loss, all metrics, every gradient, three steps on."""

from __future__ import annotations

from typing import Any

import engine
import pytest
import torch
from layouts import LAYOUTS, OBJECTIVES, TRAINED, Layout
from spawn import run_ranks

pytestmark = pytest.mark.distributed
STEPS = 3
DIFFERENCES = ("rewards/margin", "align/gap", "align/signed_gap", "loss/align")


def single_process(layout: Layout) -> Layout:
    return Layout("single", 1, tied=layout.tied, family=layout.family)


def run_all(layouts: list[Layout]) -> dict[Layout, dict[str, Any]]:
    return {layout: engine.run_layout(layout, list(OBJECTIVES), STEPS) for layout in layouts}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[Layout, dict[str, Any]]:
    everything: dict[Layout, dict[str, Any]] = {}
    folder = tmp_path_factory.mktemp("parity")
    for world in sorted({x.world for x in LAYOUTS}):
        layouts = [x for x in LAYOUTS if x.world == world]
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
    assert got["grads"].keys() == want["grads"].keys()
    for name, grad in want["grads"].items():
        error = (got["grads"][name] - grad).abs().max() / grad.abs().max()
        assert error < 1e-4, f"{name}: {error:.1e}"
        assert grad.abs().max() > 0, name
    assert got["losses"] == pytest.approx(want["losses"], rel=1e-4)
    if objective in TRAINED:
        assert len(set(want["losses"])) == STEPS + 1, "the optimizer did not move the model"


def test_a_wrong_gradient_factor_would_be_seen(results: dict[Layout, Any]) -> None:
    """The gradients' sizes are such that a factor of the context-parallel size cannot hide in the tolerance."""
    for grad in results[single_process(LAYOUTS[0])]["solo_dpo"]["grads"].values():
        assert torch.isfinite(grad).all()
        assert grad.abs().max() > 1e-6
