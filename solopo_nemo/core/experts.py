"""Mixture of experts in the training step: padding that counts nowhere, the routers' losses and loads."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.transformer.moe.moe_layer import MoELayer
from megatron.core.transformer.moe.moe_utils import (
    clear_aux_losses_tracker,
    get_moe_layer_wise_logging_tracker,
    reduce_aux_losses_tracker_across_ranks,
)

from solopo_nemo.core.layers.experts import Z_LOSS, Router
from solopo_nemo.data.packing import Batch
from solopo_nemo.runtime import device

METRICS = {"load_balancing_loss": "moe/aux_loss", Z_LOSS: "moe/z_loss"}
"""Metrics by Megatron's name."""
LOAD = "moe/busiest_expert"
"""Metric: tokens of the busiest expert of any layer, as a multiple of the mean over its layer's experts."""


def padding_of(batch: Batch, config: Any) -> dict[str, torch.Tensor]:
    """Arguments of ``GPTModel`` by which its routers know the padding; none for a model without experts.

    Args:
        batch: this context-parallel rank's share.
        config: of the model.

    Returns:
        ``padding_mask``: bool ``[1, T]``, True for padding. SP: Megatron cuts it on the first pipeline stage
        (gpt_model.py:314); on the others it is this tensor-parallel rank's ``[1, T / TP]``.
    """
    if config.num_moe_experts is None:
        return {}
    positions, split = batch["position_ids"], config.context_parallel_size
    local = torch.tensor([length // split for length in batch["lengths"]], device=positions.device)
    lengths = batch["input_tokens"].repeat_interleave(local, output_size=positions.shape[1])
    padding = positions >= lengths
    if config.sequence_parallel and not parallel_state.is_pipeline_first_stage():
        group = parallel_state.get_tensor_model_parallel_group()
        padding = padding.chunk(group.size(), 1)[group.rank()]
    return {"padding_mask": padding}


def routers_of(model: torch.nn.Module) -> list[Router]:
    """The routers of a model, bare or in any wrapper."""
    return [module for module in model.modules() if isinstance(module, Router)]


def forget_routes(model: torch.nn.Module) -> None:
    """Lets the dispatchers of a model drop the routers' probabilities as soon as the experts have run.

    Megatron's dispatcher keeps them until the next pass (token_dispatcher.py:610), and with them the router's graph.
    Under recomputation that graph holds the input of each layer and its gradient, ``2 T H / (TP CP)`` values a layer,
    until the step ends.
    """
    for layer in model.modules():
        if isinstance(layer, MoELayer):
            layer.experts.register_forward_hook(partial(_forget, weakref.proxy(layer)))


def _forget(layer: MoELayer, *_: Any) -> None:
    dispatcher = layer.token_dispatcher
    dispatcher.probs = dispatcher.probs.new_empty(0)  # only its type is read later


@contextmanager
def without_losses(config: Any, chunks: Iterable[torch.nn.Module]) -> Iterator[None]:
    """Inside the block the routers of a model add no loss of their own; the loads that they note are forgotten.

    Args:
        config: of the model.
        chunks: its parts on this rank.
    """
    kept = config.moe_aux_loss_coeff, config.moe_z_loss_coeff
    loads = [(router, router.load) for chunk in chunks for router in routers_of(chunk)]
    config.moe_aux_loss_coeff, config.moe_z_loss_coeff = 0.0, None
    try:
        yield
    finally:
        config.moe_aux_loss_coeff, config.moe_z_loss_coeff = kept
        for router, load in loads:
            router.load = load


@torch.no_grad()
def take_metrics(model: torch.nn.Module, config: Any, micro_batches: int) -> dict[str, float]:
    """What the routers of a step have noted, which they forget; empty for a model without experts.

    A collective of all ranks; the same on every rank.

    Args:
        model: this pipeline stage.
        config: its config.
        micro_batches: of a data-parallel rank in the step.

    Returns:
        ``moe/aux_loss`` and ``moe/z_loss``, unweighted, the mean over layers and micro-batches, where their weights are
        not 0; ``moe/busiest_expert``.
    """
    if config.num_moe_experts is None:
        return {}
    tracker, found = get_moe_layer_wise_logging_tracker(), {}
    names = [name for name, on in zip(METRICS, (config.moe_aux_loss_coeff, config.moe_z_loss_coeff), strict=True) if on]
    for name in names:  # a stage without experts has noted none
        tracker.setdefault(name, {"values": torch.zeros(config.num_layers, device=device.current())})
        tracker[name]["reduce_group"] = parallel_state.get_tensor_and_context_parallel_group()
    reduce_aux_losses_tracker_across_ranks(names)
    layers = config.moe_layer_freq if isinstance(config.moe_layer_freq, list) else [1] * config.num_layers
    for name in names:
        found[METRICS[name]] = float(tracker[name]["values"].sum()) / (sum(layers) * micro_batches)
    clear_aux_losses_tracker()
    return found | {LOAD: _busiest(model)}


def _busiest(model: torch.nn.Module) -> float:
    largest = torch.zeros((), dtype=torch.float64, device=device.current())
    for router in routers_of(model):
        load, router.load = router.load, None
        if load is not None:
            dist.all_reduce(load, group=router.tp_dp_cp_group)
            largest = torch.maximum(largest, load.max() / load.double().mean())
    dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=parallel_state.get_pipeline_model_parallel_group())
    return float(largest)
