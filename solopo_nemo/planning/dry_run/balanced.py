"""Mixture of experts in a trace, whose tensors have no values: every expert gets equally many tokens, as assumed."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from megatron.core.transformer.moe.moe_layer import MoELayer
from megatron.core.transformer.moe.moe_utils import (
    MoEAuxLossAutoScaler,
    get_default_pg_collection,
    get_moe_layer_wise_logging_tracker,
)
from megatron.core.transformer.moe.token_dispatcher import MoEAlltoAllTokenDispatcher


class _Balanced(MoEAlltoAllTokenDispatcher):
    """Megatron's dispatcher, which knows how many tokens go where without reading them from the device."""

    def preprocess(self, routing_map: torch.Tensor) -> Any:
        """Set the sizes of the exchange; the number of tokens of each local expert."""
        rows = self.num_out_tokens = routing_map.shape[0] * self.config.moe_router_topk
        self.input_splits = _even(rows, self.ep_size)
        own = self.input_splits[self.ep_group.rank()]
        self.output_splits = [own] * self.ep_size
        self.output_splits_tp = np.full(self.tp_size, own * self.ep_size)
        self.num_global_tokens_per_local_expert = np.tile(
            _even(own, self.num_local_experts), (self.tp_size * self.ep_size, 1)
        )
        order = np.arange(self.num_experts * self.tp_size)
        self.sort_input_by_local_experts = order.reshape(-1, self.num_local_experts).T.ravel()
        self.restore_output_by_local_experts = order.reshape(self.num_local_experts, -1).T.ravel()
        return self.num_global_tokens_per_local_expert.sum(0).tolist()

    def _maybe_dtoh_and_synchronize(self, point: str, tokens_per_expert: Any = None) -> Any:
        return tokens_per_expert


def _even(total: int, parts: int) -> list[int]:
    return [total // parts + (place < total % parts) for place in range(parts)]


def balance(model: torch.nn.Module) -> None:
    """Let the mixture-of-experts layers of a built model send equally many tokens to every expert."""
    for layer in model.modules():
        if isinstance(layer, MoELayer):
            layer.token_dispatcher = _Balanced(
                layer.num_local_experts,
                layer.local_expert_indices,
                config=layer.config,
                pg_collection=get_default_pg_collection(),
            )


def forget() -> None:
    """Drop the fake tensors that Megatron keeps of a trace: its tracker's, and the scale of the routers' losses."""
    get_moe_layer_wise_logging_tracker().clear()
    MoEAuxLossAutoScaler.main_loss_backward_scale = None
