"""The starting model, measured before any training: how far apart the sides are, and how their gradients lie."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from solopo_nemo.data.tokenize import TripletEncoder, load_tokenizer
from solopo_nemo.data.triplets import SEQUENCES, Needs, read_triplets
from solopo_nemo.objectives import Objective, SequenceScores, build_objective
from studies.collapse.cells import FORMS, OBJECTIVES
from studies.collapse.forces import aligned_gap, critical_alpha, lasting_alpha

NAMES = ("short_chosen", "short_rejected", "long_chosen")
SAMPLES = 128
BATCH = 16
STEPS = 32
RATE = 1e-3

Samples = Sequence[Mapping[str, Sequence[int]]]


@dataclass(frozen=True)
class StartFacts:
    """The starting model on the pairs of one gap.

    Attributes:
        gap: length of the long context as a multiple of the short one.
        tokens: of a response, mean.
        logp_short, logp_long, logp_rejected: mean log-probability of the chosen answer after either prompt, and of the
            rejected one after the short prompt, nats.
        ahead: share of the gap, summed over the samples, where the long side has the higher log-probability.
        norm_short, norm_long: of the gradients of ``logp_short`` and ``logp_long``.
        cosine: of the angle between these gradients.
        gaps: by objective, what :func:`studies.collapse.forces.aligned_gap` gives.
        critical, lasting: by objective, what :func:`studies.collapse.forces.critical_alpha` and
            :func:`~studies.collapse.forces.lasting_alpha` give, with both sides free.
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
        """How far a push on the long side moves the short one, in units of the same push on the short side."""
        return self.cosine * self.norm_long / self.norm_short


@dataclass(frozen=True)
class Velocity:
    """Where the log-probability of the short chosen answer is driven at one step, and by what.

    Attributes:
        step: of the run, from 0.
        short, long: mean log-probability of the chosen answer, nats.
        rest, own, carried: what gradient descent on the rest of the loss, on the alignment's short side and on its long
            side does to ``short``, per unit of step: minus the inner products of the gradients.
    """

    step: int
    short: float
    long: float
    rest: float
    own: float
    carried: float


@dataclass(frozen=True)
class Replay:
    """A short training in which every gradient is taken apart.

    Attributes:
        objective, form: which loss, at alpha 1.
        gap: of its pairs.
        velocities: every other step.
    """

    objective: str
    form: str
    gap: int
    velocities: list[Velocity]

    @property
    def halves(self) -> tuple[Velocity, Velocity]:
        """Means over the first and over the second half of the steps."""
        middle = (len(self.velocities) + 1) // 2
        return _mean(self.velocities[:middle]), _mean(self.velocities[middle:])

    @property
    def down(self) -> int:
        """At how many of the steps the alignment as a whole drives the short side down."""
        return sum(v.own + v.carried < 0 for v in self.velocities)

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Replay:
        """A replay out of plain values."""
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
        prompts, responses = ([torch.tensor(s[column]) for s in samples] for column in SEQUENCES[name])
        joined = [torch.cat(pair) for pair in zip(prompts, responses, strict=True)]
        inputs = torch.nn.utils.rnn.pad_sequence(joined, batch_first=True)
        counts = torch.tensor([len(r) for r in responses])
        # padding comes last, where no scored token sees it
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
    """Train as the map's runs do, in plain PyTorch, and take the gradient of every other step apart.

    AdamW with a cosine schedule, a batch of 16 and gradients clipped to 1; alpha 1.
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
        """The alignment, with the other side held."""
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
