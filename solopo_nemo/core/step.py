"""The training step on Megatron-core alone: a packed micro-batch in, its loss and metrics out.

A micro-batch packs all sequences that the objective scores, of all its samples, as one THD sequence. The model returns
one number for each sequence, the summed log-probability of its response. The objective computes the loss from these
numbers. Parallelism, mixed precision, optimizer and checkpoints are Megatron's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, Protocol

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from solopo_nemo.core import device
from solopo_nemo.core.experts import padding_of
from solopo_nemo.core.head import ResponseHead, sum_by_sequence
from solopo_nemo.core.layers.attention import PackedSequences
from solopo_nemo.data.packing import Batch
from solopo_nemo.objectives import SEQUENCES, Objective, ObjectiveOutput, SequenceScores

Loss = Callable[..., ObjectiveOutput]
"""A loss of sequence scores, called as an objective is: an objective, or one of its terms."""
Metrics = dict[str, torch.Tensor]
"""fp64 ``[2]`` by name: a sum and its number of micro-batches, as Megatron's ``[sum, count]``."""

TOTALS = ("tokens", "tokens_long")
"""Metrics that are reported as the sum over the global batch; the others are means."""


class Reference(Protocol):
    """The frozen reference policy on the last pipeline stage; :mod:`solopo_nemo.core.reference` implements it."""

    def scores(self, batch: Batch) -> Mapping[str, torch.Tensor]:
        """The summed response log-probabilities of the batch's P pairs: fp32 ``[P]`` by sequence name, in nats."""


def score_sequences(model: Any, batch: Batch) -> torch.Tensor:
    """Runs ``model`` on a packed micro-batch and sums the response log-probabilities by sequence.

    1. Run the transformer once on all local tokens.
    2. Run the head on the positions of ``logit_positions`` only (:class:`ResponseHead`).
    3. Sum the log-probabilities by sequence, and over the context-parallel ranks.

    TP, SP, CP: the result is the same on every rank. PP: the last stage returns it, other stages return hidden states.
    DP: each rank has its own samples.

    Args:
        model: a Megatron ``GPTModel`` with a :class:`ResponseHead` on its last stage, bare or in any wrapper.
        batch: this context-parallel rank's share, on its device.

    Returns:
        fp32 ``[num_sequences]``, in nats.
    """
    group = parallel_state.get_context_parallel_group()
    packed = PackedSequences.of(batch["lengths"], batch["cu_seqlens"], group.size())
    head = next((m for m in model.modules() if isinstance(m, ResponseHead)), None)
    with head.scoring(batch["logit_positions"], batch["labels"]) if head else nullcontext():
        padding = padding_of(batch, model.config)
        out = model(batch["tokens"], batch["position_ids"], None, packed_seq_params=packed, **padding)
    if head is None:
        return out
    return sum_by_sequence(out[0], batch["sequence_ids"], len(batch["response_tokens"]), group)


