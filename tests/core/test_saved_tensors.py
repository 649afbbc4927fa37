"""What a layer keeps for its backward pass is what the planner says, byte for byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import engine
import pytest
import torch
from layouts import SINGLE
from spawn import run_ranks

from solopo_nemo.objectives import build_objective
from solopo_nemo.planning import CPU, ModelShape, Run, Sequence, Workload
from solopo_nemo.planning.traced import Kind, Sizes, traced_step

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


def saved_by_a_layer() -> tuple[int, int]:
    """Tokens of a micro-batch, and the bytes that its second layer saves besides weights and rotary table."""
    from solopo_nemo.data.packing import Layout, pack

    engine.enter(SINGLE)
    model, objective = engine.build(SINGLE), build_objective("simpo")
    storages: dict[int, int] = {}
    layer = model.module.module.decoder.layers[1]
    shared = {p.untyped_storage().data_ptr() for p in model.module.parameters()}

    def save(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in shared:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    def begin(_: Any, __: Any, given: dict[str, Any]) -> None:
        shared.add(given["rotary_pos_emb"].untyped_storage().data_ptr())
        hooks.__enter__()

    hooks = torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor)
    layer.register_forward_pre_hook(begin, with_kwargs=True)
    layer.register_forward_hook(lambda *_: hooks.__exit__(None, None, None))
    batch = pack(engine.make_samples()[:2], objective.sequences, Layout(1, 0, 1))
    model.objective = objective
    model.forward_step(model.data_step(iter([batch])))
    return batch["tokens"].numel(), sum(storages.values())


def test_a_layer_saves_what_the_planner_lists(tmp_path: Path) -> None:
    tokens, measured = run_ranks(1, saved_by_a_layer, (), tmp_path / "out.pt")
    sizes = {
        "model_type": "qwen2", "hidden_size": engine.HIDDEN, "intermediate_size": engine.FFN, "num_hidden_layers": 4,
        "num_attention_heads": engine.HEADS, "num_key_value_heads": engine.KV_HEADS, "vocab_size": engine.VOCAB,
        "max_position_embeddings": 4096,
    }  # fmt: skip
    run = Run(ModelShape.from_hf(sizes), Workload((Sequence("all", tokens, 1),)), device=CPU, precision="fp32")
    assert measured == pytest.approx(Sizes(run)(traced_step(Kind.of(run)).saved), rel=0.01)
