"""The experts' grouped product, the router's losses, and padding that the router does not count."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from solopo_nemo.core.device import prepare_process
from solopo_nemo.core.experts import forget_routes, padding_of, without_losses
from solopo_nemo.core.layers import experts
from solopo_nemo.data.packing import Layout, pack
from solopo_nemo.runtime import kernels
from solopo_nemo.runtime.errors import UserError

COUNTS = [3, 0, 5, 1]
"""Tokens of each expert; one has none."""


def operands(dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((sum(COUNTS), 16), (len(COUNTS), 2 * 24, 16), (len(COUNTS), 16, 24), (sum(COUNTS),))
    found = [torch.randn(shape, generator=generator, dtype=torch.float64).mul(0.5).to(dtype) for shape in shapes]
    return [tensor.requires_grad_() for tensor in found]


def one_by_one(x: torch.Tensor, w1: torch.Tensor, w2: torch.Tensor, probs: torch.Tensor) -> torch.Tensor:
    expert_of = torch.arange(len(COUNTS)).repeat_interleave(torch.tensor(COUNTS))
    gate, value = torch.einsum("nh,nkh->nk", x, w1[expert_of]).chunk(2, -1)
    return torch.einsum("nf,nhf->nh", probs[:, None] * torch.nn.functional.silu(gate) * value, w2[expert_of])


def results(function: Any, given: list[torch.Tensor]) -> list[torch.Tensor]:
    out = function(*given)
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype, device=out.device).view_as(out)
    return [out, *torch.autograd.grad((out * weights).sum(), given)]


def apart(x: torch.Tensor, w1: torch.Tensor, w2: torch.Tensor, probs: torch.Tensor) -> torch.Tensor:
    """As the layer computes where adapters are beside its products."""
    y = experts._WeightedSwiGLU.apply(experts.grouped_linear(x, w1, COUNTS), probs)
    return experts.grouped_linear(y, w2, COUNTS)


@pytest.mark.parametrize("one_product", [False, True])
@pytest.mark.parametrize(
    "way", [lambda *given: experts._GroupedSwiGLU.apply(*given, COUNTS), apart], ids=["fused", "apart"]
)
def test_output_and_gradients_are_those_of_each_token_alone(way: Any, one_product: bool, monkeypatch: Any) -> None:
    monkeypatch.setattr(experts, "_is_one_product", lambda _: one_product)
    dtype, tolerance = (torch.bfloat16, 3e-2) if one_product else (torch.float64, 1e-12)
    got = results(way, operands(dtype))
    want = results(one_by_one, operands(torch.float64))
    for mine, plain in zip(got, want, strict=True):
        assert float((mine.double() - plain).abs().max() / plain.abs().max()) < tolerance


@pytest.mark.parametrize("context", [1, 2])
def test_padding_is_found_on_every_context_rank(context: int) -> None:
    sample = {"id": "a", "prompt_short": [1, 2, 3], "chosen": [4, 5], "rejected": [6, 7, 8, 9, 10, 11]}
    config = SimpleNamespace(num_moe_experts=4, context_parallel_size=context, sequence_parallel=False)
    real = 0
    for rank in range(context):
        batch = pack([sample], ("short_chosen", "short_rejected"), Layout(context, rank, 4))
        padding = padding_of(batch, config)["padding_mask"]
        assert padding.shape == batch["tokens"].shape
        assert not batch["tokens"][padding].any()  # the id of padding is 0, and no token's here
        real += int((~padding).sum())
    assert real == (3 + 2 - 1) + (3 + 6 - 1)


def test_a_model_without_experts_is_given_no_padding() -> None:
    assert padding_of({}, SimpleNamespace(num_moe_experts=None)) == {}  # type: ignore[typeddict-item]


@pytest.mark.parametrize(("version", "refused"), [("0.15.3", True), ("0.16.0", False), ("0.16.1", False)])
def test_an_earlier_megatron_is_refused(version: str, refused: bool, monkeypatch: Any) -> None:
    monkeypatch.setattr(kernels, "version_of", lambda _: version)
    with pytest.raises(UserError, match=r"0\.15\.3.*0\.16") if refused else nullcontext():
        kernels.check_experts()


@contextmanager
def one_process() -> Iterator[None]:
    """Megatron's process groups of one process."""
    from megatron.core import parallel_state

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    parallel_state.initialize_model_parallel()
    try:
        yield
    finally:
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()


