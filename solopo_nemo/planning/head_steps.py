"""Memory model of the response-only head (``solopo_nemo/core/head.py``), for all devices."""

from __future__ import annotations

from solopo_nemo.planning.sizes import Sizes
from solopo_nemo.planning.timeline import Step, Tensor

VOCABULARY_TILE, GPU_VOCABULARY_TILE = 4096, 16384
"""Columns of a logits tile. ``solopo_nemo.core.head`` has the same constant; a test compares them."""


def forward(z: Sizes, gpu: bool = False) -> list[Step]:
    """Steps of the forward pass: select the scored positions, then score them in tiles of positions and vocabulary."""
    return [Step("head", z.tensors(head_rows=z.R * z.h * z.e, head_normalizers=z.R * 4), _tile(z, gpu))]


def backward(z: Sizes, gpu: bool = False) -> list[Step]:
    """Steps of the backward pass: recompute the logits in tiles. The weight gradient goes to Megatron's fp32 buffer."""
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
