"""Floating-point operations of a sample: objectives.md section 6, exact for the length of each sequence.

A multiplication and an addition are two operations. Norms, activations, rotary embedding and softmax are not counted.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from solopo_nemo.planning.parameters import LayerParameters
from solopo_nemo.planning.shape import ModelShape
from solopo_nemo.planning.workload import Sequence, Workload

BACKWARD_OVER_FORWARD = 2
"""Each product has two gradients of the same size. For attention too, as is the custom of model FLOPs utilisation,
though flash kernels form the scores once more."""


@dataclass(frozen=True)
class Flops:
    """Operations, by where they are spent.

    Attributes:
        linear: the layers' matrix products.
        attention: scores and weighted values, causal half only.
        head: the language-model head, on the rows that it scores.
    """

    linear: float = 0.0
    attention: float = 0.0
    head: float = 0.0

    @property
    def total(self) -> float:
        """All of them."""
        return self.linear + self.attention + self.head

    def __add__(self, other: Flops) -> Flops:
        return Flops(self.linear + other.linear, self.attention + other.attention, self.head + other.head)

    def __mul__(self, factor: float) -> Flops:
        return Flops(self.linear * factor, self.attention * factor, self.head * factor)


def _qkv_width(shape: ModelShape) -> int:
    return shape.query_size + 2 * shape.kv_size


def forward_flops(shape: ModelShape, sequence: Sequence) -> Flops:
    """One forward pass over one sequence of ``S`` input tokens and ``R`` scored rows.

    ``linear = 2 * S * layers * (qkv + proj + fc1 + fc2 weights)``, ``attention = 2 * S^2 * a * layers`` (two products
    of ``2 * S^2 * a`` each, of which the causal mask leaves half), ``head = 2 * R * v * h``.

    Args:
        shape: of the model.
        sequence: its lengths.
    """
    layer = LayerParameters.of(shape)
    weights = layer.total - layer.norms - _qkv_width(shape) * shape.qkv_bias
    return Flops(
        linear=2.0 * sequence.inputs * weights * shape.num_hidden_layers,
        attention=2.0 * sequence.inputs**2 * shape.query_size * shape.num_hidden_layers,
        head=2.0 * sequence.rows * shape.vocab_size * shape.hidden_size,
    )


def model_flops(shape: ModelShape, sequences: Iterable[Sequence]) -> Flops:
    """Forward and backward of sequences, nothing computed twice: what model FLOPs utilisation counts."""
    forward = sum((forward_flops(shape, sequence) for sequence in sequences), Flops())
    return forward * (1 + BACKWARD_OVER_FORWARD)


def hardware_flops(
    shape: ModelShape, workload: Workload, recompute: str, online_reference: bool = False, gpu: bool = True
) -> Flops:
    """What the hardware computes for one sample: model FLOPs, what is computed again in backward, and the reference.

    Args:
        shape: of the model.
        workload: the sample's sequences.
        recompute: ``none``, ``selective`` (on a GPU the MLP again, on a CPU core attention) or ``full`` (every layer
            again). The head forms its logits again in backward in any case.
        online_reference: whether the frozen reference policy runs in every step rather than once before the first.
        gpu: the run computes on GPUs.
    """
    layer, selective = LayerParameters.of(shape), recompute == "selective"
    mlp = (layer.fc1 + layer.fc2) / (layer.fc1 + layer.fc2 + layer.proj + shape.hidden_size * _qkv_width(shape))
    forward = sum((forward_flops(shape, sequence) for sequence in workload.policy), Flops())
    again = Flops(
        linear=forward.linear * (mlp * (selective and gpu) + (recompute == "full")),
        attention=forward.attention * ((selective and not gpu) or recompute == "full"),
        head=forward.head,
    )
    reference = workload.reference if online_reference else ()
    frozen = sum((forward_flops(shape, sequence) for sequence in reference), Flops())
    return forward * (1 + BACKWARD_OVER_FORWARD) + again + frozen
