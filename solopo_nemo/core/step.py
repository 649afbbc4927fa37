"""The training step on Megatron-core alone: a packed micro-batch in, its loss and metrics out.

A micro-batch holds, packed as one THD sequence, every sequence that the objective scores, of every sample. The model
returns one number a sequence, the summed log-probability of its response; the objective turns these numbers into the
loss. Everything in between (parallelism, mixed precision, optimizer, checkpoints) is Megatron's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
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

__all__ = [
    "Batch",
    "ForwardStep",
    "Loss",
    "Metrics",
    "Reference",
    "loss_and_metrics",
    "reduce_metrics",
    "score_sequences",
]


class Loss(Protocol):
    """A loss of scores: an objective, or a part of one."""

    def __call__(
        self,
        policy: Mapping[str, SequenceScores],
        reference: Mapping[str, torch.Tensor] | None = None,
        weights: torch.Tensor | None = None,
    ) -> ObjectiveOutput:
        """As :meth:`solopo_nemo.objectives.Objective.__call__`."""


Metrics = dict[str, torch.Tensor]
"""fp64 ``[2]`` by name: a value and the number of micro-batches that it is of, Megatron's ``[sum, count]``."""

TOTALS = ("tokens", "tokens_long")
"""Metrics whose sum over the global batch is reported; of the others it is the mean."""


class Reference(Protocol):
    """The frozen reference policy, as the step asks it on the last pipeline stage; see ``core.reference``."""

    def scores(self, batch: Batch) -> Mapping[str, torch.Tensor]:
        """fp32 ``[P]`` by sequence name: summed response log-probabilities of the batch's pairs, nats."""


def score_sequences(model: Any, batch: Batch) -> torch.Tensor:
    """Run ``model`` on a packed micro-batch and sum the response log-probabilities by sequence.

    1. The transformer runs on all local tokens, once.
    2. The head runs on the rows at ``logit_positions`` alone (:class:`ResponseHead`).
    3. The log-probabilities are summed by sequence, and over the context-parallel ranks.

    TP, SP, CP: the result is the same on every rank. PP: on the last stage; other stages return hidden states.
    DP: each rank has its own samples.

    Args:
        model: a Megatron ``GPTModel`` with a :class:`ResponseHead` on its last stage, bare or in any wrapper.
        batch: this context-parallel rank's share, on its device.

    Returns:
        fp32 ``[num_sequences]``, nats.
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
    """``forward_step(data_iterator, model)`` of an objective, as Megatron's schedules take it.

    1. Take a micro-batch from ``data_iterator`` and move it to the device.
    2. Score its sequences with ``model`` (:func:`score_sequences`).
    3. Return the scores and the function that makes ``(loss, metrics)`` of them, which the schedule calls on the last
       pipeline stage: reference scores, objective (equations of section 2 of the specification: the preference loss on
       the short prompts plus ``alpha`` times the short-to-long alignment), metrics.

    Every sample of the global batch has the same weight. The loss of a micro-batch is the mean over its samples; the
    schedule divides it by the number of micro-batches, and DDP averages over the data-parallel ranks.
    CP: every rank has the whole loss, and its gradient reaches its own tokens alone; the schedule multiplies a
    ``(loss, metrics)`` pair by the context-parallel size, and DDP averages over that size too.

    Args:
        objective: names the sequences, and is the loss.
        reference: scores of the frozen reference policy, for an objective that needs them.
        loss: another loss of the objective's sequences.
    """

    def __init__(self, objective: Objective, reference: Reference | None = None, loss: Loss | None = None) -> None:
        self.objective, self.reference, self.loss = objective, reference, loss or objective

    def __call__(
        self, data_iterator: Iterator[Batch], model: Any
    ) -> tuple[torch.Tensor, Callable[[torch.Tensor], tuple[torch.Tensor, Metrics]]]:
        """The scores of the next micro-batch, and the function from scores to ``(loss, metrics)``."""
        batch = device.to_device(next(data_iterator))
        return score_sequences(model, batch), partial(self._loss_and_metrics, batch)

    def _loss_and_metrics(self, batch: Batch, logp: torch.Tensor) -> tuple[torch.Tensor, Metrics]:
        return loss_and_metrics(self.evaluate(batch, logp), batch, self.objective)

    def evaluate(self, batch: Batch, logp: torch.Tensor) -> ObjectiveOutput:
        """The objective of a micro-batch: of a sample with several rejected responses, the mean over its pairs.

        Args:
            batch: that was scored.
            logp: fp32 ``[num_sequences]``, nats, as :func:`score_sequences` returns it.
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
    """What a loss function returns to Megatron's schedule.

    The loss is a copy: the schedule scales what it is given in place.
    """
    names, read = objective.sequences, batch["input_tokens"]
    read = read.new_zeros(len(names)).index_add(0, batch["kinds"], read)
    long = [i for i, name in enumerate(names) if SEQUENCES[name].prompt == "long"]
    values = {**output.metrics, "tokens": read.sum(), "tokens_long": read[long].sum()}
    one = torch.ones((), dtype=torch.float64, device=read.device)
    return output.loss.clone(), {name: torch.stack((value.double(), one)) for name, value in values.items()}


@torch.no_grad()
def reduce_metrics(outputs: Sequence[Metrics]) -> dict[str, float]:
    """Means of the metrics, and totals of the token counts, over all micro-batches of a global batch.

    A collective of the data-parallel ranks, on the last pipeline stage.

    Args:
        outputs: what the schedule returned: the metrics of this rank's micro-batches, which are equally large.
    """
    sums = torch.stack([torch.stack(list(output.values())) for output in outputs]).sum(0)
    dist.all_reduce(sums, group=parallel_state.get_data_parallel_group())
    return {
        name: total if name in TOTALS else total / count
        for name, (total, count) in zip(outputs[0], sums.tolist(), strict=True)
    }
