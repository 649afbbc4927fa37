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


TRACED = [
    ("bfloat16", "p2p", 1, None),
    ("float32", "p2p", 1, None),
    ("bfloat16", "p2p", 2, None),
    ("bfloat16", "a2a", 2, (5, 0)),
]
"""Type, context mode, context ranks and window of a model with torch's layers on a GPU."""


def a_config(dtype: Any, **more: Any) -> Any:
    import torch
    from megatron.core.transformer.transformer_config import TransformerConfig

    return TransformerConfig(
        num_layers=2, hidden_size=64, ffn_hidden_size=128, num_attention_heads=4, num_query_groups=2,
        normalization="RMSNorm", gated_linear_unit=True, activation_func=torch.nn.functional.silu, qk_layernorm=True,
        add_bias_linear=False, add_qkv_bias=True, hidden_dropout=0.0, attention_dropout=0.0,
        bf16=dtype == torch.bfloat16, params_dtype=dtype, **more,
    )  # fmt: skip


def a_batch(cp: int) -> Any:
    import torch

    from solopo_nemo.data.packing import Layout, pack

    g = torch.Generator().manual_seed(0)
    samples = [
        {"id": str(i)}
        | {
            field: torch.randint(1, 256, (length + 3 * i,), generator=g).tolist()
            for field, length in {"prompt_short": 9, "prompt_long": 60, "chosen": 6, "rejected": 4}.items()
        }
        for i in range(2)
    ]
    return pack(samples, ("short_chosen", "short_rejected", "long_chosen"), Layout(cp))


def traced(dtype: str, mode: str, cp: int, window: tuple[int, int] | None) -> dict[str, Any]:
    """What a forward and backward pass of torch's layers runs on a GPU, on fake tensors: no number may be asked of one."""
    import torch
    import torch.distributed as dist
    from megatron.core import parallel_state, tensor_parallel
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.testing._internal.distributed.fake_pg import FakeStore
    from torch.utils._python_dispatch import TorchDispatchMode

    from solopo_nemo.core.model import build_model
    from solopo_nemo.core.step import score_sequences

    seen: list[str] = []

    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(func._schema.name.removeprefix("aten::"))
            if func is torch.ops.aten._efficient_attention_backward.default:
                return *map(torch.empty_like, args[1:4]), None  # torch 2.13's fake one lacks the argument `out`
            return func(*args, **(kwargs or {}))

    parallel_state.destroy_model_parallel()
    dist.destroy_process_group()
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=cp)
    parallel_state.initialize_model_parallel(context_parallel_size=cp, create_gloo_process_groups=False)
    tensor_parallel.model_parallel_cuda_manual_seed(1, force_reset_rng=True)
    real = a_batch(cp)
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        config = a_config(getattr(torch, dtype), context_parallel_size=cp, cp_comm_type=mode, window_size=window)
        config.perform_initialization = False  # Megatron compares random states, which are numbers
        model = build_model(config, 256, 128, layers="torch")
        batch = {k: fake.from_tensor(v) if torch.is_tensor(v) else v for k, v in real.items()}
        with Seen():
            score_sequences(model, batch).sum().backward()
    return {
        "attention": sorted({name for name in seen if "attention" in name}),
        "host": sorted({name for name in seen if name in ("_local_scalar_dense", "item", "nonzero", "masked_select")}),
        "gradients": all(p.grad is not None for p in model.parameters()),
    }


def compare() -> dict[str, Any]:
    """Scores and gradients of a model with the layers of either branch, from the same weights, bf16."""
    import engine_stand_in

    engine_stand_in.install()
    import torch
    import torch.distributed as dist
    from megatron.core import parallel_state, tensor_parallel
    from products_stand_in import mm_of_a_gpu

    from solopo_nemo.core import cpu_patches, device
    from solopo_nemo.core.layers.rotary import FreshRotaryEmbedding, LocalRotaryEmbedding
    from solopo_nemo.core.lora import LoRA
    from solopo_nemo.core.model import build_model
    from solopo_nemo.core.step import score_sequences

    mm, mm_of_gpu = torch.mm, mm_of_a_gpu([])
    torch.mm = lambda *a, **k: (mm_of_gpu if "out_dtype" in k else mm)(*a, **k)  # type: ignore[assignment]
    cpu_patches.install()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    parallel_state.initialize_model_parallel()
    tensor_parallel.model_parallel_cuda_manual_seed(1, force_reset_rng=True)
    batch = a_batch(1)

    def built(gpu: bool, lora: Any = None) -> Any:
        engine_stand_in.on_gpu(gpu)
        return build_model(a_config(torch.bfloat16), 256, 128, lora=lora)

    def scored(model: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        scores = score_sequences(model, device.to_device(batch))
        scores.sum().backward()
        return scores.detach(), {name: p.grad.float() for name, p in model.named_parameters() if p.requires_grad}

    def difference(gradients: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> dict[str, float]:
        return {name: float((g - others[name]).norm() / g.norm()) for name, g in gradients.items()}

    plain = built(gpu=False)
    scores, gradients = scored(plain)
    other = built(gpu=True)
    other.load_state_dict(plain.state_dict())  # strict: the same names, extra states too
    theirs, their_gradients = scored(other)
    calls, adapted = engine_stand_in.DotProductAttention.calls, built(gpu=False, lora=LoRA(3, 7.0))
    for name, parameter in adapted.named_parameters():
        if name.endswith("_B"):
            torch.nn.init.normal_(parameter, 0.0, 0.05)
    _, of_adapters = scored(adapted)
    adapted_other = built(gpu=True, lora=LoRA(3, 7.0))
    adapted_other.load_state_dict(adapted.state_dict())
    _, of_their_adapters = scored(adapted_other)
    layer = other.decoder.layers[0]
    return {
        "traced": {f"{dtype} {mode} {cp} {window}": traced(dtype, mode, cp, window) for dtype, mode, cp, window in TRACED},
        "rotary": [isinstance(plain.rotary_pos_emb, LocalRotaryEmbedding), isinstance(other.rotary_pos_emb, FreshRotaryEmbedding)],
        "fused": [other.config.apply_rope_fusion, other.config.bias_activation_fusion],
        "layers": [type(m).__name__ for m in (layer.self_attention.linear_qkv, layer.self_attention.core_attention, layer.mlp.linear_fc2)],
        "calls": calls,
        "names": gradients.keys() == their_gradients.keys() and plain.state_dict().keys() - other.state_dict().keys() == set(),
        "scores": float((scores - theirs).abs().max() / scores.abs().max()),
        "gradients": difference(gradients, their_gradients),
        "gradients of adapters": difference(of_adapters, of_their_adapters),
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


def test_adapters_beside_the_engines_layers_have_the_gradients_of_those_in_ours(found: dict[str, Any]) -> None:
    of_adapters = found["gradients of adapters"]
    assert len(of_adapters) == 2 * 2 * 7  # A and B of the modules of two layers
    assert max(of_adapters.values()) < 0.05, of_adapters


@pytest.mark.parametrize("case", TRACED, ids=str)
def test_torchs_layers_on_a_gpu_wait_for_nothing(found: dict[str, Any], case: tuple[Any, ...]) -> None:
    trace = found["traced"][" ".join(map(str, case))]
    kind = "_flash" if case[0] == "bfloat16" else "_efficient"
    assert trace["attention"] == [f"{kind}_attention_backward", f"{kind}_attention_forward"]
    assert trace["host"] == []
    assert trace["gradients"]


if __name__ == "__main__":
    print(json.dumps(compare()))
