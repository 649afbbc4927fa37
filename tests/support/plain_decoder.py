"""A decoder in plain torch, from the papers: it shares no code with the package, Megatron or transformers.

RMSNorm, rotary embeddings (plain, linear, Llama 3, YaRN), grouped-query attention with sliding window, SwiGLU,
biases and norms where the weights have them; Gemma 3 where the values say so. The values come from the caller, the weights from the safetensors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file


@dataclass(frozen=True)
class Values:
    """What a model computes with, apart from its weights; sizes are those of the weights."""

    heads: int
    head_dim: int
    theta: float = 10000.0
    scaling: dict[str, Any] | None = None
    window: int = 0
    epsilon: float = 1e-6
    sliding: tuple[int | None, ...] = field(default=())
    turned: tuple[bool, ...] | None = None
    """Layers that have rotary embeddings; None: all."""
    local_theta: float | None = None
    """Base of the sliding layers, which are then not scaled."""
    scalar: float | None = None
    """Scores are divided by its square root."""
    gemma: bool = False
    """Scaled embedding, zero-centred norms, norms behind each block, GELU by its tanh formula."""
    experts: int = 0
    normalized: bool = False


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return {k: v.float() for file in sorted(folder.glob("*.safetensors")) for k, v in load_file(file).items()}


def frequencies(values: Values) -> tuple[torch.Tensor, float]:
    """Inverse frequencies, and the factor of the cosines and sines."""
    d, scaling = values.head_dim, values.scaling
    base = values.theta ** -(torch.arange(0, d, 2, dtype=torch.float64) / d)
    if scaling is None:
        return base, 1.0
    factor = scaling["factor"]
    if scaling["rope_type"] == "linear":
        return base / factor, 1.0
    original = scaling.get("original_max_position_embeddings") or values.window
    turns = original * base / (2 * math.pi)
    if scaling["rope_type"] == "llama3":
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        kept = ((turns - low) / (high - low)).clamp(0, 1)
        return base * kept + base / factor * (1 - kept), 1.0
    assert scaling["rope_type"] == "yarn"

    def dimension(rotations: float) -> float:
        return d * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(values.theta))

    low, high = dimension(scaling.get("beta_fast") or 32), dimension(scaling.get("beta_slow") or 1)
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, d - 1)
    ramp = ((torch.arange(d // 2, dtype=torch.float64) - low) / (high - low or 0.001)).clamp(0, 1)

    def attention(scale: float) -> float:
        return 0.1 * scale * math.log(factor) + 1 if factor > 1 else 1.0

    stated, m, m_all = (scaling.get(key) for key in ("attention_factor", "mscale", "mscale_all_dim"))
    found = stated if stated is not None else attention(m) / attention(m_all) if m and m_all else attention(1)
    return base / factor * ramp + base * (1 - ramp), found


def rms_norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + epsilon) * weight


def gelu(x: torch.Tensor) -> torch.Tensor:
    return x / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def linear(w: dict[str, torch.Tensor], name: str, x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))


silu = torch.nn.functional.silu


def mlp(w: dict[str, torch.Tensor], names: list[str], y: torch.Tensor, activation: Any = silu) -> torch.Tensor:
    gate, up, down = names
    return linear(w, down, activation(linear(w, gate, y)) * linear(w, up, y))


def mixture(w: dict[str, torch.Tensor], at: str, names: list[str], values: Values, y: torch.Tensor) -> torch.Tensor:
    """Each token's experts one after the other."""
    shares, chosen = linear(w, f"{at}.gate", y).softmax(-1).topk(values.experts)
    if values.normalized:
        shares = shares / shares.sum(-1, keepdim=True)
    rows = [
        sum(
            share * mlp(w, [f"{at}.experts.{e}.{name}" for name in names], token) for share, e in zip(*own, strict=True)
        )
        for token, *own in zip(y, shares, chosen.tolist(), strict=True)
    ]
    return torch.stack(rows)


@torch.no_grad()
def logits(w: dict[str, torch.Tensor], values: Values, ids: list[int]) -> torch.Tensor:
    """Logits ``[tokens, vocabulary]`` in fp32."""
    n, d = len(ids), values.head_dim
    own = values if values.local_theta is None else replace(values, theta=values.local_theta, scaling=None)
    tables = {}
    for local, of in ((False, values), (True, own)):
        inverse, attention_factor = frequencies(of)
        angles = torch.arange(n, dtype=torch.float64)[:, None] * inverse
        tables[local] = [(f(angles) * attention_factor).float()[:, None] for f in (torch.cos, torch.sin)]

    def rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        first, second = x.split(d // 2, -1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)

    distance = torch.arange(n)[:, None] - torch.arange(n)
    x = w["model.embed_tokens.weight"][torch.tensor(ids)]
    if values.gemma:
        x = x * math.sqrt(x.shape[-1])
        w = {name: tensor + 1 if "norm" in name else tensor for name, tensor in w.items()}
    pre_mlp = "pre_feedforward_layernorm" if values.gemma else "post_attention_layernorm"
    for layer, window in enumerate(values.sliding):
        at = f"model.layers.{layer}"
        y = rms_norm(x, w[f"{at}.input_layernorm.weight"], values.epsilon)
        q, k, v = (linear(w, f"{at}.self_attn.{part}_proj", y).view(n, -1, d) for part in "qkv")
        if f"{at}.self_attn.q_norm.weight" in w:
            q = rms_norm(q, w[f"{at}.self_attn.q_norm.weight"], values.epsilon)
            k = rms_norm(k, w[f"{at}.self_attn.k_norm.weight"], values.epsilon)
        if values.turned is None or values.turned[layer]:
            q, k = (rotated(t, *tables[window is not None]) for t in (q, k))
        k, v = (t.repeat_interleave(values.heads // t.shape[1], 1) for t in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(values.scalar or d)
        seen = (distance >= 0) & (distance < (window or n))
        weights = scores.masked_fill(~seen, -math.inf).softmax(-1)
        y = linear(w, f"{at}.self_attn.o_proj", torch.einsum("hqk,khd->qhd", weights, v).reshape(n, -1))
        if values.gemma:
            y = rms_norm(y, w[f"{at}.post_attention_layernorm.weight"], values.epsilon)
        x = x + y
        y = rms_norm(x, w[f"{at}.{pre_mlp}.weight"], values.epsilon)
        projections = ["gate_proj", "up_proj", "down_proj"]
        if f"{at}.mlp.gate.weight" in w:
            y = mixture(w, f"{at}.mlp", projections, values, y)
        elif f"{at}.block_sparse_moe.gate.weight" in w:
            y = mixture(w, f"{at}.block_sparse_moe", ["w1", "w3", "w2"], values, y)
        else:
            y = mlp(w, [f"{at}.mlp.{name}" for name in projections], y, gelu if values.gemma else silu)
        if values.gemma:
            y = rms_norm(y, w[f"{at}.post_feedforward_layernorm.weight"], values.epsilon)
        x = x + y
    head = w.get("lm_head.weight", w["model.embed_tokens.weight"])
    return rms_norm(x, w["model.norm.weight"], values.epsilon) @ head.T
