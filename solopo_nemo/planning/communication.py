"""Bytes that one rank sends in a training step, by process group."""

from __future__ import annotations

from dataclasses import dataclass

from solopo_nemo.planning.layout import Share
from solopo_nemo.planning.parameters import StageParameters
from solopo_nemo.planning.run import GPU, Run
from solopo_nemo.planning.sizes import Sizes
from solopo_nemo.planning.state import MAIN_GRADIENT


@dataclass(frozen=True)
class Communication:
    """Bytes sent by one rank in one optimizer step, collectives counted as rings.

    Attributes:
        tensor: between the tensor-parallel ranks.
        context: between the context-parallel ranks.
        pipeline: to the neighbouring stages.
        data: gradients scattered and weights gathered, between the data- and context-parallel ranks together.
    """

    tensor: float
    context: float
    pipeline: float
    data: float


def communication(run: Run) -> Communication:
    """What the busiest rank sends in one optimizer step."""
    layout = run.layout
    share = Share.of(run.workload.policy, run.micro_batch, layout)
    z = Sizes.of(run.shape, layout, share, run.logits_chunk_size, run.itemsize)
    layers = run.shape.num_hidden_layers // layout.pipeline
    again, selective = float(run.recompute == "full"), run.recompute == "selective"
    parameters = StageParameters.of(run.shape, layout.tensor, layout.pipeline, 0).total
    ranks = layout.data * layout.context
    return Communication(
        tensor=_tensor(z, again or 0.5 * (selective and run.device == GPU)) * layers * run.micro_batches,
        context=_context(z, bool(again) or (selective and run.device != GPU)) * layers * run.micro_batches,
        pipeline=2.0 * z.T * z.h / z.s * z.e * run.micro_batches * (layout.pipeline > 1),
        data=parameters * (MAIN_GRADIENT + run.itemsize) * (ranks - 1) / ranks,
    )


def _tensor(z: Sizes, again: float) -> float:
    """One layer and micro-batch; ``again`` is the part of forward that backward repeats, half of it for the MLP alone.

    A gather or a scatter of the hidden states sends ``(t - 1) / t * T * h * e``, an all-reduce twice that. Forward has
    two all-reduces, or two gathers and two scatters under sequence parallelism: four units either way. Backward has the
    same four, and two more gathers under sequence parallelism: the inputs of the two column-parallel products.
    """
    unit = (z.t - 1) / z.t * z.T * z.h * z.e
    return unit * (4 + 4 * again + 4 + 2 * (z.s > 1))


def _context(z: Sizes, again: bool) -> float:
    """One layer and micro-batch.

    ``p2p``: keys and values pass ``c - 1`` times in forward, with their gradients twice that in backward. ``a2a``:
    queries, keys, values and output, each ``(c - 1) / c`` of a rank's share, and their gradients.
    """
    if z.c == 1:
        return 0.0
    forward: float = (z.c - 1) * z.T * 2 * z.k * z.e
    backward = 2 * forward
    if z.mode == "a2a":
        forward = backward = (z.c - 1) / z.c * z.T * 2 * (z.a + z.k) * z.e
    return forward * (1 + again) + backward
