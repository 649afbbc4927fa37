"""Measurements of the starting model before training: the gap between the two sides, and the angle of their gradients.

The force of a loss on a log-probability is the negative derivative of the loss; a positive force raises it. With both
sides of the alignment free, ``alpha * |R_short - R_long|`` lowers the short side with the same force with which it
raises the long side, as long as there is a gap. The force of the rest of the loss vanishes as the margin grows. At the
critical alpha, the two forces on the chosen answer of the short prompt are equal. The lasting alpha is the critical
alpha after the margin is reached.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from solopo_nemo.data.tokenize import TripletEncoder
from solopo_nemo.data.tokenizer_files import load_tokenizer
from solopo_nemo.data.triplets import Needs, read_triplets, sequence_columns
from solopo_nemo.objectives import Objective, ObjectiveOutput, SequenceScores, build_objective
from studies.collapse.cells import FORMS, OBJECTIVES

NAMES = ("short_chosen", "short_rejected", "long_chosen")
SAMPLES = 128
BATCH = 16
STEPS = 32
RATE = 1e-3

Samples = Sequence[Mapping[str, Sequence[int]]]
Loss = Callable[[Mapping[str, SequenceScores], Mapping[str, Tensor] | None], ObjectiveOutput]
WON = -1000.0
"""Log-probability in nats of a rejected answer with probability 0."""
HELD_UP = "short_chosen"
"""The sequence that the alignment must not degrade."""


@dataclass(frozen=True)
class StartFacts:
    """Measurements of the starting model on the pairs of one gap.

    Attributes:
        gap: length of the long context as a multiple of the short one.
        tokens: mean response length in tokens.
        logp_short, logp_long, logp_rejected: mean log-probability in nats of the chosen answer after the short and the
            long prompt, and of the rejected answer after the short prompt.
        ahead: share of the total gap from samples in which the long side has the higher log-probability.
        norm_short, norm_long: norms of the gradients of ``logp_short`` and ``logp_long``.
        cosine: cosine of the angle between these gradients.
        gaps: objective -> :func:`aligned_gap`.
        critical, lasting: objective -> :func:`critical_alpha` and :func:`lasting_alpha`, with both sides free.
    """

    gap: int
    tokens: float
    logp_short: float
    logp_long: float
    logp_rejected: float
    ahead: float
    norm_short: float
    norm_long: float
    cosine: float
    gaps: dict[str, float]
    critical: dict[str, float]
    lasting: dict[str, float]

    @property
    def carried(self) -> float:
        """Effect of a force on the long side on the short side, relative to the same force on the short side."""
        return self.cosine * self.norm_long / self.norm_short


@dataclass(frozen=True)
class Velocity:
    """Rates of change of the log-probability of the short chosen answer at one step.

    Attributes:
        step: step number, from 0.
        short, long: mean log-probability of the chosen answer in nats, after the short and the long prompt.
        rest, own, carried: change of ``short`` per unit of step from gradient descent on the rest of the loss, on the
            short side and on the long side of the alignment: the negative inner products of the gradients.
    """

    step: int
    short: float
    long: float
    rest: float
    own: float
    carried: float


@dataclass(frozen=True)
class Replay:
    """A short training with decomposed gradients.

    Attributes:
        objective, form: objective and form of the alignment, with alpha 1.
        gap: gap of the pairs.
        velocities: rates of change at every second step.
    """

    objective: str
    form: str
    gap: int
    velocities: list[Velocity]

    @property
    def halves(self) -> tuple[Velocity, Velocity]:
        """Means over the first and the second half of the steps."""
        middle = (len(self.velocities) + 1) // 2
        return _mean(self.velocities[:middle]), _mean(self.velocities[middle:])

    @property
    def down(self) -> int:
        """Number of steps at which the alignment in total lowers the short side."""
        return sum(v.own + v.carried < 0 for v in self.velocities)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Replay:
        """Create a replay from plain JSON values."""
        return cls(**{**values, "velocities": [Velocity(**v) for v in values["velocities"]]})


def _mean(velocities: Sequence[Velocity]) -> Velocity:
    rows = [astuple(velocity) for velocity in velocities]
    return Velocity(rows[0][0], *(sum(column) / len(rows) for column in list(zip(*rows, strict=True))[1:]))


def read_samples(start: Path, pairs: Path, count: int) -> Samples:
    """The first triplets of a file as token ids."""
    needs = Needs(NAMES)
    encoder = TripletEncoder(load_tokenizer(start))
    return encoder.encode(list(islice(read_triplets(pairs, needs), count)), needs)


def load_model(start: Path) -> Any:
    """The starting model, fp32, in training mode (it has no dropout)."""
    return AutoModelForCausalLM.from_pretrained(start, torch_dtype=torch.float32)


def score(model: Any, samples: Samples, names: Sequence[str] = NAMES) -> dict[str, SequenceScores]:
    """Summed log-probabilities of the responses, with gradient."""
    scores = {}
    for name in names:
        prompts, responses = ([torch.tensor(s[column]) for s in samples] for column in sequence_columns()[name])
        joined = [torch.cat(pair) for pair in zip(prompts, responses, strict=True)]
        inputs = torch.nn.utils.rnn.pad_sequence(joined, batch_first=True)
        counts = torch.tensor([len(r) for r in responses])
        # padding is at the end, so no scored token attends to it
        hidden = model.model(inputs[:, :-1]).last_hidden_state
        logp = []
        for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
            at = hidden[row, len(prompt) - 1 : len(prompt) + len(response) - 1]
            logp.append(model.lm_head(at).log_softmax(-1).gather(1, response[:, None]).sum())
        scores[name] = SequenceScores(torch.stack(logp), counts)
    return scores


def _gradient(value: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    parts = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True, materialize_grads=True)
    return torch.cat([part.flatten() for part in parts])


def _reference(scores: Mapping[str, SequenceScores]) -> dict[str, Tensor]:
    return {name: s.logp.detach() for name, s in scores.items()}


def measure_start(start: Path, pairs: Path, gap: int) -> StartFacts:
    """Measure the starting model on the pairs of a gap; see :class:`StartFacts`."""
    model, samples = load_model(start), read_samples(start, pairs, SAMPLES)
    scores = score(model, samples)
    short, rejected, long = (scores[name].logp for name in NAMES)
    parameters = list(model.parameters())
    of_short, of_long = (_gradient(logp.mean(), parameters) for logp in (short, long))
    tokens = scores["short_chosen"].tokens.double()
    reference = _reference(scores)
    return StartFacts(
        gap=gap,
        tokens=tokens.mean().item(),
        logp_short=short.mean().item(),
        logp_long=long.mean().item(),
        logp_rejected=rejected.mean().item(),
        ahead=((long - short).clamp(min=0).sum() / (short - long).abs().sum()).item(),
        norm_short=of_short.norm().item(),
        norm_long=of_long.norm().item(),
        cosine=(of_short @ of_long / (of_short.norm() * of_long.norm())).item(),
        gaps={name: aligned_gap(build_objective(name), scores, reference) for name in OBJECTIVES},
        critical={name: critical_alpha(build_objective(name), scores, reference) for name in OBJECTIVES},
        lasting={name: lasting_alpha(build_objective(name), scores, reference) for name in OBJECTIVES},
    )


def replay(start: Path, pairs: Path, name: str, form: str, gap: int) -> Replay:
    """Repeat a run of the map in plain PyTorch, and decompose the gradient at every second step.

    The settings are AdamW with a cosine schedule, batches of 16, gradient norm clipped to 1, and alpha 1.
    """
    objective = build_objective(name, alpha=1.0, **dict.fromkeys(FORMS[form].options, True))
    model, samples = load_model(start), read_samples(start, pairs, BATCH * STEPS)
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=RATE, betas=(0.9, 0.98), weight_decay=0.01)
    with torch.no_grad():
        reference = [_reference(score(model, part)) for part in _batches(samples)]
    velocities = []
    for step, (part, fixed) in enumerate(zip(_batches(samples), reference, strict=True)):
        warm, turn = min(1.0, (step + 1) / (0.1 * STEPS)), math.pi * step / STEPS
        optimizer.param_groups[0]["lr"] = RATE * warm * (1 + math.cos(turn)) / 2
        scores = score(model, part)
        if step % 2 == 0:
            velocities.append(_velocity(step, objective, scores, fixed, parameters))
        optimizer.zero_grad()
        objective(scores, fixed).loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    return Replay(name, form, gap, velocities)


def _batches(samples: Samples) -> list[Samples]:
    return [samples[i : i + BATCH] for i in range(0, len(samples), BATCH)]


def _velocity(
    step: int,
    objective: Objective,
    scores: dict[str, SequenceScores],
    reference: dict[str, Tensor],
    parameters: Sequence[Tensor],
) -> Velocity:
    def only(name: str) -> Tensor:
        """The alignment loss with the other side detached."""
        moving = {n: s if n == name else SequenceScores(s.logp.detach(), s.tokens) for n, s in scores.items()}
        return objective.alignment(moving, reference).loss

    of_short = _gradient(scores["short_chosen"].logp.mean(), parameters)
    rest = _gradient(replace(objective, alpha=0.0)(scores, reference).loss, parameters)
    carried = _gradient(only("long_chosen"), parameters)
    own = 0.0 if objective.detach_short else -float(of_short @ _gradient(only("short_chosen"), parameters))
    return Velocity(
        step=step,
        short=scores["short_chosen"].logp.mean().item(),
        long=scores["long_chosen"].logp.mean().item(),
        rest=-float(of_short @ rest),
        own=own,
        carried=-float(of_short @ carried),
    )


def forces(
    objective: Objective, policy: Mapping[str, SequenceScores], reference: Mapping[str, Tensor] | None
) -> dict[str, dict[str, Tensor]]:
    """The forces of the two loss terms: negative derivatives with respect to the log-probabilities, per nat.

    Args:
        objective: objective with an alignment.
        policy: scores of its sequences.
        reference: reference log-probabilities, as for a call of the objective.

    Returns:
        Term (``rest``, or ``alignment`` without its weight alpha) -> sequence -> forces ``[n]``.
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
    """The alpha above which the alignment lowers the short chosen answer more than the rest of the loss raises it.

    Forces are compared on the logit of a token, because its log-probability changes by ``1 - p`` times the change of
    the logit. A force on the log-probability has little effect on an answer of probability near 1; a force on the
    log-odds has its full effect.

    Returns:
        Infinity if the alignment does not lower the answer, as with ``detach_short``; 0 if no force raises it.
    """
    found = forces(objective, policy, reference)
    certain = policy[HELD_UP].average.detach().exp()
    up, down = (((1 - certain) * found[term][HELD_UP]).sum().item() for term in ("rest", "alignment"))
    return math.inf if down >= 0 else max(up, 0.0) / -down


