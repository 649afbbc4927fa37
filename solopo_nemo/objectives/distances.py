"""Distances ``D(a, b)`` between the short and the long reward, with the constants of their bounds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Distance:
    """A distance with ``|a - b| <= c1 * D(a, b) + c2`` for all real a, b (SoLoPO, Theorem 2).

    Attributes:
        function: ``D``; maps two tensors ``[n]`` to one tensor ``[n]``.
        c1: Scale, above 0.
        c2: Offset.
    """

    function: Callable[[Tensor, Tensor], Tensor]
    c1: float
    c2: float

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """Computes ``D(a, b)``, elementwise."""
        return self.function(a, b)


def absolute(_delta: float) -> Distance:
    """``|a - b|``, the distance of the paper."""
    return Distance(lambda a, b: (a - b).abs(), c1=1.0, c2=0.0)


def squared(_delta: float) -> Distance:
    """``(a - b)^2``; ``|u| <= u^2 + 1/4`` since ``(|u| - 1/2)^2 >= 0``."""
    return Distance(lambda a, b: (a - b).square(), c1=1.0, c2=0.25)


def huber(delta: float) -> Distance:
    """``u^2 / 2`` up to ``|u| = delta`` and ``delta * (|u| - delta/2)`` beyond, with ``u = a - b``.

    ``|u| = D/delta + delta/2`` beyond delta, and ``(|u| - delta)^2 >= 0`` gives the same bound inside.
    """
    return Distance(lambda a, b: F.huber_loss(a, b, reduction="none", delta=delta), c1=1.0 / delta, c2=delta / 2)


DISTANCES: dict[str, Callable[[float], Distance]] = {"abs": absolute, "squared": squared, "huber": huber}
"""Value of ``objective.distance`` -> function from ``objective.huber_delta`` to the distance. Users can add entries."""
