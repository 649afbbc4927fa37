"""Persistent memory: weights, gradients, optimizer state, reference policy, and the memory of device libraries."""

from __future__ import annotations

from dataclasses import dataclass

from solopo_nemo.planning.parameters import LayerParameters, StageParameters, adapter_parameters
from solopo_nemo.planning.run import GPU, Run

GIB = 2**30
RUNTIME = 30 * 2**20
"""Library code that the first step loads on a CPU, and small blocks that malloc retains. Measured: 12 to 54 MiB."""
CUDA_CONTEXT = 1.0 * GIB
"""Assumed: CUDA context, loaded kernels, and the workspaces of cuBLAS, cuDNN and Transformer Engine."""
NCCL_GROUP = 0.25 * GIB
"""Assumed: buffers of one NCCL communicator. There is one for each parallel dimension in use and one for the world."""
MAIN_GRADIENT = 4
"""Bytes of a gradient: Megatron's DDP accumulates in fp32 (``grad_reduce_in_fp32``)."""
MOMENTS, MASTER = 8, 4
"""Bytes per parameter of AdamW's two fp32 moments, and of the fp32 master weight in bf16 training."""


@dataclass(frozen=True)
class Tensor:
    """A part of a rank's memory.

    Attributes:
        name: unique among the parts.
        bytes: size on one rank.
        formula: how it is computed.
        loaded: it is there before the training.
    """

    name: str
    bytes: float
    formula: str
    loaded: bool = False


def weights(run: Run, stage: int) -> Tensor:
    """The policy's weights, in Megatron's contiguous buffer: ``parameters * e``."""
    adapters = 0 if run.adapter_rank is None else trained_parameters(run, stage)
    return Tensor("weights", (_parameters(run, stage) + adapters) * run.itemsize, "P * e")


def training_state(run: Run, stage: int) -> tuple[Tensor, ...]:
    """Gradients, optimizer state and reference policy of pipeline stage ``stage``.

    With LoRA ``P`` counts the adapters alone. Megatron's distributed optimizer shards the state evenly over the data-
    and context-parallel ranks.
    """
    parameters = trained_parameters(run, stage)
    ranks = 1 if run.optimizer == "replicated" else run.layout.data * run.layout.context
    state = MOMENTS + (MASTER if run.precision == "bf16" else 0)
    held = 0 if run.optimizer == "offloaded" else parameters * state / ranks
    tensors = [
        Tensor("gradients", parameters * MAIN_GRADIENT, "P * 4"),
        Tensor("optimizer state", held, f"P * {state} / (DP * CP)" if held else "in host memory"),
    ]
    if run.online_reference and run.adapter_rank is None:
        tensors.append(Tensor("reference policy", _parameters(run, stage) * run.itemsize, "P * e"))
    return tuple(tensors)


def device_share(run: Run, stage: int) -> tuple[Tensor, ...]:
    """Memory of the device and its libraries; on a CPU what the first step loads."""
    if run.device != GPU:
        return (Tensor("libraries and heap", RUNTIME, "measured"),)
    layout = run.layout
    groups = 1 + sum(size > 1 for size in (layout.tensor, layout.context, layout.pipeline, layout.data))
    layer = LayerParameters.of(run.shape, layout.tensor)
    placed = (layer.total - layer.norms) * run.itemsize if run.adapter_rank is None else 0
    return (
        Tensor("CUDA context and workspaces", CUDA_CONTEXT, "assumed", True),
        Tensor("NCCL buffers", NCCL_GROUP * groups, f"{groups} groups, assumed", True),
        # fused weight-gradient accumulation returns a placeholder gradient to autograd, one for each weight shape
        Tensor("weight-gradient placeholders", placed, "P_layer * e", True),
    )


def trained_parameters(run: Run, stage: int) -> int:
    """Parameters with a gradient on one rank of pipeline stage ``stage``: all, or those of the adapters."""
    if run.adapter_rank is None:
        return _parameters(run, stage)
    layers = run.shape.num_hidden_layers // run.layout.pipeline
    return layers * adapter_parameters(run.shape, run.adapter_rank, run.adapter_targets, run.layout.tensor)


def _parameters(run: Run, stage: int) -> int:
    return StageParameters.of(run.shape, run.layout.tensor, run.layout.pipeline, stage).total
