"""Communication volume: bytes that one rank sends in a training step, by process group."""

from __future__ import annotations

from dataclasses import dataclass

from solopo_nemo.planning.layout import Share
from solopo_nemo.planning.parameters import StageParameters
from solopo_nemo.planning.run import GPU, Run
from solopo_nemo.planning.sizes import Sizes
from solopo_nemo.planning.state import MAIN_GRADIENT


@dataclass(frozen=True)
class Communication:
    """Bytes that one rank sends in one optimizer step. Collectives are counted as ring algorithms.

    Attributes:
        tensor: bytes to tensor-parallel ranks.
        context: bytes to context-parallel ranks.
        pipeline: bytes to the neighbouring stages.
        data: bytes of the reduce-scatter of gradients and the all-gather of weights, to data- and context-parallel
            ranks.
    """

    tensor: float
    context: float
    pipeline: float
    data: float


def communication(run: Run) -> Communication:
    """The communication of the rank that sends most in one optimizer step."""
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
    """Bytes of tensor parallelism for one layer and micro-batch.

    ``again`` is the share of forward that backward recomputes: one half if it recomputes the MLP only.

    One unit is ``(t - 1) / t * T * h * e``: an all-gather or reduce-scatter of the hidden states sends one unit, and an
    all-reduce sends two. Forward has two all-reduces, or two all-gathers and two reduce-scatters under sequence
    parallelism: four units in both cases. Backward has the same four units. Sequence parallelism adds two all-gathers,
    for the inputs of the two column-parallel linear layers.
    """
    unit = (z.t - 1) / z.t * z.T * z.h * z.e
    return unit * (4 + 4 * again + 4 + 2 * (z.s > 1))


def _context(z: Sizes, again: bool) -> float:
    """Bytes of context parallelism for one layer and micro-batch.

    - ``p2p``: forward sends keys and values ``c - 1`` times. Backward sends them and their gradients.
    - ``a2a``: forward sends ``(c - 1) / c`` of the rank's queries, keys, values and output. Backward sends their
      gradients.
    """
    if z.c == 1:
        return 0.0
    forward: float = (z.c - 1) * z.T * 2 * z.k * z.e
    backward = 2 * forward
    if z.mode == "a2a":
        forward = backward = (z.c - 1) / z.c * z.T * 2 * (z.a + z.k) * z.e
    return forward * (1 + again) + backward
