"""Length-normalized DPO (as in Tulu 3, arXiv 2411.15124): an objective of one's own, used with +plugins=[my_po]."""

import math

from torch import Tensor
from torch.nn import functional as F

from solopo_nemo.objectives import Objective, SequenceScores, number, register


@register("ln_dpo")
class LengthNormalizedDPO(Objective):
    """``-logsigmoid(r_w - r_l)`` with ``r = beta * (logp - ref) / tokens``, aligned on ``beta * logp / tokens``."""

    needs_reference = True
    bound_constant = math.log(2.0)  # -logsigmoid(z) <= |z| + ln 2

    beta: float = number(5.0, "scale of the reward, per nat and token", above=0.0)

    def reward(self, scores: SequenceScores, reference: Tensor) -> Tensor:
        """How much likelier a token is than under the reference, on average."""
        return self.beta * (scores.logp - reference) / scores.tokens

    def f(self, z: Tensor) -> Tensor:
        """The logistic loss of the reward margin."""
        return -F.logsigmoid(z)