class ForwardStep:
    """The ``forward_step(data_iterator, model)`` of an objective, as Megatron's schedules call it.

    1. Take a micro-batch from ``data_iterator`` and move it to the device.
    2. Score its sequences with ``model`` (:func:`score_sequences`).
    3. Return the scores and a function from scores to ``(loss, metrics)``, which the schedule calls on the last
       pipeline stage. It looks up the reference scores and evaluates the objective: the preference loss on the short
       prompts plus ``alpha`` times the short-to-long alignment ("the specification", section 2).

    Every sample of the global batch has the same weight. The loss of a micro-batch is the mean over its samples; the
    schedule divides it by the number of micro-batches, and DDP averages it over the data-parallel ranks.

    - TP, SP: every rank computes the same loss.
    - CP: every rank computes the whole loss, and its gradient reaches its own tokens only. The schedule multiplies the
      loss of a ``(loss, metrics)`` pair by the context-parallel size, and DDP averages over that size too.
    - PP: the loss exists on the last stage.

    Args:
        objective: names the sequences to score, and is the loss.
        reference: scores of the frozen reference policy; needed if the objective has ``reference_sequences``.
        loss: another loss of the same sequences; by default the objective.
    """

    def __init__(self, objective: Objective, reference: Reference | None = None, loss: Loss | None = None) -> None:
        self.objective, self.reference, self.loss = objective, reference, loss or objective

    def __call__(
        self, data_iterator: Iterator[Batch], model: Any
    ) -> tuple[torch.Tensor, Callable[[torch.Tensor], tuple[torch.Tensor, Metrics]]]:
        """Scores the next micro-batch.

        Returns:
            The scores, fp32 ``[num_sequences]`` in nats, and the function from scores to ``(loss, metrics)``.
        """
        batch = device.to_device(next(data_iterator))

        def loss(logp: torch.Tensor) -> tuple[torch.Tensor, Metrics]:
            return loss_and_metrics(self.evaluate(batch, logp), batch, self.objective)

        return score_sequences(model, batch), loss

    def evaluate(self, batch: Batch, logp: torch.Tensor) -> ObjectiveOutput:
        """Evaluates the objective of a micro-batch. A sample with several rejected responses is the mean of its pairs.

        Args:
            batch: the micro-batch that was scored.
            logp: fp32 ``[num_sequences]`` in nats, from :func:`score_sequences`.

        Returns:
            Loss and metrics, and the loss ``[n]`` of each of the n samples.
        """
        names = self.objective.sequences
        tokens = batch["response_tokens"]
        policy = {
            name: SequenceScores(logp=logp[places], tokens=tokens[places])
            for name, places in zip(names, batch["pairs"].unbind(1), strict=True)
        }
        reference = None
        if self.reference is not None and self.objective.reference_sequences:
            reference = {name: x.to(logp) for name, x in self.reference.scores(batch).items()}
        samples, count = batch["pair_samples"], len(batch["ids"])
        if len(samples) == count:
            return self.loss(policy, reference)
        weights = logp.new_tensor([1 / samples.count(sample) for sample in samples])
        output = self.loss(policy, reference, weights)
        of = torch.tensor(samples, device=logp.device)
        return replace(output, per_sample=logp.new_zeros(count).index_add(0, of, weights * output.per_sample))


def loss_and_metrics(output: ObjectiveOutput, batch: Batch, objective: Objective) -> tuple[torch.Tensor, Metrics]:
    """The ``(loss, metrics)`` pair that a loss function returns to Megatron's schedule.

    ``tokens`` counts the input tokens of all sequences, ``tokens_long`` those with the long prompt. The loss is a copy,
    because the schedule scales it in place.
    """
    names, read = objective.sequences, batch["input_tokens"]
    read = read.new_zeros(len(names)).index_add(0, batch["kinds"], read)
    long = [i for i, name in enumerate(names) if SEQUENCES[name].prompt == "long"]
    values = {**output.metrics, "tokens": read.sum(), "tokens_long": read[long].sum()}
    one = torch.ones((), dtype=torch.float64, device=read.device)
    return output.loss.clone(), {name: torch.stack((value.double(), one)) for name, value in values.items()}


@torch.no_grad()
def reduce_metrics(outputs: Sequence[Metrics]) -> dict[str, float]:
    """Reduces the metrics of a global batch: totals of the token counts, means of all others.

    It is a collective of the data-parallel ranks on the last pipeline stage (one all-reduce of ``2 * len(metrics)``
    numbers).

    Args:
        outputs: the metrics of this rank's micro-batches, which the schedule returned. All micro-batches have the same
            number of samples.
    """
    sums = torch.stack([torch.stack(list(output.values())) for output in outputs]).sum(0)
    dist.all_reduce(sums, group=parallel_state.get_data_parallel_group())
    return {
        name: total if name in TOTALS else total / count
        for name, (total, count) in zip(outputs[0], sums.tolist(), strict=True)
    }
