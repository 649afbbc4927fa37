"""The LongPO baseline: DPO on the long prompt, with the reference policy scored on the short prompt."""

# ruff: noqa: D102 (the base class documents the methods, the class docstring holds the formula)

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from solopo_nemo.objectives.base import UnalignedObjective
from solopo_nemo.objectives.registry import register
from solopo_nemo.objectives.scores import SequenceScores
from solopo_nemo.runtime.options import fixed, number


@register("longpo")
class LongPO(UnalignedObjective):
    """``-logsigmoid(r_w - r_l) + nll_weight * NLL`` with ``r = beta * (logp(x_long, y) - ref(x_short, y))``.

    LongPO (Chen et al. 2025, arXiv 2502.13922); "the specification", section 3. The NLL is the loss per token of
    ``y_w`` on the long prompt. Its default weight 1 is this project's choice; the paper's value is not known here.
    """

    needs_reference = True

    beta: float = number(0.1, "scale of the reward, per nat", above=0.0)
    nll_weight: float = number(1.0, "weight of the NLL of the chosen response, per token", minimum=0.0)
    prompt: str = fixed("long")

    @property
    def reference_prompt(self) -> str:
        return "short"

    def reward(self, scores: SequenceScores, reference: Tensor) -> Tensor:
        return self.beta * (scores.logp - reference)

    def f(self, z: Tensor) -> Tensor:
        return -F.logsigmoid(z)
