"""The same computations written out in fp64: what the layers are compared with."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F

Tensor = torch.Tensor


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float, before: int | None = None) -> Tensor:
    """Causal attention of one sequence, ``[s, heads, dim]``; a query sees ``before`` tokens before its own."""
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    behind = torch.arange(q.shape[0], device=q.device)[:, None] - torch.arange(k.shape[0], device=q.device)
    unseen = (behind < 0) | (behind > (k.shape[0] if before is None else before))
    scores = scale * torch.einsum("qhd,khd->hqk", q, k)
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(unseen, -torch.inf).softmax(-1), v)


def rotated(x: Tensor, base: float) -> Tensor:
    """Queries or keys ``[s, heads, dim]`` turned by their positions."""
    half = x.shape[-1] // 2
    frequencies = base ** -(torch.arange(half, device=x.device, dtype=x.dtype) / half)
    angles = torch.outer(torch.arange(x.shape[0], device=x.device, dtype=x.dtype), frequencies)[:, None]
    first, second = x.chunk(2, -1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)


def response_logp(
    p: Mapping[str, Tensor], heads: int, kv: int, base: float, prompt: list[int], answer: list[int]
) -> Tensor:
    """Summed log-probability of an answer under a decoder with Megatron's weights ``p``, in their type."""
    table = p["embedding.word_embeddings.weight"]
    x = table[torch.tensor([*prompt, *answer[:-1]], device=table.device)]
    norm = lambda y, gamma: F.rms_norm(y, gamma.shape, gamma, 1e-5)  # noqa: E731
    layers = len({name.split(".")[2] for name in p if name.startswith("decoder.layers.")})
    for i in range(layers):
        w = {name.split(f"layers.{i}.")[1]: value for name, value in p.items() if f"layers.{i}." in name}
        qkv = norm(x, w["self_attention.linear_qkv.layer_norm_weight"]) @ w["self_attention.linear_qkv.weight"].t()
        groups = (qkv + w["self_attention.linear_qkv.bias"]).view(len(x), kv, heads // kv + 2, -1)
        q, k, v = groups[:, :, :-2].flatten(1, 2), groups[:, :, -2], groups[:, :, -1]
        seen = attention(rotated(q, base), rotated(k, base), v, q.shape[-1] ** -0.5)
        x = x + seen.flatten(1) @ w["self_attention.linear_proj.weight"].t()
        gate, value = (norm(x, w["mlp.linear_fc1.layer_norm_weight"]) @ w["mlp.linear_fc1.weight"].t()).chunk(2, -1)
        x = x + (F.silu(gate) * value) @ w["mlp.linear_fc2.weight"].t()
    rows = norm(x, p["decoder.final_layernorm.weight"])[len(prompt) - 1 :]
    logits = rows @ table.t()
    return logits.log_softmax(-1).gather(1, torch.tensor(answer, device=x.device)[:, None]).sum()
