"""LoRA on the linear layers of Megatron-core, equal to the ``peft`` library's on the Hugging Face model.

The output of a Hugging Face module with the weight ``W`` becomes ``W x + alpha / rank * B A x``. Megatron fuses some
of these modules into one layer, such as ``q_proj``, ``k_proj`` and ``v_proj`` into ``linear_qkv``. An adapter keeps
an ``A`` and a ``B`` for each module, as peft does, and computes with both of them fused::

    down = [A_q; A_k; A_v]               [3 * rank, hidden]
    up   = rows of B_q in the columns of A_q, and so on, zero elsewhere, in the order of the layer's output rows

which is the same sum exactly. ``x`` is what the layer's own weight is multiplied with: the normed hidden states, or the
output of the gated activation.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.tensor_parallel import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    get_cuda_rng_tracker,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint

from solopo_nemo.core.layers.blockwise import gamma_of, norm
from solopo_nemo.core.layers.spec import GatedRowParallelLinear, NormColumnParallelLinear
from solopo_nemo.families.family import LINEARS, TARGETS

MARK = ".lora_"
"""In the name of every adapter's parameter, and of no other."""

ReadTensor = Callable[[int, str, str], torch.Tensor]
"""Reads ``A`` ``[rank, in]`` or ``B`` ``[out, rank]``, whole, by layer, module and half."""


def has_adapters(keys: Iterable[str]) -> bool:
    """Whether names of parameters, or of a checkpoint's tensors, are of adapters too."""
    return any(MARK in key for key in keys)


def part_of(state: Mapping[str, Any], *, adapters: bool) -> dict[str, Any]:
    """The adapters of a model's state, or all else."""
    return {key: value for key, value in state.items() if has_adapters([key]) == adapters}


@dataclass(frozen=True)
class LoRA:
    """Settings of all adapters of a model.

    Attributes:
        rank: rows of ``A``.
        alpha: the product ``B A`` is scaled by ``alpha / rank``.
        dropout: probability with which an element of ``x`` is zero for the adapter, in training.
        targets: Hugging Face names of the modules that get an adapter, some of ``families.family.TARGETS``.
        seed: of the initial ``A``; the initial ``B`` is zero.
        initial: reads the initial ``A`` and ``B`` instead, by layer, module and half.
    """

    rank: int
    alpha: float
    dropout: float = 0.0
    targets: tuple[str, ...] = TARGETS
    seed: int = 1
    initial: ReadTensor | None = None


