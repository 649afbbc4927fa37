"""The preference objectives of the SoLoPO family: DPO, SimPO, ORPO, IPO and SLiC."""

# ruff: noqa: D102 (the base class documents the methods, the class docstring holds the formula)

from __future__ import annotations

import math

from torch import Tensor
from torch.nn import functional as F

from solopo_nemo.objectives.base import Objective
from solopo_nemo.objectives.numerics import log_odds
from solopo_nemo.objectives.registry import register
from solopo_nemo.objectives.scores import SequenceScores
from solopo_nemo.runtime.options import number


@register("dpo")
class DPO(Objective):
    """``-logsigmoid(beta * [(logp_w - ref_w) - (logp_l - ref_l)])``, aligned on ``beta * logp``.

    DPO (Rafailov et al. 2023, equation 7); SoLo-DPO: "the specification", section 2. The default of alpha is the
    paper's value for Qwen2.5-7B.
    """

    needs_reference = True
    bound_constant = math.log(2.0)

    beta: float = number(0.1, "scale of the reward, per nat", above=0.0)

    def reward(self, scores: SequenceScores, reference: Tensor) -> Tensor:
        return self.beta * (scores.logp - reference)

    def f(self, z: Tensor) -> Tensor:
        return -F.logsigmoid(z)


@register("simpo")
class SimPO(Objective):
    """``-logsigmoid(beta * avg_w - beta * avg_l - gamma)`` with ``avg = logp / tokens``, aligned on ``beta * avg``.

    SimPO (Meng et al. 2024, equation 6); SoLo-SimPO: "the specification", section 2.
    """

    bound_constant = math.log(2.0)

    beta: float = number(2.0, "scale of the reward, per nat and token", above=0.0)
    gamma: float = number(1.0, "target margin between the rewards of the chosen and the rejected response", minimum=0.0)

    @property
    def target_margin(self) -> float:
        return self.gamma

    def reward(self, scores: SequenceScores, reference: Tensor) -> Tensor:
        return self.beta * scores.average

    def f(self, z: Tensor) -> Tensor:
        return -F.logsigmoid(z)


@register("orpo")
class ORPO(Objective):
    """``-avg_w - lambda_ * logsigmoid(logodds_w - logodds_l)``, aligned on ``logodds = avg - log(1 - exp(avg))``.

    ORPO (Hong et al. 2024); SoLo-ORPO: "the specification", section 2. The first term is the NLL with ``nll_weight=1``.
    ``lambda_`` scales the odds-ratio term only.
    """

    bound_constant = math.log(2.0)

    lambda_: float = number(0.1, "weight of the odds-ratio term", minimum=0.0)
    nll_weight: float = number(1.0, "weight of the NLL of the chosen response, per token", minimum=0.0)

    @property
    def po_weight(self) -> float:
        return self.lambda_

    def reward(self, scores: SequenceScores, reference: Tensor) -> Tensor:
        return log_odds(scores.average)

    def f(self, z: Tensor) -> Tensor:
        return -F.logsigmoid(z)


@register("ipo")
class IPO(Objective):
    """``(beta * [(logp_w - ref_w) - (logp_l - ref_l)] - 1)^2``, aligned on ``beta * logp`` with ``s(u) = u^2``.

    IPO (Azar et al. 2023) with ``beta = 2 * tau``, multiplied by ``beta^2``; SoLo-IPO: "the specification",
    section 2. The reward is ``logp - ref`` and ``eta = beta``. ``(z - 1)^2 <= 2 z^2 + 2`` gives k = 2; alpha absorbs k.
    """

    needs_reference = True
    bound_constant = 2.0
    bound_factor = 2.0

    beta: float = number(0.1, "scale of z against the reward, per nat; 2 tau of the paper", above=0.0)

    @property
    def eta(self) -> float:
        return self.beta

    def reward(self, scores: SequenceScores, reference: Tensor) -> Tensor:
        return scores.logp - reference

    def f(self, z: Tensor) -> Tensor:
        return (z - 1.0).square()

    def s(self, u: Tensor) -> Tensor:
        return u.square()


@register("slic")
class SLiC(Objective):
    """``max(0, 1 - beta * (logp_w - logp_l))``, aligned on ``beta * logp``.

    SLiC-HF (Zhao et al. 2023); SoLo-SLiC: "the specification", section 2. ``nll_weight`` is the weight of its
    regularizer.
    """

    bound_constant = 1.0

    beta: float = number(1.0, "scale of the reward, per nat", above=0.0)

    def reward(self, scores: SequenceScores, reference: Tensor) -> Tensor:
        return self.beta * scores.logp

    def f(self, z: Tensor) -> Tensor:
        return F.relu(1.0 - z)
