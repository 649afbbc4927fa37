"""The branch for GPUs of layers and packed input, on one rank of gloo: Megatron's default spec over a stand-in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.distributed
SUPPORT = Path(__file__).parents[1] / "support"


def compare() -> dict[str, Any]:
    """Scores and gradients of a model with the layers of either branch, from the same weights, bf16."""
    import engine_stand_in

    engine_stand_in.install()
    import torch
    import torch.distributed as dist
    from megatron.core import parallel_state, tensor_parallel
    from megatron.core.transformer.transformer_config import TransformerConfig

    from solopo_nemo.core import cpu_patches, device
    from solopo_nemo.core.layers.rotary import FreshRotaryEmbedding, LocalRotaryEmbedding
    from solopo_nemo.core.model import build_model
    from solopo_nemo.core.step import score_sequences
    from solopo_nemo.data.packing import Layout, pack

    cpu_patches.install()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    parallel_state.initialize_model_parallel()
    tensor_parallel.model_parallel_cuda_manual_seed(1, force_reset_rng=True)
    names = ("short_chosen", "short_rejected", "long_chosen")
    g = torch.Generator().manual_seed(0)
    samples = [
        {"id": str(i)}
        | {
            field: torch.randint(1, 256, (length + 3 * i,), generator=g).tolist()
            for field, length in {"prompt_short": 9, "prompt_long": 60, "chosen": 6, "rejected": 4}.items()
        }
        for i in range(2)
    ]
    batch = pack(samples, names, Layout())

    def built(gpu: bool) -> Any:
        device.cuda = lambda: gpu
        device.current = lambda: torch.device("cpu")
        config = TransformerConfig(
            num_layers=2, hidden_size=64, ffn_hidden_size=128, num_attention_heads=4, num_query_groups=2,
            normalization="RMSNorm", gated_linear_unit=True, activation_func=torch.nn.functional.silu, qk_layernorm=True,
            add_bias_linear=False, add_qkv_bias=True, hidden_dropout=0.0, attention_dropout=0.0, bf16=True,
            params_dtype=torch.bfloat16,
        )  # fmt: skip
        return build_model(config, 256, 128)

    def scored(model: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        scores = score_sequences(model, device.to_device(batch))
        scores.sum().backward()
        return scores.detach(), {name: p.grad.float() for name, p in model.named_parameters()}

    plain = built(gpu=False)
    scores, gradients = scored(plain)
    other = built(gpu=True)
    other.load_state_dict(plain.state_dict())  # strict: the same names, extra states too
    theirs, their_gradients = scored(other)
    layer = other.decoder.layers[0]
    return {
        "rotary": [isinstance(plain.rotary_pos_emb, LocalRotaryEmbedding), isinstance(other.rotary_pos_emb, FreshRotaryEmbedding)],
        "fused": [other.config.apply_rope_fusion, other.config.bias_activation_fusion],
        "layers": [type(m).__name__ for m in (layer.self_attention.linear_qkv, layer.self_attention.core_attention, layer.mlp.linear_fc2)],
        "calls": engine_stand_in.DotProductAttention.calls,
        "names": gradients.keys() == their_gradients.keys() and plain.state_dict().keys() - other.state_dict().keys() == set(),
        "scores": float((scores - theirs).abs().max() / scores.abs().max()),
        "gradients": {
            name: float((gradients[name] - their_gradients[name]).norm() / gradients[name].norm()) for name in gradients
        },
    }  # fmt: skip


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    command = [sys.executable, __file__]
    path = f"{SUPPORT}:{SUPPORT.parents[1]}"
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path})
    assert done.returncode == 0, done.stderr[-3000:]
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def test_the_layers_are_the_engines_with_its_fused_kernels(found: dict[str, Any]) -> None:
    assert found["layers"] == ["TELayerNormColumnParallelLinear", "TEDotProductAttention", "TERowParallelLinear"]
    assert found["fused"] == [True, True]
    assert found["rotary"] == [True, True]
    assert found["calls"] == 2


def test_names_scores_and_gradients_agree_with_the_layers_of_the_cpu(found: dict[str, Any]) -> None:
    """bf16, whose roundings lie elsewhere in either branch: one part in 256."""
    assert found["names"]
    assert found["scores"] < 0.01
    assert max(found["gradients"].values()) < 0.05, found["gradients"]


if __name__ == "__main__":
    print(json.dumps(compare()))
