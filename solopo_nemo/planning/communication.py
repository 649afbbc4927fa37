"""Communication volume: bytes that one rank sends in a training step, by process group."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from solopo_nemo.planning.run import GPU, Run
from solopo_nemo.planning.state import MAIN_GRADIENT, trained_experts, trained_parameters
from solopo_nemo.planning.traced import Formula, Kind, Sizes, traced_step
from solopo_nemo.planning.workload import Workload

HIDDEN = Formula("1*T*h*e")
"""Bytes of a micro-batch's hidden states. They cross the boundary of two pipeline stages, and so do their gradients."""
OUTSIDE, OUTSIDE_SPLIT = Formula("2*T*h*e"), Formula("1*T*h*e + 2*R*h*e")
"""Bytes that a forward pass sends to tensor-parallel ranks outside the layers, as :class:`TracedStep` has them: without
and with sequence parallelism. A sum of the embedding over the ranks, and of the scored rows."""


@dataclass(frozen=True)
class Communication:
    """Bytes that one rank sends in one optimizer step. Collectives are counted as ring algorithms.

    Attributes:
        tensor: bytes to tensor-parallel ranks, and to those that share an expert's channels.
        context: bytes to context-parallel ranks.
        pipeline: bytes to the neighbouring stages.
        data: bytes of the reduce-scatter of gradients (without a GPU an all-reduce, ``core/cpu_patches.py``) and the
            all-gather of weights, to data- and context-parallel ranks; of experts, to those that hold the same.
        expert: bytes of the all-to-all of tokens, to their experts and back, to expert-parallel ranks.
    """

    tensor: float
    context: float
    pipeline: float
    data: float
    expert: float = 0.0


def _with_repeated_heads(run: Run) -> Run:
    """The run with as many K/V heads as all-to-all sends: repeated where there are fewer than ranks."""
    layout, groups = run.layout, run.shape.num_key_value_heads // run.layout.tensor
    if layout.context == 1 or layout.cp_comm_type != "a2a":
        return run
    repeat = layout.context // math.gcd(layout.context, groups)
    return replace(run, shape=replace(run.shape, num_key_value_heads=run.shape.num_key_value_heads * repeat))


def communication(run: Run) -> Communication:
    """The communication of the rank that sends most in one optimizer step, with embedding and head on each stage.

    A reference policy that runs in the step sends what a forward pass over its sequences does.
    """
    layout, kind, repeated = run.layout, Kind.of(run), _with_repeated_heads(run)
    sent, sizes = traced_step(kind).sent, Sizes(repeated)
    scored = Sizes(replace(repeated, workload=Workload(run.workload.reference))) if run.online_reference else None

    def of_group(name: str, ranks: int) -> float:
        if ranks == 1:
            return 0.0
        size = sizes(sent[name])
        if scored:  # full recomputation is one more forward pass of the layers
            whole, none = (traced_step(replace(kind, recompute=recompute)).sent for recompute in ("full", "none"))
            size += scored(whole[name]) - scored(none[name])
            size += scored(OUTSIDE_SPLIT if layout.sequence else OUTSIDE) * (name == "tensor")
        if name == "tensor" and layout.sequence and run.adapter_rank is not None and not kind.adapters:
            size -= sizes(HIDDEN)  # the gradient of a frozen embedding is not gathered
        return size * (ranks - 1) / ranks * run.micro_batches

    def of_state(parameters: int, ranks: int) -> float:
        reductions = 1 if run.device == GPU else 2
        return parameters * (reductions * MAIN_GRADIENT + run.itemsize) * (ranks - 1) / ranks

    boundary = 2 * sizes(HIDDEN) + (scored(HIDDEN) if scored else 0.0)
    experts = trained_experts(run, 0)
    split = layout.expert_split if run.shape.experts else 1
    return Communication(
        tensor=of_group("tensor", layout.tensor) + of_group("expert tensor", split),
        context=of_group("context", layout.context),
        pipeline=boundary / (layout.tensor if layout.sequence else 1) * run.micro_batches * (layout.pipeline > 1),
        data=of_state(trained_parameters(run, 0) - experts, layout.data * layout.context)
        + of_state(experts, layout.expert_data),
        expert=of_group("expert", layout.expert),
    )
