"""Transformer layers without Transformer Engine, under Transformer Engine's parameter names.

Transformer Engine fuses each layer norm into the linear layer that follows it
(``self_attention.linear_qkv.layer_norm_weight``). The weight maps and the checkpoints of its runs use those names. The
layers here have the same structure, so that a checkpoint moves between machines without renaming.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.attention import SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.moe.moe_layer import MoELayer, MoESubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import (
    TransformerLayer,
    TransformerLayerSubmodules,
    get_transformer_layer_offset,
)
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint

from solopo_nemo.core.layers.attention import SDPACoreAttention
from solopo_nemo.core.layers.blockwise import ACTIVATIONS, gamma_of, gated_linear, norm, norm_linear
from solopo_nemo.core.layers.experts import Experts, Router
from solopo_nemo.core.layers.extras import extras
from solopo_nemo.core.layers.rotary import LocalRotaryAttention
from solopo_nemo.core.layers.window import WindowCoreAttention
from solopo_nemo.runtime import device


def _mark_for_sequence_parallel(weight: torch.nn.Parameter, config: TransformerConfig) -> None:
    """Set the mark by which ``finalize_model_grads`` sums the gradient over the tensor-parallel ranks."""
    weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]


def _adapted(adapters: tuple[Any, ...], product: Callable[..., Any]) -> Any:
    """The output of a layer, with its adapter's part where there is an adapter that is on."""
    return adapters[0].beside(product) if adapters and adapters[0].active else product()


def _where(config: TransformerConfig) -> torch.device | None:
    """Where weights are made, as Megatron's own layers make them; None is torch's default device."""
    return None if config.use_cpu_initialization else device.current()


class RMSNorm(torch.nn.RMSNorm):
    """RMSNorm that works under sequence parallelism, which Megatron's torch norm refuses.

    Its checkpoints have the extra state that Transformer Engine's norm asks for (pytorch/ops/op.py:528 of 2.11), empty
    as that one's without FP8, so that they load on a GPU. Megatron's linear layers do the same (layers.py:1052).
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype, device=_where(config))
        self.zero_centered = config.layernorm_zero_centered_gamma
        if self.zero_centered:
            torch.nn.init.zeros_(self.weight)
        _mark_for_sequence_parallel(self.weight, config)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` ``[..., hidden_size]``, normalized."""
        if self.zero_centered:
            return norm(x, gamma_of(self.weight, True), self.eps or 0.0)
        return super().forward(x)

    def sharded_state_dict(self, prefix: str = "", sharded_offsets: tuple[Any, ...] = (), *_: Any, **__: Any) -> Any:
        """As Megatron's default for a norm; its ``MLP`` asks each of its parts."""
        return make_sharded_tensors_for_checkpoint(self.state_dict(keep_vars=True), prefix, {}, sharded_offsets)

    def get_extra_state(self) -> torch.Tensor:
        """Nothing: uint8 ``[0]``."""
        return torch.empty(0, dtype=torch.uint8)

    def set_extra_state(self, state: Any) -> None:
        """Ignored: it is FP8's."""


class NormColumnParallelLinear(ColumnParallelLinear):
    """RMSNorm, then a column-parallel linear: the counterpart of ``TELayerNormColumnParallelLinear``."""

    adapters: tuple[Any, ...] = ()
    """One of :mod:`solopo_nemo.core.lora`, or none."""

    def __init__(self, input_size: int, output_size: int, *, config: TransformerConfig, **kwargs: Any) -> None:
        super().__init__(input_size, output_size, config=config, **kwargs)
        self.zero_centered = config.layernorm_zero_centered_gamma
        self.layer_norm_weight = torch.nn.Parameter(
            torch.full((input_size,), 1.0 - self.zero_centered, dtype=config.params_dtype, device=_where(config))
        )
        _mark_for_sequence_parallel(self.layer_norm_weight, config)
        self.eps = config.layernorm_epsilon

    @property
    def gamma(self) -> torch.Tensor:
        """What the norm multiplies with, ``[input_size]``."""
        return gamma_of(self.layer_norm_weight, self.zero_centered)

    def _forward_impl(
        self,
        input: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        *,
        sequence_parallel: bool,
        tp_group: torch.distributed.ProcessGroup,
        **_: Any,
    ) -> torch.Tensor:
        product = partial(norm_linear, input, self.gamma, weight, bias, self.eps, tp_group, sequence_parallel)
        return _adapted(self.adapters, product)