def test_a_recomputed_layer_keeps_nothing_of_its_pass() -> None:
    """Its input, which has a gradient by then, is gone after the backward pass."""
    from megatron.core.transformer.moe.moe_layer import MoELayer, MoESubmodules
    from megatron.core.transformer.transformer_config import TransformerConfig

    config = TransformerConfig(
        num_layers=1, hidden_size=8, num_attention_heads=1, num_moe_experts=4, moe_router_topk=2, moe_ffn_hidden_size=8,
        moe_router_dtype="fp32", moe_token_dispatcher_type="alltoall", gated_linear_unit=True, add_bias_linear=False,
        activation_func=torch.nn.functional.silu, use_cpu_initialization=True,
    )  # fmt: skip
    prepare_process()
    with one_process():
        layer = MoELayer(config, MoESubmodules(experts=experts.Experts, router=experts.Router), layer_number=1)
        forget_routes(layer)
        seen = []

        def run(hidden: torch.Tensor) -> torch.Tensor:
            seen.append(weakref.ref(hidden))
            return layer(hidden)[0]

        given = torch.randn(5, 1, 8, requires_grad=True)
        torch.utils.checkpoint.checkpoint(run, given, use_reentrant=True).sum().backward()
    assert given.grad is not None and len(seen) == 2
    assert seen[1]() is None


@pytest.mark.parametrize("normalized", [False, True])
def test_the_routers_losses_are_those_of_the_documentation(normalized: bool) -> None:
    """Their values and their gradient, of the real tokens alone: ``docs/experts.md``, "The router's losses"."""
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.core.transformer.moe.moe_utils import get_moe_layer_wise_logging_tracker
    from megatron.core.transformer.transformer_config import TransformerConfig

    tokens, count, chosen, weights = 11, 4, 2, {"load_balancing_loss": 0.5, experts.Z_LOSS: 0.25}
    config = TransformerConfig(
        num_layers=1, hidden_size=8, num_attention_heads=1, num_moe_experts=count, moe_router_topk=chosen,
        moe_router_pre_softmax=not normalized, moe_router_dtype="fp32", moe_router_load_balancing_type="aux_loss",
        moe_aux_loss_coeff=0.5, moe_z_loss_coeff=0.25, perform_initialization=False,
        moe_ffn_hidden_size=8,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(tokens, 1, 8, generator=generator)
    padding = torch.arange(tokens) >= 8
    with one_process():
        router = experts.Router(config, ProcessGroupCollection.use_mpu_process_groups())
        router.set_layer_number(1)
        torch.nn.init.normal_(router.weight, generator=generator)
        probs, _ = router(rows, padding[:, None])
        (probs.sum() * 0).backward()
        with without_losses(config, [router]):
            (router(rows, padding[:, None])[0].sum() * 0).backward()
        tracker = get_moe_layer_wise_logging_tracker()
        got = {name: float(tracker[name]["values"][0]) for name in weights}
        tracker.clear()
    weight = router.weight.detach().double().requires_grad_()
    logits = rows[~padding, 0].double() @ weight.t()
    shares, real = logits.softmax(-1), len(logits)
    sent = torch.zeros_like(shares).scatter(1, logits.topk(chosen).indices, 1.0).sum(0)
    want = {
        "load_balancing_loss": count / (chosen * real**2) * (sent * shares.sum(0)).sum(),
        experts.Z_LOSS: logits.logsumexp(-1).square().mean(),
    }
    sum(weights[name] * loss for name, loss in want.items()).backward()
    assert got == {name: pytest.approx(float(loss.detach()), rel=1e-5) for name, loss in want.items()}
    torch.testing.assert_close(router.weight.grad, weight.grad.float(), rtol=1e-4, atol=1e-6)
    assert router.load.tolist() == sent.tolist()
