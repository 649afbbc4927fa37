"""The rotation of queries and keys in blocks, against its formula on whole tensors: equal to the bit."""

from __future__ import annotations

import pytest
import torch

from solopo_nemo.core.layers.blockwise import BLOCK
from solopo_nemo.core.layers.rotary import _Rotate


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [1, BLOCK, 2 * BLOCK + 5])
def test_equals_the_formula(tokens: int, dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(0)
    x, grad = (torch.randn(tokens, 1, 3, 8, generator=g).to(dtype) for _ in range(2))
    angles = torch.randn(tokens, 4, generator=g)
    cos, sin = angles.cos()[:, None, None], angles.sin()[:, None, None]
    kept = x.requires_grad_()
    turned = _Rotate.apply(kept, torch.stack((angles.cos(), angles.sin())))
    turned.backward(grad)
    (first, second), (d_first, d_second) = x.detach().chunk(2, -1), grad.chunk(2, -1)
    assert torch.equal(turned, torch.cat((first * cos - second * sin, second * cos + first * sin), -1).to(dtype))
    back = torch.cat((d_first * cos + d_second * sin, d_second * cos - d_first * sin), -1)
    assert torch.equal(kept.grad, back.to(dtype))
