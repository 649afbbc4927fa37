"""Inputs and outputs of an objective, and the checks of its inputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from solopo_nemo.objectives.numerics import upcast

PROMPTS = ("short", "long")
ANSWERS = ("chosen", "rejected")


class SequenceSpec(NamedTuple):
    """The parts of a sequence.

    Attributes:
        prompt: one of ``PROMPTS``.
        answer: one of ``ANSWERS``.
    """

    prompt: str
    answer: str


SEQUENCES = {f"{prompt}_{answer}": SequenceSpec(prompt, answer) for prompt in PROMPTS for answer in ANSWERS}
"""All sequences by name, in the order in which objectives list them."""


@dataclass(frozen=True)
class SequenceScores:
    """The policy's scores of one sequence (a prompt with a response) for n samples.

    Attributes:
        logp: ``[n]``, log-probability of the response in nats, summed over the response tokens. The end token counts;
            prompt and padding do not. The objective computes bf16 and fp16 values in fp32, and fp64 values in fp64.
        tokens: ``[n]``, number of response tokens, at least 1; integer or float.
    """

    logp: Tensor
    tokens: Tensor

    @property
    def average(self) -> Tensor:
        """``[n]``, mean log-probability per response token in nats."""
        return self.logp / self.tokens


@dataclass(frozen=True)
class ObjectiveOutput:
    """Result of one call of an objective on n samples.

    Attributes:
        loss: Scalar, mean of ``per_sample``; carries the gradient.
        per_sample: ``[n]``, the loss of each sample; carries the gradient.
        metrics: Detached scalars by name. Each is a mean over the n samples, so the value of the global batch is the
            mean over micro-batches, weighted by their number of samples.
    """

    loss: Tensor
    per_sample: Tensor
    metrics: dict[str, Tensor]


def _checked(logp: Tensor, what: str, samples: int | None) -> Tensor:
    if logp.dim() != 1 or logp.numel() == 0 or not logp.is_floating_point():
        raise ValueError(f"{what} must be a floating point tensor [n] with n >= 1; got {logp.dtype} {list(logp.shape)}")
    if samples is not None and logp.numel() != samples:
        raise ValueError(f"{what} holds {logp.numel()} samples where the other sequences hold {samples}")
    return upcast(logp)


def gather_policy(policy: Mapping[str, SequenceScores], names: Iterable[str]) -> dict[str, SequenceScores]:
    """Selects the named sequences, checks their shapes against each other, and upcasts them to fp32 or fp64.

    Raises:
        ValueError: A sequence is missing or its shape or dtype is wrong.
    """
    gathered: dict[str, SequenceScores] = {}
    samples = None
    for name in names:
        if name not in policy:
            raise ValueError(f"policy scores of {name!r} are missing; got {sorted(policy)}")
        logp = _checked(policy[name].logp, f"policy[{name!r}].logp", samples)
        samples = logp.numel()
        tokens = policy[name].tokens
        if tokens.shape != logp.shape:
            raise ValueError(f"policy[{name!r}].tokens has shape {list(tokens.shape)}, logp {list(logp.shape)}")
        gathered[name] = SequenceScores(logp, tokens.to(logp.dtype))
    return gathered


def gather_reference(reference: Mapping[str, Tensor] | None, names: Iterable[str], samples: int) -> dict[str, Tensor]:
    """Selects the named log-probabilities of the frozen reference policy, checked, upcast and detached.

    Raises:
        ValueError: A sequence is missing or its shape or dtype is wrong.
    """
    reference = {} if reference is None else reference
    gathered: dict[str, Tensor] = {}
    for name in names:
        if name not in reference:
            raise ValueError(f"reference log-probabilities of {name!r} are missing; got {sorted(reference)}")
        gathered[name] = _checked(reference[name].detach(), f"reference[{name!r}]", samples)
    return gathered
