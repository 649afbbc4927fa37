"""Conversion of the weights of mixture-of-experts layers: the experts of a layer are one tensor in Megatron's model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from solopo_nemo.families.description import ModelDescription

NORM = "post_attention_layernorm.weight"
_EXPERTS_NORM = "pre_mlp_layernorm.weight"
"""Megatron's name of :data:`NORM` in a layer with experts, which has it beside and not in the first linear layer."""
_EXPERT = {
    "gate_proj": ("linear_fc1", 0),
    "up_proj": ("linear_fc1", 1),
    "down_proj": ("linear_fc2", 0),
    "w1": ("linear_fc1", 0),
    "w2": ("linear_fc2", 0),
    "w3": ("linear_fc1", 1),
}
"""Module of an expert -> Megatron's layer, and which part of an expert's rows this module is."""


def expert_shapes(model: ModelDescription) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of a layer with experts by name in the layer, without attention and norms."""
    experts, names = model.experts, model.family.experts
    if experts is None or names is None:
        return {}
    found: dict[str, tuple[int, ...]] = {f"{names.module}.gate.weight": (experts.count, model.hidden_size)}
    wide = (experts.size, model.hidden_size)
    for number in range(experts.count):
        for name in names.projections:
            shape = wide[::-1] if _EXPERT[name][0] == "linear_fc2" else wide
            found[f"{names.module}.experts.{number}.{name}.weight"] = shape
    return found


def expert_paths(model: ModelDescription, layer: int, module: str) -> list[str]:
    """Paths in a layer of a module of every expert, such as ``gate_proj``; none for any other module or layer."""
    experts, names = model.experts, model.family.experts
    if experts is None or names is None or module not in _EXPERT or not experts.layers[layer]:
        return []
    own = next(name for name in names.projections if _EXPERT[name] == _EXPERT[module])
    return [f"{names.module}.experts.{number}.{own}" for number in range(experts.count)]


def in_layer(name: str) -> tuple[str, str]:
    """Number of the layer and name in it; of a tensor outside the layers, empty texts."""
    if not name.startswith("model.layers."):
        return "", ""
    number, own = name.removeprefix("model.layers.").split(".", 1)
    return number, own


class ExpertLayers:
    """Transform of NeMo that stacks the experts of each layer, and places the layers' second norms.

    Args:
        norm: Megatron's name of that norm in a layer without experts.
    """

    source_key = target_key = "experts"  # what NeMo logs

    def __init__(self, norm: str) -> None:
        self._norm = norm

    def __call__(self, context: Any) -> Any:
        """Fill the target's state."""
        source, target = context.source_state, context.target_state
        stacks: dict[str, dict[tuple[int, int], str]] = {}
        for name in source:
            number, own = in_layer(name)
            at = f"decoder.layers.{number}"
            if ".experts." in own:
                _, _, expert, module, _ = own.split(".")
                linear, part = _EXPERT[module]
                stacks.setdefault(f"{at}.mlp.experts.{linear}.weight", {})[int(expert), part] = name
            elif own.endswith(".gate.weight"):
                target[f"{at}.mlp.router.weight"] = source[name]
            elif own == NORM:
                inner = f"{at}.{self._norm}"
                target[inner if inner in target else f"{at}.{_EXPERTS_NORM}"] = source[name]
        for megatron, names in stacks.items():
            stacked = torch.empty(target[megatron].shape, dtype=target[megatron].dtype)
            parts = 1 + max(part for _, part in names)
            for (place, part), name in names.items():
                stacked[place].chunk(parts)[part].copy_(source[name])
            target[megatron] = stacked
        return context


def expert_tensor(state: Mapping[str, torch.Tensor], at: str, own: str) -> torch.Tensor | None:
    """A tensor of a layer with experts by its Hugging Face name in the layer; ``None`` for any other.

    Args:
        state: of a Megatron model of one rank.
        at: the layer's name there.
        own: name in the layer.
    """
    if own == NORM:
        return state.get(f"{at}.{_EXPERTS_NORM}")
    if own.endswith(".gate.weight"):
        return state[f"{at}.mlp.router.weight"]
    if ".experts." not in own:
        return None
    _, _, expert, module, _ = own.split(".")
    linear, part = _EXPERT[module]
    rows = state[f"{at}.mlp.experts.{linear}.weight"][int(expert)]
    return rows.chunk(2)[part] if linear == "linear_fc1" else rows
