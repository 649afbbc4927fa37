"""What a loss does to the log-probability of an answer: forces, straight from the objectives by autograd.

The force on a log-probability is minus the loss's derivative: positive pushes it up. With both sides of the alignment
free, ``alpha * |R_short - R_long|`` pulls the short side down as hard as it pushes the long side up, for as long as
there is a gap, while what the rest of the loss pushes up with fades as its margin grows. The critical alpha is where
the two are equal on the chosen answer of the short prompt; the lasting one, where they are once the margin is won.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from solopo_nemo.objectives import Objective, ObjectiveOutput, SequenceScores

Loss = Callable[[Mapping[str, SequenceScores], Mapping[str, Tensor] | None], ObjectiveOutput]
WON = -1000.0
"""Nats of a rejected answer that has lost for good."""
HELD_UP = "short_chosen"
"""The sequence that the alignment must not ruin."""


def forces(
    objective: Objective, policy: Mapping[str, SequenceScores], reference: Mapping[str, Tensor] | None
) -> dict[str, dict[str, Tensor]]:
    """Minus the derivative of each sample's two terms with respect to its log-probabilities, ``[n]`` per nat.

    Args:
        objective: that aligns.
        policy: scores of its sequences.
        reference: as the objective wants it.

    Returns:
        By term (``rest``, and ``alignment`` before its weight alpha), then by sequence.
    """
    leaves = {name: scores.logp.detach().requires_grad_() for name, scores in policy.items()}
    scored = {name: SequenceScores(leaf, policy[name].tokens) for name, leaf in leaves.items()}
    terms: dict[str, Loss] = {"rest": replace(objective, alpha=0.0), "alignment": objective.alignment}
    found = {}
    for term, loss in terms.items():
        per_sample = loss(scored, reference).per_sample.sum()
        found[term] = dict(
            zip(
                leaves,
                torch.autograd.grad(-per_sample, list(leaves.values()), materialize_grads=True, allow_unused=True),
                strict=True,
            )
        )
    return found


def critical_alpha(
    objective: Objective, policy: Mapping[str, SequenceScores], reference: Mapping[str, Tensor] | None
) -> float:
    """The alpha above which the alignment pulls the short chosen answer down harder than the rest pushes it up.

    Forces are compared where they act: on a token's logit, whose log-probability moves by ``1 - p``. An answer that is
    certain feels little of a force on its log-probability, but all of one on its log-odds.

    Returns:
        Infinite where the alignment does not pull down, as with ``detach_short``; 0 where nothing pushes up.
    """
    found = forces(objective, policy, reference)
    certain = policy[HELD_UP].average.detach().exp()
    up, down = (((1 - certain) * found[term][HELD_UP]).sum().item() for term in ("rest", "alignment"))
    return math.inf if down >= 0 else max(up, 0.0) / -down


def lasting_alpha(
    objective: Objective, policy: Mapping[str, SequenceScores], reference: Mapping[str, Tensor] | None
) -> float:
    """The critical alpha of a policy whose margin is won and whose short answer has sunk as far as it may.

    The margin can be won by the rejected answer alone, and the push of a loss of differences is then gone. What is left
    has to hold the chosen answer where its tokens have a probability of one half: greedy decoding still says it there.

    Args:
        objective: that aligns.
        policy: scores, which give the gap.
        reference: as the objective wants it.
    """
    short = policy[HELD_UP]
    sunk = math.log(0.5) * short.tokens.to(short.logp.dtype)
    late = {name: SequenceScores(sunk + scores.logp - short.logp, scores.tokens) for name, scores in policy.items()}
    late["short_rejected"] = SequenceScores(torch.full_like(sunk, WON), policy["short_rejected"].tokens)
    return critical_alpha(objective, late, reference)


def aligned_gap(
    objective: Objective, policy: Mapping[str, SequenceScores], reference: Mapping[str, Tensor] | None
) -> float:
    """Mean gap between the two sides in nats a token, on the scale on which the objective aligns them.

    Log-probabilities, or log-odds with ORPO: one is a unit of the other where a token is improbable.
    """
    gap = objective.alignment(policy, reference).metrics["align/gap"]
    tokens = policy[HELD_UP].tokens
    unlikely = {name: SequenceScores(-50.0 * tokens.double(), tokens) for name in policy}
    unlikely["long_chosen"] = SequenceScores(-51.0 * tokens.double(), tokens)
    return float(gap / objective.alignment(unlikely, reference).metrics["align/gap"])
