"""Communication volume: bytes that one rank sends in a training step, by process group."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from solopo_nemo.planning.run import GPU, Run
from solopo_nemo.planning.state import MAIN_GRADIENT, trained_parameters
from solopo_nemo.planning.traced import Formula, Kind, Sizes, traced_step

BOUNDARY = Formula("2*T*h*e")
"""Bytes that a micro-batch sends over the boundary of two pipeline stages: hidden states, and their gradients."""


@dataclass(frozen=True)
class Communication:
    """Bytes that one rank sends in one optimizer step. Collectives are counted as ring algorithms.

    Attributes:
        tensor: bytes to tensor-parallel ranks.
        context: bytes to context-parallel ranks.
        pipeline: bytes to the neighbouring stages.
        data: bytes of the reduce-scatter of gradients (without a GPU an all-reduce, ``core/cpu_patches.py``) and the
            all-gather of weights, to data- and context-parallel ranks.
    """

    tensor: float
    context: float
    pipeline: float
    data: float


def _with_repeated_heads(run: Run) -> Run:
    """The run with as many K/V heads as all-to-all sends: repeated where there are fewer than ranks."""
    layout, groups = run.layout, run.shape.num_key_value_heads // run.layout.tensor
    if layout.context == 1 or layout.cp_comm_type != "a2a":
        return run
    repeat = layout.context // math.gcd(layout.context, groups)
    return replace(run, shape=replace(run.shape, num_key_value_heads=run.shape.num_key_value_heads * repeat))


def communication(run: Run) -> Communication:
    """The communication of the rank that sends most in one optimizer step, with embedding and head on each stage."""
    layout, sizes = run.layout, Sizes(_with_repeated_heads(run))
    sent = traced_step(Kind.of(run)).sent
    parameters = trained_parameters(run, 0)

    def of_group(name: str, ranks: int) -> float:
        return sizes(sent[name]) * (ranks - 1) / ranks * run.micro_batches if ranks > 1 else 0.0

    ranks, reductions = layout.data * layout.context, 1 if run.device == GPU else 2
    return Communication(
        tensor=of_group("tensor", layout.tensor),
        context=of_group("context", layout.context),
        pipeline=sizes(BOUNDARY)
        / (layout.tensor if layout.sequence else 1)
        * run.micro_batches
        * (layout.pipeline > 1),
        data=parameters * (reductions * MAIN_GRADIENT + run.itemsize) * (ranks - 1) / ranks,
    )
