"""Preference objectives: functions from sequence scores to a loss and metrics. The package depends on torch only.

For example::

    objective = build_objective("dpo", beta=0.1, alpha=3.0, align="chosen")
    out = objective(policy={name: SequenceScores(logp, tokens) for name in objective.sequences}, reference={...})
    out.loss.backward()

The methods that the paper compares ("the specification", section 3):

===================  =======================================================================
SoLo-PO              ``build_objective("dpo")``, also simpo, orpo, ipo, slic
SoLo-PO, both        ``align="both"``
SoLo-KL              ``align_on="logp"``
Short-PO             ``align="none"``
Long-PO, Expand-     ``align="none", prompt="long"`` (the data makes the difference)
LongPO               ``build_objective("longpo")``
SFT                  ``build_objective("sft", prompt="short")`` or ``"long"``
===================  =======================================================================

A new objective is a registered class::

    @register("exponential")
    class Exponential(Objective):
        \"\"\"exp(-beta * (logp_w - logp_l)).\"\"\"

        bound_constant = 1.0
        beta: float = number(0.1, "scale of the reward, per nat", above=0.0)

        def reward(self, scores, reference):
            return self.beta * scores.logp

        def f(self, z):
            return torch.exp(-z)

        def s(self, u):
            return torch.expm1(u)
"""

from solopo_nemo.objectives.base import Objective, UnalignedObjective
from solopo_nemo.objectives.distances import DISTANCES, Distance
from solopo_nemo.objectives.longpo import LongPO
from solopo_nemo.objectives.numerics import log1mexp, log_odds
from solopo_nemo.objectives.preference import DPO, IPO, ORPO, SimPO, SLiC
from solopo_nemo.objectives.registry import available_objectives, build_objective, objective_class, register
from solopo_nemo.objectives.scores import SEQUENCES, ObjectiveOutput, SequenceScores
from solopo_nemo.objectives.supervised import SFT
from solopo_nemo.runtime.options import choice, flag, number, option_fields

__all__ = [
    "DISTANCES",
    "DPO",
    "IPO",
    "ORPO",
    "SEQUENCES",
    "SFT",
    "Distance",
    "LongPO",
    "Objective",
    "ObjectiveOutput",
    "SLiC",
    "SequenceScores",
    "SimPO",
    "UnalignedObjective",
    "available_objectives",
    "build_objective",
    "choice",
    "flag",
    "log1mexp",
    "log_odds",
    "number",
    "objective_class",
    "option_fields",
    "register",
]