def lasting_alpha(
    objective: Objective, policy: Mapping[str, SequenceScores], reference: Mapping[str, Tensor] | None
) -> float:
    """The critical alpha after the margin is reached, with the short answer at the lowest acceptable probability.

    A lower rejected answer alone can reach the margin, and then a loss of differences has no force left. The remaining
    terms must hold the tokens of the chosen answer at a probability of one half, where greedy decoding still selects
    them.

    Args:
        objective: objective with an alignment.
        policy: scores, which determine the gap.
        reference: reference log-probabilities, as for a call of the objective.
    """
    short = policy[HELD_UP]
    sunk = math.log(0.5) * short.tokens.to(short.logp.dtype)
    late = {name: SequenceScores(sunk + scores.logp - short.logp, scores.tokens) for name, scores in policy.items()}
    late["short_rejected"] = SequenceScores(torch.full_like(sunk, WON), policy["short_rejected"].tokens)
    return critical_alpha(objective, late, reference)


def aligned_gap(
    objective: Objective, policy: Mapping[str, SequenceScores], reference: Mapping[str, Tensor] | None
) -> float:
    """Mean gap between the two sides in nats per token, on the scale of the objective's aligned reward.

    The scale is that of log-probabilities, or of log-odds for ORPO. The two agree for improbable tokens.
    """
    gap = objective.alignment(policy, reference).metrics["align/gap"]
    tokens = policy[HELD_UP].tokens
    unlikely = {name: SequenceScores(-50.0 * tokens.double(), tokens) for name in policy}
    unlikely["long_chosen"] = SequenceScores(-51.0 * tokens.double(), tokens)
    return float(gap / objective.alignment(unlikely, reference).metrics["align/gap"])
