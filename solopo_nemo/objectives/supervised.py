"""The supervised fine-tuning (SFT) baseline on the chosen response."""

# ruff: noqa: D102 (the base class documents the methods, the class docstring holds the formula)

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from solopo_nemo.objectives.base import UnalignedObjective
from solopo_nemo.objectives.registry import register
from solopo_nemo.objectives.scores import SequenceScores
from solopo_nemo.runtime.options import fixed


@register("sft")
class SFT(UnalignedObjective):
    """``-logp(x, y_w) / tokens(y_w)``: the NLL per response token, averaged over the samples.

    ``prompt`` selects SFT-short or SFT-long ("the specification", section 3). Every sample has the same weight,
    whatever its length. The reward is the mean log-probability of the chosen response, and ``f(z) = -z``.
    """

    nll_weight: float = fixed(0.0)
    label_smoothing: float = fixed(0.0)

    @property
    def sequences(self) -> tuple[str, ...]:
        return (f"{self.prompt}_chosen",)

    def reward(self, scores: SequenceScores, reference: Tensor) -> Tensor:
        return scores.average

    def f(self, z: Tensor) -> Tensor:
        return -z

    def evaluate(
        self, policy: Mapping[str, SequenceScores], reference: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        scores = policy[f"{self.prompt}_chosen"]
        nll = -scores.average
        return nll, {"loss/nll": nll, "logps/chosen": scores.logp}
