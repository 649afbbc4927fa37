"""The embedding whose gradient is added by row, against torch's lookup and Megatron's layer: equal to the bit."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel import VocabParallelEmbedding, layers

from solopo_nemo.core import embedding
from solopo_nemo.core.embedding import RowGradientEmbedding
from solopo_nemo.core.model import complete
from solopo_nemo.runtime import device

ROWS, HIDDEN, TOKENS, MICRO_BATCHES = 50, 12, 300, 3


def embedding_of(cls: type, weight: torch.Tensor, ranks: int = 1, rank: int = 0, scattered: bool = False) -> Any:
    """A layer with this rank's rows of a weight, built without process groups."""
    layer: Any = torch.nn.Module.__new__(cls)
    torch.nn.Module.__init__(layer)
    own = ROWS // ranks
    layer.weight = torch.nn.Parameter(weight[rank * own : (rank + 1) * own].clone())
    layer.vocab_start_index, layer.vocab_end_index = rank * own, (rank + 1) * own
    layer.tp_group, layer.deterministic_mode = SimpleNamespace(size=lambda: ranks), False
    layer.reduce_scatter_embeddings = scattered
    return layer


def micro_batches(dtype: torch.dtype) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Ids that occur many times, once or never, and the gradient of their rows."""
    g = torch.Generator().manual_seed(0)
    return [
        (
            torch.cat((torch.randint(4, (1, TOKENS), generator=g), torch.randint(ROWS, (1, 20), generator=g)), 1),
            torch.randn(1, TOKENS + 20, HIDDEN, generator=g).to(dtype),
        )
        for _ in range(MICRO_BATCHES)
    ]


def total_of(layer: Any, dtype: torch.dtype, start: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Outputs, and Megatron's buffer after all micro-batches, filled as its DDP's hook does."""
    layer.weight.main_grad, outputs = start.clone(), []
    for ids, grad in micro_batches(dtype):
        out = layer(ids)
        out.backward(grad.transpose(0, 1) if layer.reduce_scatter_embeddings else grad)
        if layer.weight.grad is not None:
            layer.weight.main_grad.add_(layer.weight.grad)
            layer.weight.grad = None
        outputs.append(out.detach())
    return outputs, layer.weight.main_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("ranks", "scattered"), [(1, False), (2, False), (2, True)], ids=["one", "TP", "SP"])
def test_equals_megatrons_layer(
    dtype: torch.dtype, ranks: int, scattered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (embedding, layers):
        for name in ("reduce_from_tensor_model_parallel_region", "reduce_scatter_to_sequence_parallel_region"):
            monkeypatch.setattr(module, name, lambda x, group: x)
    g = torch.Generator().manual_seed(1)
    weight = torch.randn(ROWS, HIDDEN, generator=g).to(dtype)
    start = torch.randn(ROWS // ranks, HIDDEN, generator=g)  # what a tied head has added before
    for rank in range(ranks):
        want, want_total = total_of(embedding_of(VocabParallelEmbedding, weight, ranks, rank, scattered), dtype, start)
        layer = embedding_of(RowGradientEmbedding, weight, ranks, rank, scattered)
        got, total = total_of(layer, dtype, start)
        assert all(map(torch.equal, got, want))
        assert torch.equal(total, want_total)
        assert not torch.equal(total, start)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_megatrons_buffer_autograd_gets_the_gradient(dtype: torch.dtype) -> None:
    ((ids, grad), *_), weight = micro_batches(dtype), torch.randn(ROWS, HIDDEN, dtype=dtype)
    layer, plain = embedding_of(RowGradientEmbedding, weight), weight.clone().requires_grad_()
    layer(ids).backward(grad)
    F.embedding(ids, plain).backward(grad)
    assert torch.equal(layer.weight.grad, plain.grad)


def test_a_frozen_weight_gets_none() -> None:
    layer = embedding_of(RowGradientEmbedding, torch.randn(ROWS, HIDDEN))
    layer.weight.requires_grad_(False)
    layer.weight.main_grad = torch.zeros(ROWS, HIDDEN)
    assert not layer(torch.tensor([[1, 2]])).requires_grad


@pytest.mark.parametrize(("gpu", "first"), [(False, True), (False, False), (True, True)])
def test_the_first_stage_on_a_cpu_has_it(gpu: bool, first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "cuda", lambda: gpu)
    monkeypatch.setattr("solopo_nemo.core.device.cuda", lambda: gpu)
    words = embedding_of(VocabParallelEmbedding, torch.randn(ROWS, HIDDEN))
    model: Any = SimpleNamespace(
        position_embedding_type="none", pre_process=first, post_process=False, config=None,
        embedding=SimpleNamespace(word_embeddings=words), modules=list,
    )  # fmt: skip
    complete(model)
    assert (type(words) is RowGradientEmbedding) == (first and not gpu)