class Adapter(torch.nn.Module):
    """The adapters of the modules that one linear layer fuses.

    TP, column-parallel layer: ``A`` is on every rank, ``B`` has the rank's rows. Row-parallel layer: ``A`` has the
    rank's columns, ``B`` is on every rank. The gradient of what is on every rank is summed over the ranks in backward,
    ``rank * width`` numbers a module and micro-batch. SP, CP, PP, DP: as the layer itself.

    Memory: ``rank * (in + out)`` parameters a module, the larger of the two widths divided by TP; saved for backward
    are ``rank`` numbers a token and module, and with Transformer Engine's layers or dropout the layer's input.

    Args:
        layer: of Megatron or Transformer Engine, already built.
        name: key of ``families.family.LINEARS``.
        lora: settings.
        config: of the model.
        number: of the transformer layer, from 0, over all pipeline stages.
        group: tensor-parallel group.
    """

    active = True

    def __init__(self, layer: Any, name: str, lora: LoRA, config: Any, number: int, group: Any) -> None:
        super().__init__()
        self.config = config
        self.number, self.layer = number, (layer,)  # in a tuple: its parameters are not the adapter's
        self.lora, self.group, self.sequence_parallel = lora, group, config.sequence_parallel
        self.column = name.endswith(("qkv", "fc1"))
        self.fused = isinstance(layer, NormColumnParallelLinear | GatedRowParallelLinear) and not lora.dropout
        tp, rank = group.size(), group.rank()
        out, width = layer.weight.shape
        modules = [path.split(".")[1] for path in LINEARS[name]]
        self.groups, self.rows = 1, dict.fromkeys(modules, out // len(modules))
        if name.endswith("qkv"):
            heads = config.num_attention_heads // config.num_query_groups
            self.groups = config.num_query_groups // tp
            self.rows = dict(zip(modules, (heads * config.kv_channels, *2 * (config.kv_channels,)), strict=True))
        self.adapted = [module for module in modules if module in lora.targets]
        for module in self.adapted:
            if lora.initial:
                a, b = (lora.initial(number, module, half) for half in "AB")
            else:
                whole = width if self.column else width * tp
                generator = torch.Generator().manual_seed(zlib.crc32(f"{lora.seed} {number} {module}".encode()))
                a = (torch.rand(lora.rank, whole, generator=generator) * 2 - 1) / whole**0.5  # as peft begins
                b = torch.zeros(self.groups * self.rows[module] * (tp if self.column else 1), lora.rank)
            for half, value, axis in (("A", a, None if self.column else 1), ("B", b, 0 if self.column else None)):
                own = value if axis is None else value.chunk(tp, axis)[rank]
                parameter = torch.nn.Parameter(own.to(layer.weight).contiguous())
                set_tensor_model_parallel_attributes(parameter, axis is not None, axis or 0, 1)
                self.register_parameter(f"{module}_{half}", parameter)

    def forward(self) -> tuple[torch.Tensor, torch.Tensor]:
        """``down`` ``[modules * rank, in]`` and ``up`` ``[out, modules * rank]``, this rank's, fused."""
        halves: dict[str, Any] = dict(self.named_parameters())
        down = torch.cat([halves[f"{module}_A"] for module in self.adapted])
        rank, columns, blocks = self.lora.rank, down.shape[0], []
        for module, rows in self.rows.items():
            if module in self.adapted:
                before = self.adapted.index(module) * rank
                block = F.pad(halves[f"{module}_B"], (before, columns - before - rank))
            else:
                block = down.new_zeros(self.groups * rows, columns)
            blocks.append(block.view(self.groups, rows, columns))
        return down, torch.cat(blocks, 1).flatten(0, 1)

    def beside(self, product: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
        """The output of a layer of this project, whose ``product`` multiplies its input with ``down`` too.

        Every rank has its part of ``x`` times ``down``, or of the gradient of that.
        """
        down, up = self()
        if self.column:
            down = copy_to_tensor_model_parallel_region(down, group=self.group)
        else:  # the sum over the ranks is that of the layer's output
            up = copy_to_tensor_model_parallel_region(up, group=self.group)
        return self._added(*product(down), up)

    def after(self, layer: Any, inputs: tuple[torch.Tensor, ...], output: tuple[torch.Tensor, Any]) -> Any:
        """Forward hook of any other layer: adds the adapters to its output."""
        if not self.active:
            return None
        down, up = self()
        x, sequence, group = inputs[0], self.sequence_parallel, self.group
        if hasattr(layer, "layer_norm_weight"):
            weight, shape = layer.layer_norm_weight, x.shape[-1:]
            centered = self.config.layernorm_zero_centered_gamma
            x = norm(x, gamma_of(weight, True), layer.eps) if centered else F.rms_norm(x, shape, weight, layer.eps)
        elif isinstance(layer, GatedRowParallelLinear):
            gate, value = x.chunk(2, -1)
            x = self.config.activation_func(gate) * value
        if self.column and sequence:
            down = copy_to_tensor_model_parallel_region(down, group=group)
            h = gather_from_sequence_parallel_region(self._down(x, down), group=group)
        elif self.column:
            h = copy_to_tensor_model_parallel_region(self._down(x, down), group=group)
        elif sequence:
            up = copy_to_tensor_model_parallel_region(up, group=group)
            h = reduce_scatter_to_sequence_parallel_region(self._down(x, down), group=group)
        else:
            h = reduce_from_tensor_model_parallel_region(self._down(x, down), group=group)
        return self._added(output[0], h, up), output[1]

    def _down(self, x: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
        """``x`` times ``down``, with dropout of its own for each module; ranks that share ``x`` share what is zero."""
        if not (self.lora.dropout and self.training):
            return F.linear(x, down)
        if self.column and not self.sequence_parallel:
            return self._dropped(x, down)
        with get_cuda_rng_tracker().fork():
            return self._dropped(x, down)

    def _dropped(self, x: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
        return torch.cat([F.linear(F.dropout(x, self.lora.dropout), a) for a in down.split(self.lora.rank)], -1)

    def _added(self, out: torch.Tensor, h: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        scale = self.lora.alpha / self.lora.rank
        return torch.addmm(out.flatten(0, -2), h.flatten(0, -2), up.t(), alpha=scale).view_as(out)

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[Any, ...] = (), metadata: dict[str, Any] | None = None
    ) -> Any:
        """As Megatron's layers; what is saved loads at any layout."""
        state = self.state_dict(keep_vars=True)
        split = {f"{m}_B": 0 for m in self.adapted} if self.column else {f"{m}_A": 1 for m in self.adapted}
        groups = {"tp_group": self.group, "dp_cp_group": (metadata or {}).get("dp_cp_group")}
        if groups["dp_cp_group"] is None:
            groups = {}
        return make_sharded_tensors_for_checkpoint(state, prefix, split, sharded_offsets, **groups)


def add_adapters(model: Any, lora: LoRA) -> None:
    """Freeze a built ``GPTModel`` and give its layers adapters, in place; before it is wrapped.

    A frozen weight has no gradient, no gradient buffer and no optimizer state.

    Args:
        model: this pipeline stage.
        lora: settings.
    """
    model.requires_grad_(False)
    group = parallel_state.get_tensor_model_parallel_group()
    for layer in model.decoder.layers:
        for name, paths in LINEARS.items():
            if not {path.split(".")[1] for path in paths} & set(lora.targets):
                continue
            target = layer.get_submodule(name)
            adapter = Adapter(target, name, lora, model.config, layer.layer_number - 1, group)
            part, linear = name.split(".")
            getattr(layer, part).add_module(linear.replace("linear", "lora"), adapter)
            if adapter.fused:
                target.adapters = (adapter,)
            else:
                target.register_forward_hook(adapter.after)
    if model.pre_process:  # recomputed layers have gradients only where an input has one
        model.embedding.register_forward_hook(
            lambda module, inputs, out: out.requires_grad_() if torch.is_grad_enabled() else out
        )


def adapters_of(model: torch.nn.Module) -> list[Adapter]:
    """All adapters of a model, bare or in any wrapper."""
    return [module for module in model.modules() if isinstance(module, Adapter)]


@contextmanager
def adapters_off(model: torch.nn.Module) -> Iterator[None]:
    """Inside the block the model is its frozen base, to the bit: no operation of an adapter runs."""
    adapters = adapters_of(model)
    for adapter in adapters:
        adapter.active = False
    try:
        yield
    finally:
        for adapter in adapters:
            adapter.active = True
