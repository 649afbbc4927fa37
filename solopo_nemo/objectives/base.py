"""The base class of all objectives: preference term, short-to-long alignment, NLL and metrics."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from solopo_nemo.objectives.distances import DISTANCES
from solopo_nemo.objectives.scores import (
    ANSWERS,
    PROMPTS,
    ObjectiveOutput,
    SequenceScores,
    gather_policy,
    gather_reference,
)
from solopo_nemo.runtime.errors import UserError
from solopo_nemo.runtime.options import check_options, choice, fixed, flag, number


@dataclass(frozen=True, kw_only=True)
class Objective(ABC):
    """A preference loss ``f`` of a reward ``r``, combined with short-to-long reward alignment (RA).

    ``x`` is the prompt selected by ``prompt``; ``y_w`` and ``y_l`` are the chosen and the rejected response::

        z       = eta * (r(x, y_w) - r(x, y_l) - target_margin)
        loss    = po_weight * F(z) + alpha * RA(y_w) [+ alpha * RA(y_l)] + nll_weight * NLL
        RA(y)   = s(D(R(x_short, y), R(x_long, y)))      D the distance, |a - b| by default
        NLL     = -logp(x, y_w) / tokens(y_w)
        F(z)    = (1 - label_smoothing) * f(z) + label_smoothing * f(-z)

    ``label_smoothing`` is the share of pairs whose labels are taken to be swapped (conservative DPO, Mitchell 2023); it
    is 0 by default, and F is then f.
    (SoLoPO, arXiv 2505.11166; "the specification", section 2.) ``align=chosen`` uses the first RA term and ``both``
    uses both terms. ``none`` or ``alpha=0`` uses neither; this is the vanilla objective, which needs no long sequence.
    ``align_on=logp`` (SoLo-KL) sets ``R = logp`` and omits s, for every objective.

    A new objective is a registered subclass that defines ``reward`` and ``f``. It can override ``s``, ``eta``,
    ``target_margin``, ``po_weight`` and ``alignment_reward``. ``bound_constant`` (C) and ``bound_factor`` (k) state
    ``f(z) <= k * s(|z|) + C`` for all z. With a convex f, this bounds the long-context loss ("the specification",
    section 4). ``A`` and ``B`` are the short-to-long reward gaps of ``y_w`` and ``y_l``; ``z_short`` and ``z_long`` are
    z on the two prompts::

        f(z_long) <= 1/3 * [f(3*z_short) + f(-3*eta*A) + f(3*eta*B)]
                  <= 1/3 * [f(3*z_short) + k*s(3*eta*|A|) + k*s(3*eta*|B|)] + 2/3 * C

    Annotated attributes are the options (``number``, ``choice``, ``flag``). The arithmetic is elementwise over the n
    samples, without collectives. Memory: O(n).

    - DP: each rank passes its own samples. The loss of the global batch is the mean over calls of equal size.
    - TP, SP, CP: the scores are already reduced, so every rank computes the same loss.
    - PP: the last stage calls the objective.

    Attributes:
        name: The registered name.
        needs_reference: True if the reward uses the log-probabilities of a frozen reference policy.
        bound_constant: C above.
        bound_factor: k above.
    """

    name: ClassVar[str]
    needs_reference: ClassVar[bool] = False
    bound_constant: ClassVar[float]
    bound_factor: ClassVar[float] = 1.0

    alpha: float = number(
        1.0,
        "weight of the short-to-long alignment; 0 switches it off; in a run auto balances the gradients",
        minimum=0.0,
    )
    align: str = choice("chosen", ("chosen", "both", "none"), "responses whose rewards are aligned")
    align_on: str = choice("reward", ("reward", "logp"), "what is aligned; logp is SoLo-KL")
    distance: str = choice("abs", DISTANCES, "distance between the short and the long side")
    huber_delta: float = number(1.0, "difference at which distance=huber turns from squared to linear", above=0.0)
    detach_short: bool = flag(False, "hold the short side of the alignment fixed, so that only the long side moves")
    detach_higher: bool = flag(
        False, "hold the higher side of the alignment fixed, so that only the lower side moves, up"
    )
    alignment_reference: str = choice(
        "policy",
        ("policy", "full"),
        "align the policy's part of the reward, or also the reference's (scored on long prompts)",
    )
    nll_weight: float = number(0.0, "weight of the NLL of the chosen response, per token", minimum=0.0)
    label_smoothing: float = number(
        0.0, "share of pairs whose labels are taken to be swapped (conservative DPO)", minimum=0.0, below=0.5
    )
    prompt: str = choice("short", PROMPTS, "prompt of the preference term; long is the vanilla Long-PO")

    def __post_init__(self) -> None:
        check_options(self, "objective.")
        if self.prompt == "long" and self.aligned_answers:
            raise UserError(
                f"objective.align must be none (or objective.alpha 0) with objective.prompt=long; got {self.align!r}"
            )
        if self.alignment_reference == "full" and not self.needs_reference:
            raise UserError(
                f"objective.alignment_reference must be policy, as {self.name} has no reference; got 'full'"
            )
        if self.alignment_reference == "full" and self.align_on == "logp":
            raise UserError("objective.alignment_reference must be policy with objective.align_on=logp; got 'full'")

    @abstractmethod
    def reward(self, scores: SequenceScores, reference: Tensor) -> Tensor:
        """The reward ``r(x, y)``.

        Args:
            scores: Scores of the policy, ``[n]``, fp32 or fp64.
            reference: ``[n]``, summed log-probability under the reference policy in nats; zeros without a reference.

        Returns:
            Rewards ``[n]`` in the dtype of the scores.
        """

    @abstractmethod
    def f(self, z: Tensor) -> Tensor:
        """The convex loss of the scaled reward margin, elementwise."""

    def smoothed_f(self, z: Tensor) -> Tensor:
        """``F(z)`` of the class docstring. It is convex, and has the bound of ``f``."""
        if not self.label_smoothing:
            return self.f(z)
        return (1 - self.label_smoothing) * self.f(z) + self.label_smoothing * self.f(-z)

    def s(self, u: Tensor) -> Tensor:
        """The increasing function of the distance ``u >= 0`` in RA, elementwise; ``u`` by default."""
        return u

    @property
    def eta(self) -> float:
        """Factor from the reward margin to z."""
        return 1.0

    @property
    def target_margin(self) -> float:
        """The target margin gamma that is subtracted from the reward margin, in units of the reward."""
        return 0.0

    @property
    def po_weight(self) -> float:
        """Weight of ``f(z)`` in the loss."""
        return 1.0

    def alignment_reward(self, scores: SequenceScores, reference: Tensor) -> Tensor:
        """The aligned reward ``R(x, y)``, by default ``eta * r``. Arguments and result are those of ``reward``.

        ``reference`` is zeros unless ``alignment_reference=full``.
        """
        return self.eta * self.reward(scores, reference)

    @property
    def reference_prompt(self) -> str:
        """The prompt on which the reference policy scores the preference pair."""
        return self.prompt

    @property
    def aligned_answers(self) -> tuple[str, ...]:
        """The responses whose short and long rewards are aligned."""
        if self.alpha == 0 or self.align == "none":
            return ()
        return ANSWERS if self.align == "both" else ("chosen",)

    @property
    def sequences(self) -> tuple[str, ...]:
        """The sequences that the policy must score."""
        pair = tuple(f"{self.prompt}_{answer}" for answer in ANSWERS)
        return pair + tuple(f"long_{answer}" for answer in self.aligned_answers)

    @property
    def reference_sequences(self) -> tuple[str, ...]:
        """The sequences that the frozen reference policy must score; empty without a reference."""
        if not self.needs_reference:
            return ()
        pair = tuple(f"{self.reference_prompt}_{answer}" for answer in ANSWERS)
        aligned = self.aligned_answers if self.alignment_reference == "full" else ()
        return pair + tuple(f"long_{answer}" for answer in aligned)

    def __call__(
        self,
        policy: Mapping[str, SequenceScores],
        reference: Mapping[str, Tensor] | None = None,
        weights: Tensor | None = None,
    ) -> ObjectiveOutput:
        """Computes the loss and the metrics of n samples.

        Args:
            policy: Scores by name, one entry for each of ``sequences``. Other entries are ignored.
            reference: Summed log-probabilities ``[n]`` in nats by name, one entry for each of ``reference_sequences``.
                Other entries are ignored. It may be None if ``reference_sequences`` is empty.
            weights: ``[n]``, weights of the n entries in the loss and the metrics, such as 1/2 for each of a sample's
                two pairs. By default all are equal.

        Returns:
            Loss, per-sample loss and metrics. A metric that does not apply is absent.

            - ``loss = loss/po + alpha * loss/align + nll_weight * loss/nll``: ``loss/po`` is ``po_weight * f(z)``.
              ``loss/align`` (the sum over the aligned responses) and ``loss/nll`` are not scaled by their weights.
            - ``rewards/*``: r on the prompt of the preference term, in its own units.
            - ``rewards/*_long``: r on the long prompt. It uses the reference on the short prompt unless
              ``alignment_reference=full``.
            - ``align/gap``, ``align/signed_gap``: ``|R_short - R_long|`` and ``R_short - R_long``, averaged over the
              aligned responses.
            - ``logps/*``: summed log-probabilities in nats.

        Raises:
            ValueError: A sequence is missing or its shape or dtype is wrong.
        """
        per_sample, values = self._evaluate_checked(policy, reference)
        return _output(per_sample, values, weights)

    def alignment(
        self,
        policy: Mapping[str, SequenceScores],
        reference: Mapping[str, Tensor] | None = None,
        weights: Tensor | None = None,
    ) -> ObjectiveOutput:
        """The alignment term as a loss, without its weight alpha. Arguments, metrics and errors are those of a call.

        ``replace(objective, alpha=0)`` computes the rest of the loss.

        Raises:
            ValueError: The objective has no alignment.
        """
        if not self.aligned_answers:
            raise ValueError(f"{self.name} aligns nothing (align={self.align!r}, alpha={self.alpha})")
        _, values = self._evaluate_checked(policy, reference)
        return _output(values["loss/align"], values, weights)

    def _evaluate_checked(
        self, policy: Mapping[str, SequenceScores], reference: Mapping[str, Tensor] | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        scores = gather_policy(policy, self.sequences)
        samples = next(iter(scores.values())).logp.numel()
        return self.evaluate(scores, gather_reference(reference, self.reference_sequences, samples))

    def evaluate(
        self, policy: Mapping[str, SequenceScores], reference: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Computes the loss ``[n]`` and the metrics ``[n]`` of each sample, from checked scores."""
        chosen, rejected = (policy[f"{self.prompt}_{answer}"] for answer in ANSWERS)
        zeros = torch.zeros_like(chosen.logp)
        chosen_reward = self.reward(chosen, reference.get(f"{self.reference_prompt}_chosen", zeros))
        rejected_reward = self.reward(rejected, reference.get(f"{self.reference_prompt}_rejected", zeros))
        margin = chosen_reward - rejected_reward
        per_sample = self.po_weight * self.smoothed_f(self.eta * (margin - self.target_margin))
        values = {
            "loss/po": per_sample,
            "rewards/chosen": chosen_reward,
            "rewards/rejected": rejected_reward,
            "rewards/margin": margin,
            "rewards/accuracy": (margin > 0).to(margin.dtype),
            "logps/chosen": chosen.logp,
            "logps/rejected": rejected.logp,
        }
        if self.aligned_answers:
            align, align_values = self._alignment(policy, reference)
            per_sample = per_sample + self.alpha * align
            values |= align_values
        if self.nll_weight:
            values["loss/nll"] = -chosen.average
            per_sample = per_sample + self.nll_weight * values["loss/nll"]
        return per_sample, values

    def _alignment(
        self, policy: Mapping[str, SequenceScores], reference: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        distance = DISTANCES[self.distance](self.huber_delta)
        losses, gaps, values = [], [], {}
        for answer in self.aligned_answers:
            short, long = (self._aligned_side(f"{prompt}_{answer}", policy, reference) for prompt in PROMPTS)
            if self.detach_short:
                short = short.detach()
            if self.detach_higher:
                short, long = (
                    torch.where(short > long, short.detach(), short),
                    torch.where(long > short, long.detach(), long),
                )
            apart = distance(short, long)
            losses.append(apart if self.align_on == "logp" else self.s(apart))
            gaps.append(short - long)
            scores = policy[f"long_{answer}"]
            short_reference = reference.get(f"short_{answer}", torch.zeros_like(scores.logp))
            values[f"rewards/{answer}_long"] = self.reward(scores, reference.get(f"long_{answer}", short_reference))
        align = torch.stack(losses).sum(0)
        values |= {
            "loss/align": align,
            "align/gap": torch.stack(gaps).abs().mean(0),
            "align/signed_gap": torch.stack(gaps).mean(0),
            "logps/chosen_long": policy["long_chosen"].logp,
        }
        return align, values

    def _aligned_side(self, name: str, policy: Mapping[str, SequenceScores], reference: Mapping[str, Tensor]) -> Tensor:
        if self.align_on == "logp":
            return policy[name].logp
        full = self.alignment_reference == "full"
        return self.alignment_reward(policy[name], reference[name] if full else torch.zeros_like(policy[name].logp))


def _output(per_sample: Tensor, values: Mapping[str, Tensor], weights: Tensor | None) -> ObjectiveOutput:
    def mean(value: Tensor) -> Tensor:
        return value.mean() if weights is None else (weights * value).sum() / weights.sum()

    metrics = {name: mean(value.detach()) for name, value in {"loss": per_sample, **values}.items()}
    return ObjectiveOutput(mean(per_sample), per_sample, metrics)


@dataclass(frozen=True, kw_only=True)
class UnalignedObjective(Objective):
    """Base class of objectives outside the SoLoPO family. They have no alignment and no options for it."""

    alpha: float = fixed(0.0)
    align: str = fixed("none")
    align_on: str = fixed("reward")
    distance: str = fixed("abs")
    huber_delta: float = fixed(1.0)
    detach_short: bool = fixed(False)
    detach_higher: bool = fixed(False)
    alignment_reference: str = fixed("policy")
