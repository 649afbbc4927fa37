"""What the response-only head keeps and needs, on any device: ``solopo_nemo/core/head.py``."""

from __future__ import annotations

from solopo_nemo.planning.sizes import Sizes
from solopo_nemo.planning.timeline import Step, Tensor

VOCABULARY_TILE = 4096
"""Columns of the logits made at a time; ``solopo_nemo.core.head`` has the same, a test compares them."""


def forward(z: Sizes) -> list[Step]:
    """Rows selected, then scored in tiles; no tensor of sequence length times vocabulary, none of rows times it."""
    return [Step("head", z.tensors(head_rows=z.R * z.h * z.e, head_normalizers=z.R * 4), _tile(z))]


def backward(z: Sizes) -> list[Step]:
    """The logits once more, in tiles; the weight's gradient is added to Megatron's buffer, where it is fp32."""
    return [
        Step("head backward", z.tensors(row_gradients=z.R * z.h * 4), _tile(z)),
        Step("rows scored", drops=("row gradients", "head rows", "head normalizers")),
    ]


def _tile(z: Sizes) -> tuple[Tensor, ...]:
    tile = min(VOCABULARY_TILE, z.v)
    return (Tensor("logits tile", z.C * tile * (z.e + 4 * (z.e != 4)), "C * tile * e, and fp32"),)
