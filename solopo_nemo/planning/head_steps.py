"""What the response-only head keeps and needs, on any device: ``solopo_nemo/core/head.py``."""

from __future__ import annotations

from solopo_nemo.planning.sizes import Sizes
from solopo_nemo.planning.timeline import Step, Tensor

VOCABULARY_TILE, GPU_VOCABULARY_TILE = 4096, 16384
"""Columns of the logits made at a time; ``solopo_nemo.core.head`` has the same, a test compares them."""


def forward(z: Sizes, gpu: bool = False) -> list[Step]:
    """Rows selected, then scored in tiles; no tensor of sequence length times vocabulary, none of rows times it."""
    return [Step("head", z.tensors(head_rows=z.R * z.h * z.e, head_normalizers=z.R * 4), _tile(z, gpu))]


def backward(z: Sizes, gpu: bool = False) -> list[Step]:
    """The logits once more, in tiles; the weight's gradient is added to Megatron's buffer, where it is fp32."""
    works = _tile(z, gpu)
    if gpu:
        tile = min(GPU_VOCABULARY_TILE, z.v)
        works += (Tensor("gradient of a weight tile", tile * z.h * 4, "tile * h * 4"),)
    return [
        Step("head backward", z.tensors(row_gradients=z.R * z.h * 4), works),
        Step("rows scored", drops=("row gradients", "head rows", "head normalizers")),
    ]


def _tile(z: Sizes, gpu: bool) -> tuple[Tensor, ...]:
    tile = min(GPU_VOCABULARY_TILE if gpu else VOCABULARY_TILE, z.v)
    return (Tensor("logits tile", z.C * tile * (z.e + 4 * (z.e != 4)), "C * tile * e, and fp32"),)
