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
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.dist_checkpointing import ShardedTensor
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
from solopo_nemo.core.layers.experts import grouped_linear
from solopo_nemo.core.layers.spec import GatedRowParallelLinear, NormColumnParallelLinear
from solopo_nemo.families.family import LINEARS, TARGETS

MARK = ".lora_"
"""In the name of every adapter's parameter, and of no other."""

ReadTensor = Callable[[int, str, str], torch.Tensor]
"""Reads ``A`` ``[rank, in]`` or ``B`` ``[out, rank]``, whole, by layer, module and half; of experts all, stacked."""


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
        experts: of a layer that is one for each of them, those of this rank; both halves are stacks then.
    """

    active = True

    def __init__(
        self, layer: Any, name: str, lora: LoRA, config: Any, number: int, group: Any, experts: range = range(0)
    ) -> None:
        super().__init__()
        self.config = config
        self.number, self.layer = number, (layer,)  # in a tuple: its parameters are not the adapter's
        self.lora, self.group, self.sequence_parallel, self.experts = lora, group, config.sequence_parallel, experts
        self.column = name.endswith(("qkv", "fc1"))
        self.fused = isinstance(layer, NormColumnParallelLinear | GatedRowParallelLinear) and not lora.dropout
        tp, rank = group.size(), group.rank()
        weight = next(layer.parameters()) if experts else layer.weight
        out, width = weight.shape[-2:]
        modules = [path.split(".")[1] for path in LINEARS[name]]
        self.groups, self.rows = 1, dict.fromkeys(modules, out // len(modules))
        if name.endswith("qkv"):
            heads = config.num_attention_heads // config.num_query_groups
            self.groups = config.num_query_groups // tp
            self.rows = dict(zip(modules, (heads * config.kv_channels, *2 * (config.kv_channels,)), strict=True))
        self.adapted = [module for module in modules if module in lora.targets]
        for module in self.adapted:
            rows = self.groups * self.rows[module]
            whole = (width, rows * tp) if self.column else (width * tp, rows)
            for half, value in zip("AB", self._initial(module, *whole), strict=True):
                axis = self._axis(half, value.dim())
                own = value if axis is None else value.chunk(tp, axis)[rank]
                parameter = torch.nn.Parameter(own.to(weight).contiguous())
                self._mark(parameter, axis)
                self.register_parameter(f"{module}_{half}", parameter)

    def _axis(self, half: str, axes: int) -> int | None:
        """The axis of a half of so many axes that the tensor-parallel ranks share, if any."""
        if half == "AB"[self.column]:
            return axes - 2 if self.column else axes - 1
        return None

    def _mark(self, parameter: torch.nn.Parameter, axis: int | None) -> None:
        set_tensor_model_parallel_attributes(parameter, axis is not None, axis or 0, 1)

    def _initial(self, module: str, width: int, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        """``A`` ``[rank, width]`` and ``B`` ``[rows, rank]`` before training, of all tensor-parallel ranks."""
        lora, names = self.lora, [f"{module} {expert}" for expert in self.experts] or [module]
        if lora.initial:
            a, b = (lora.initial(self.number, module, half) for half in "AB")
            own = slice(self.experts.start, self.experts.stop)
            return (a[own], b[own]) if self.experts else (a, b)
        drawn = []
        for name in names:  # as peft begins
            generator = torch.Generator().manual_seed(zlib.crc32(f"{lora.seed} {self.number} {name}".encode()))
            drawn.append((torch.rand(lora.rank, width, generator=generator) * 2 - 1) / width**0.5)
        a = torch.stack(drawn) if self.experts else drawn[0]
        return a, torch.zeros(*a.shape[:-2], rows, lora.rank)

    def forward(self) -> tuple[torch.Tensor, torch.Tensor]:
        """This rank's ``down`` ``[modules * rank, in]`` and ``up`` ``[out, modules * rank]``; or their stacks."""
        halves: dict[str, Any] = dict(self.named_parameters())
        down = torch.cat([halves[f"{module}_A"] for module in self.adapted], -2)
        rank, columns, blocks = self.lora.rank, down.shape[-2], []
        stack, groups = down.shape[:-2], len(self.experts) or self.groups
        for module, rows in self.rows.items():
            if module in self.adapted:
                before = self.adapted.index(module) * rank
                block = F.pad(halves[f"{module}_B"], (before, columns - before - rank))
            else:
                block = down.new_zeros(groups * rows, columns)
            blocks.append(block.view(groups, rows, columns))
        return down, torch.cat(blocks, 1).view(*stack, -1, columns)

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

    def _down(self, x: torch.Tensor, down: torch.Tensor, product: Any = F.linear) -> torch.Tensor:
        """``x`` times ``down``, with dropout of its own for each module; ranks that share ``x`` share what is zero."""
        if not (self.lora.dropout and self.training):
            return product(x, down)
        shared = self.column and not self.sequence_parallel and not self.experts
        with nullcontext() if shared else get_cuda_rng_tracker().fork():
            halves = down.split(self.lora.rank, -2)
            return torch.cat([product(F.dropout(x, self.lora.dropout), a) for a in halves], -1)

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


