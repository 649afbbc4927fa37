"""Floating-point operations of a sample, exact for the length of each sequence ("the specification", section 6).

A multiply-add counts as two operations. Norms, activations, rotary embedding and softmax are not counted.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from solopo_nemo.planning.run import GPU, Run
from solopo_nemo.planning.shape import ModelShape
from solopo_nemo.planning.workload import Sequence

BACKWARD_OVER_FORWARD = 2
"""Each matrix product has two gradient products of the same size. Attention is counted in the same way, as is usual for
model FLOPs utilisation, although flash kernels recompute the scores."""


@dataclass(frozen=True)
class Flops:
    """Operation counts by part of the model.

    Attributes:
        linear: linear layers of the transformer layers.
        attention: attention scores and weighted values, causal half only.
        head: language-model head, on the scored positions only.
    """

    linear: float = 0.0
    attention: float = 0.0
    head: float = 0.0

    @property
    def total(self) -> float:
        """The sum of all parts."""
        return self.linear + self.attention + self.head

    def __add__(self, other: Flops) -> Flops:
        return Flops(self.linear + other.linear, self.attention + other.attention, self.head + other.head)

    def __mul__(self, factor: float) -> Flops:
        return Flops(self.linear * factor, self.attention * factor, self.head * factor)


def _qkv_width(shape: ModelShape) -> int:
    return shape.query_size + 2 * shape.kv_size


def _mlp_width(shape: ModelShape, experts: bool) -> int:
    """Weights of a layer's MLP that a token passes, for each channel of the hidden states."""
    if not experts or shape.experts is None:
        return 3 * shape.intermediate_size
    return 3 * shape.experts.chosen * shape.experts.size + shape.experts.count


def forward_flops(shape: ModelShape, sequence: Sequence) -> Flops:
    """FLOPs of a forward pass over one sequence with ``S`` input tokens and ``R`` scored positions.

    - ``linear = 2 * S * layers * (qkv + proj + fc1 + fc2 weights)``, of experts the weights that a token is sent to
    - ``attention = 2 * S^2 * a * layers``: two products of ``2 * S^2 * a``, half of which the causal mask removes; of a
      layer with a sliding window of ``w < S`` tokens ``2 * (S^2 - (S - w)^2) * a``.
    - ``head = 2 * R * v * h``

    Args:
        shape: shape of the model.
        sequence: lengths of the sequence.
    """
    layers = shape.experts.layers if shape.experts else (False,) * shape.num_hidden_layers
    widths = sum(_mlp_width(shape, experts) for experts in layers)
    widths += len(layers) * (_qkv_width(shape) + shape.query_size)
    window, slides = shape.attention_window or (0, [])
    unseen = np.maximum(sequence.inputs - window, 0) ** 2 * sum(slides)
    return Flops(
        linear=2.0 * sequence.inputs * widths * shape.hidden_size,
        attention=2.0 * (sequence.inputs**2 * shape.num_hidden_layers - unseen) * shape.query_size,
        head=2.0 * sequence.rows * shape.vocab_size * shape.hidden_size,
    )


def model_flops(shape: ModelShape, sequences: Iterable[Sequence], frozen: bool = False) -> Flops:
    """FLOPs of forward and backward without recomputation, as counted in model FLOPs utilisation.

    With ``frozen`` weights a linear layer and the head have one gradient product, that of their input.
    """
    forward = sum((forward_flops(shape, sequence) for sequence in sequences), Flops())
    trained = forward * (1 + BACKWARD_OVER_FORWARD)
    return replace(trained, linear=2 * forward.linear, head=2 * forward.head) if frozen else trained


def hardware_flops(run: Run) -> Flops:
    """FLOPs of one sample on the hardware: model FLOPs, recomputation in backward, and the reference policy.

    ``selective`` recomputes the MLP on a GPU and core attention on a CPU, ``full`` every layer. The head always
    recomputes its logits in backward. A reference policy that ran before training is not counted.
    """
    shape, workload, recompute, adapters = run.shape, run.workload, run.recompute, run.adapter_weights
    selective, gpu, own = recompute == "selective", run.device == GPU, _mlp_width(shape, shape.experts is not None)
    mlp = own / (own + shape.query_size + _qkv_width(shape))
    forward = sum((forward_flops(shape, sequence) for sequence in workload.policy), Flops())
    again = Flops(
        linear=forward.linear * (mlp * (selective and gpu) + (recompute == "full")),
        attention=forward.attention * ((selective and not gpu) or recompute == "full"),
        head=forward.head,
    )
    reference = workload.reference if run.online_reference else ()
    frozen = sum((forward_flops(shape, sequence) for sequence in reference), Flops())
    tokens = sum(sequence.inputs for sequence in workload.policy)
    products = 1 + BACKWARD_OVER_FORWARD + (recompute == "full")
    beside = Flops(linear=2.0 * tokens * (adapters or 0) * shape.num_hidden_layers * products)
    return model_flops(shape, workload.policy, adapters is not None) + again + frozen + beside
