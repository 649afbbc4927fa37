"""Loading AdamW's state: a resumed optimizer takes the same steps as one that was never saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import engine
import pytest
import torch
from layouts import OBJECTIVES, SINGLE
from spawn import run_ranks

pytestmark = pytest.mark.distributed

STEPS = 3


def _fresh(objective: Any) -> tuple[Any, Any, Any]:
    from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer

    model = engine.build(SINGLE)
    optimizer = get_megatron_optimizer(
        OptimizerConfig(optimizer="adam", lr=1e-3, weight_decay=0.1, clip_grad=1.0, use_distributed_optimizer=True),
        [model.module],
    )

    def train() -> None:
        for _ in range(STEPS):
            engine.step(model, SINGLE, objective)
            optimizer.step()

    return model, optimizer, train


def _sharded(model: Any, optimizer: Any, is_loading: bool) -> dict[str, Any]:
    metadata = {"distrib_optim_sharding_type": "fully_reshardable", "chained_optim_avoid_prefix": True}
    weights = model.module.module.sharded_state_dict(metadata=metadata)
    return {"model": weights, "optimizer": optimizer.sharded_state_dict(weights, is_loading, metadata=metadata)}


def _resumed(folder: str, objective: Any, share_step: bool) -> tuple[dict[str, torch.Tensor], list[float]]:
    from megatron.core import dist_checkpointing

    model, optimizer, train = _fresh(objective)
    (only,) = optimizer.chained_optimizers
    only._init_optimizer_states_with_dummy_values()  # as SoLoPOStrategy does before it loads
    state = dist_checkpointing.load(_sharded(model, optimizer, is_loading=True), folder)
    model.module.module.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    states = list(only.optimizer.state.values())
    if share_step:
        for s in states:
            s["step"] = states[0]["step"]
    train()
    return dict(model.module.module.state_dict()), [float(s["step"]) for s in states]


def compare(folder: str) -> dict[str, Any]:
    from megatron.core import dist_checkpointing

    from solopo_nemo.objectives import build_objective

    kind, options = OBJECTIVES["solo_dpo"]
    objective = build_objective(kind, **options)
    engine.enter(SINGLE)
    model, optimizer, train = _fresh(objective)
    train()
    dist_checkpointing.save(_sharded(model, optimizer, is_loading=False), folder)
    train()
    return {
        "continued": dict(model.module.module.state_dict()),
        "resumed": _resumed(folder, objective, share_step=False),
        "step shared": _resumed(folder, objective, share_step=True),
    }


def test_a_loaded_adamw_counts_each_parameters_steps_on_its_own(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    got = run_ranks(1, compare, (str(folder),), tmp_path / "result")

    def same(weights: dict[str, torch.Tensor]) -> bool:
        return all(torch.equal(w, weights[k]) for k, w in got["continued"].items() if torch.is_tensor(w))

    weights, steps = got["resumed"]
    assert set(steps) == {2 * STEPS}
    assert same(weights)
    # what Megatron leaves without the patch is seen by this very comparison
    weights, steps = got["step shared"]
    assert min(steps) > 2 * STEPS
    assert not same(weights)
