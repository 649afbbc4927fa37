"""Batches of random scores, and objectives that users bring, which go through the tests of the built-in ones."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from solopo_nemo.objectives import SEQUENCES, Objective, SequenceScores, number, register

# SOLOPO_PLUGINS=my_package.my_po,... puts users' own objectives under the bound test.
for plugin in filter(None, os.environ.get("SOLOPO_PLUGINS", "").split(",")):
    importlib.import_module(plugin)


@register("exponential")
class Exponential(Objective):
    """exp(-beta * (logp_w - logp_l)): what a user's own objective looks like."""

    bound_constant = 1.0
    beta: float = number(0.1, "scale of the reward, per nat", above=0.0)

    def reward(self, scores: SequenceScores, reference: Tensor) -> Tensor:
        return self.beta * scores.logp

    def f(self, z: Tensor) -> Tensor:
        return torch.exp(-z)

    def s(self, u: Tensor) -> Tensor:
        return torch.expm1(u)


Batch = tuple[dict[str, SequenceScores], dict[str, Tensor]]


@pytest.fixture
def batch() -> Callable[..., Batch]:
    """Scores of all four sequences for n samples: policy and reference, leaves that ask for gradients."""

    def make(n: int = 5, dtype: torch.dtype = torch.float64, seed: int = 0) -> Batch:
        generator = torch.Generator().manual_seed(seed)
        tokens = {answer: torch.randint(1, 9, (n,), generator=generator) for answer in ("chosen", "rejected")}

        def logp() -> Tensor:
            return -(0.2 + 12 * torch.rand(n, generator=generator, dtype=torch.float64)).to(dtype)

        policy = {
            name: SequenceScores(logp().requires_grad_(), tokens[name.removeprefix("short_").removeprefix("long_")])
            for name in SEQUENCES
        }
        return policy, {name: logp() for name in SEQUENCES}

    return make