class Pass(MegatronModule):
    """In place of the MLP's activation, which the next layer computes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``x``."""
        return x


class GatedRowParallelLinear(RowParallelLinear):
    """A gated activation, then a row-parallel linear, fused."""

    adapters: tuple[Any, ...] = ()
    """One of :mod:`solopo_nemo.core.lora`, or none."""

    def _forward_impl(self, input: torch.Tensor, weight: torch.Tensor, **_: Any) -> torch.Tensor:
        product = partial(gated_linear, input, weight, activation=self.config.activation_func)
        return _adapted(self.adapters, product)


class _PostNorm(torch.nn.Module):
    """Normalizes the output of a part of a layer, before it is added to the residual."""

    def __init__(self, config: TransformerConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        self.post_norm = RMSNorm(config, config.hidden_size, config.layernorm_epsilon)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the part."""
        output, bias = super().forward(*args, **kwargs)
        return self.post_norm(output), bias


class PostNormAttention(_PostNorm, LocalRotaryAttention):
    """Self-attention, then a norm."""


MLP_PARTS = MLPSubmodules(linear_fc1=NormColumnParallelLinear, activation_func=Pass, linear_fc2=GatedRowParallelLinear)


class PostNormMLP(_PostNorm, MLP):
    """An MLP, then a norm. It names its parts itself: Megatron warns of a spec with another class than ``MLP``."""

    def __init__(self, config: TransformerConfig, **kwargs: Any) -> None:
        super().__init__(config, MLP_PARTS, **kwargs)


def torch_layer_spec(config: TransformerConfig, vp_stage: int | None = None) -> TransformerBlockSubmodules:
    """Layers for RMSNorm models with a gated MLP or experts, which are those of all supported families, on any device.

    Valid under TP, SP, CP, PP and DP. A block rather than a layer spec, because the block's final norm
    has to allow sequence parallelism too.
    """
    if config.normalization != "RMSNorm":
        raise ValueError(f"normalization={config.normalization!r}: without Transformer Engine only RMSNorm models run")
    if not config.gated_linear_unit or config.activation_func not in ACTIVATIONS:
        raise ValueError("without Transformer Engine only models with a gated MLP of SiLU or tanh GELU run")
    layers, experts = get_num_layers_to_build(config, vp_stage=vp_stage), config.num_moe_experts is not None
    specs = [_layer_spec(config, experts)] * layers
    if experts and isinstance(config.moe_layer_freq, list):
        first = get_transformer_layer_offset(config, vp_stage)
        specs = [_layer_spec(config, bool(has)) for has in config.moe_layer_freq[first : first + layers]]
    return TransformerBlockSubmodules(layer_specs=specs, layer_norm=RMSNorm)


def _layer_spec(config: TransformerConfig, has_experts: bool) -> ModuleSpec:
    norm_of_heads, post_norms = RMSNorm if config.qk_layernorm else IdentityOp, extras(config).post_norms
    mlp = PostNormMLP if post_norms else ModuleSpec(module=MLP, submodules=MLP_PARTS)
    if has_experts:
        mlp = ModuleSpec(module=MoELayer, submodules=MoESubmodules(experts=Experts, router=Router))
    return ModuleSpec(
        module=TransformerLayer,
        submodules=TransformerLayerSubmodules(
            self_attention=ModuleSpec(
                module=PostNormAttention if post_norms else LocalRotaryAttention,
                params={"attn_mask_type": AttnMaskType.causal},
                submodules=SelfAttentionSubmodules(
                    linear_qkv=NormColumnParallelLinear,
                    core_attention=WindowCoreAttention if config.window_size else SDPACoreAttention,
                    linear_proj=RowParallelLinear,
                    q_layernorm=norm_of_heads,
                    k_layernorm=norm_of_heads,
                ),
            ),
            self_attn_bda=get_bias_dropout_add,
            # experts share one norm; an MLP's is in its first linear layer
            pre_mlp_layernorm=RMSNorm if has_experts else IdentityOp,
            mlp=mlp,
            mlp_bda=get_bias_dropout_add,
        ),
    )
