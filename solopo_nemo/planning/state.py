"""Persistent memory: weights, gradients, optimizer state, reference policy, and the memory of device libraries."""

from __future__ import annotations

from dataclasses import dataclass

from solopo_nemo.planning.parameters import (
    LayerParameters,
    StageParameters,
    adapter_parameters,
    expert_adapter_parameters,
)
from solopo_nemo.planning.run import GPU, Run
from solopo_nemo.runtime.kernels import ENGINE

GIB = 2**30
RUNTIME = 21 * 2**20
"""Library code that the first step loads on a CPU, and small blocks that malloc retains. Measured in 22 configurations:
12 to 24 MiB, 32 where gloo copies what it sends to all (docs/performance/planner.json)."""
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
    return Tensor("weights", (stage_parameters(run, stage).total + adapters) * run.itemsize, "P * e")


def training_state(run: Run, stage: int) -> tuple[Tensor, ...]:
    """Gradients, optimizer state and reference policy of pipeline stage ``stage``.

    With LoRA ``P`` counts the adapters alone. Megatron's distributed optimizer shards the state evenly over the data-
    and context-parallel ranks; that of ``X``, the experts, over the ranks that hold the same ones.
    """
    parameters, experts, layout = trained_parameters(run, stage), trained_experts(run, stage), run.layout
    state = MOMENTS + (MASTER if run.precision == "bf16" else 0)
    formula = f"P * {state} / (DP * CP)"
    if experts:
        formula = f"(P - X) * {state} / (DP * CP) + X * {state} / {layout.expert_data}"
    shared = (parameters - experts) / (layout.data * layout.context) + experts / layout.expert_data
    held = {"replicated": parameters, "offloaded": 0}.get(run.optimizer, shared) * state
    tensors = [
        Tensor("gradients", parameters * MAIN_GRADIENT, "P * 4"),
        Tensor("optimizer state", held, formula if held else "in host memory"),
    ]
    if run.online_reference and run.adapter_rank is None:
        tensors.append(Tensor("reference policy", stage_parameters(run, stage).total * run.itemsize, "P * e"))
    return tuple(tensors)


def device_share(run: Run, stage: int) -> tuple[Tensor, ...]:
    """Memory of the device and its libraries; on a CPU what the first step loads."""
    if run.device != GPU:
        return (Tensor("libraries and heap", RUNTIME, "measured"),)
    layout = run.layout
    groups = 1 + sum(size > 1 for size in (layout.tensor, layout.context, layout.pipeline, layout.data, layout.expert))
    return (
        Tensor("CUDA context and workspaces", CUDA_CONTEXT, "assumed", True),
        Tensor("NCCL buffers", NCCL_GROUP * groups, f"{groups} groups, assumed", True),
        Tensor("weight-gradient placeholders", _placeholders(run, stage), "P_layer * e + v * h / t * e", True),
    )


def _placeholders(run: Run, stage: int) -> float:
    """Bytes that Transformer Engine keeps for good where it adds a weight's gradient to Megatron's buffer.

    It returns a placeholder to autograd, one for each shape of a weight (``get_dummy_wgrad`` of its module/base.py),
    which the head takes too. The experts of a layer have the same shapes. Norms and router have none.
    """
    if run.layers != ENGINE or run.adapter_rank is not None:
        return 0.0
    shape, layout = run.shape, run.layout
    layer = LayerParameters.of(shape, layout.tensor, layout.expert_ranks)
    one_expert = layer.experts * layout.expert // shape.experts.count if shape.experts else 0
    head = shape.vocab_size * shape.hidden_size // layout.tensor * (stage == layout.pipeline - 1)
    return float(layer.matrices + one_expert + head) * run.itemsize


def trained_parameters(run: Run, stage: int) -> int:
    """Parameters with a gradient on one rank of pipeline stage ``stage``: all, or those of the adapters."""
    if run.adapter_rank is None:
        return stage_parameters(run, stage).total
    layers = run.shape.num_hidden_layers // run.layout.pipeline
    of_layer = adapter_parameters(run.shape, run.adapter_rank, run.adapter_targets, run.layout.tensor)
    return layers * of_layer + trained_experts(run, stage)


def trained_experts(run: Run, stage: int) -> int:
    """Parameters of experts with a gradient on one rank of a pipeline stage: all, or those of their adapters."""
    if run.adapter_rank is None:
        return stage_parameters(run, stage).experts
    layout, layers = run.layout, run.shape.num_hidden_layers // run.layout.pipeline
    sizes = layout.expert, layout.expert_split
    return layers * expert_adapter_parameters(run.shape, run.adapter_rank, run.adapter_targets, *sizes)


def stage_parameters(run: Run, stage: int) -> StageParameters:
    """Parameters of one rank of pipeline stage ``stage``, without adapters."""
    layout = run.layout
    return StageParameters.of(run.shape, layout.tensor, layout.pipeline, stage, layout.expert_ranks)
