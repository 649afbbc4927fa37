"""Supervised fine-tuning on the chosen response, a baseline."""

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
    """``-logp(x, y_w) / tokens(y_w)``: the NLL per response token, then the mean over the samples.

    SFT-short and SFT-long by ``prompt`` ("the specification", section 3). Every sample weighs the same, whatever its
    length. As an objective: ``f(z) = -z`` of the reward ``avg`` of the chosen response alone.
    """

    nll_weight: float = fixed(0.0)

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