class ExpertAdapter(Adapter):
    """The adapters of one linear layer of all experts of a rank: ``A`` ``[experts, rank, in]``, ``B`` likewise.

    They run as grouped products beside the layer, which is this project's or Transformer Engine's.

    EP: each rank has the adapters of its experts. Expert TP: as TP for :class:`Adapter`. SP, CP, PP, DP: as the layer.

    Memory: ``rank * (in + out)`` parameters a module and expert; saved for backward are ``rank`` numbers a token and
    module, and the layer's input.
    """

    def _mark(self, parameter: torch.nn.Parameter, axis: int | None) -> None:
        """As the experts' own weights; what is on every rank counts once in the norm of the gradient."""
        set_tensor_model_parallel_attributes(parameter, True, axis or 0, 1)
        parameter.allreduce = False  # type: ignore[attr-defined]
        parameter.shared = axis is None and self.group.rank() > 0  # type: ignore[attr-defined]

    def after(self, layer: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, Any]) -> Any:
        """Forward hook of the layer: adds the adapters to its output.

        The dispatcher sums over the ranks: the outputs of a row-parallel layer, the gradients of a column-parallel
        one's input.
        """
        if not self.active:
            return None
        (rows, counts), (down, up) = inputs, self()
        if self.column:
            down = copy_to_tensor_model_parallel_region(down, group=self.group)
        else:
            up = copy_to_tensor_model_parallel_region(up, group=self.group)
        product = partial(grouped_linear, counts=counts)
        more = product(self._down(rows, down, product), up)
        return torch.add(output[0], more, alpha=self.lora.alpha / self.lora.rank), output[1]

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[Any, ...] = (), metadata: dict[str, Any] | None = None
    ) -> Any:
        """Each half as one tensor of all experts; what is saved loads at any layout."""
        ahead, (place, size) = len(sharded_offsets), (self.group.rank(), self.group.size())
        ep = self.experts.start // len(self.experts), self.config.num_moe_experts // len(self.experts)
        replica = parallel_state.get_expert_data_parallel_rank()
        state = {}
        for name, half in self.named_parameters():
            axis = self._axis(name[-1], half.dim())
            split = [] if axis is None else [(ahead + axis, place, size)]
            state[f"{prefix}{name}"] = ShardedTensor.from_rank_offsets(
                f"{prefix}{name}",
                half,
                *sharded_offsets,
                (ahead, *ep),
                *split,
                replica_id=(0, place if axis is None else 0, replica),
                prepend_axis_num=ahead,
            )
        return state


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
        number, experts = layer.layer_number - 1, getattr(layer.mlp, "experts", None)
        for name, paths in LINEARS.items():
            if not {path.split(".")[1] for path in paths} & set(lora.targets):
                continue
            part, linear = name.split(".")
            owner, ranks, held = getattr(layer, part), group, range(0)
            kind, target = Adapter, owner
            if part == "mlp" and experts is not None:
                kind, target, ranks = ExpertAdapter, experts, experts.tp_group
                held = range(owner.local_expert_indices[0], owner.local_expert_indices[-1] + 1)
                experts.fused = False
            target = getattr(target, linear)
            adapter = kind(target, name, lora, model.config, number, ranks, held)
            owner.add_module(linear.replace("linear", "lora"), adapter)
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
