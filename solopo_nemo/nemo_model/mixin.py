"""SoLoPO for NeMo models: the whole algorithm on one screen.

A micro-batch holds, packed as one THD sequence, every sequence that the objective wants scored, for
every sample. The model returns one number a sequence, the summed log-probability of its response; the
objective turns these numbers into the loss. Everything in between (tensor, sequence, context, pipeline
and data parallelism, mixed precision, optimizer, checkpoints) is Megatron's and NeMo's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from nemo.lightning.megatron_parallel import MegatronLossReduction

from solopo_nemo.core import device
from solopo_nemo.core.head import ResponseHead
from solopo_nemo.core.step import Batch, score_sequences
from solopo_nemo.objectives import Objective, ObjectiveOutput, SequenceScores

Loss = Callable[[Mapping[str, SequenceScores], Mapping[str, torch.Tensor] | None], ObjectiveOutput]


class SoLoPOMixin:
    """Preference optimization for ``nemo.collections.llm.GPTModel`` and its subclasses.

    ``class SoLoQwen2(SoLoPOMixin, llm.Qwen2Model): ...`` is a NeMo LightningModule like any other.
    Valid under TP, SP, CP, PP and DP; virtual pipeline stages are not supported.

    Args:
        config, optim, tokenizer, model_transform: as ``GPTModel`` takes them.
        objective: the loss; ``None`` for a model that is only converted or exported.
        row_chunk: response rows that the head scores at a time; the largest logits tensor is
            ``[row_chunk, vocabulary / TP]`` fp32.
    """

    module: Any
    config: Any
    _training_loss_reduction: Any

    def __init__(
        self,
        config: Any = None,
        optim: Any = None,
        tokenizer: Any = None,
        model_transform: Callable[[torch.nn.Module], torch.nn.Module] | None = None,
        *,
        objective: Objective | None = None,
        row_chunk: int = 512,
    ) -> None:
        super().__init__(config, optim=optim, tokenizer=tokenizer, model_transform=model_transform)  # type: ignore[call-arg]
        self.objective = objective
        self.row_chunk = row_chunk

    def io_transform_args(self, init_fn: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Keep the objective out of NeMo's stored context: it belongs to a run, not to the weights."""
        kwargs.pop("objective", None)
        return super().io_transform_args(init_fn, *args, **kwargs)  # type: ignore[misc]

    def configure_model(self, vp_stage: int | None = None) -> None:
        """Build the Megatron model with this device's layers and the response-only head."""
        device.prepare_process()
        device.configure(self.config)
        super().configure_model(vp_stage=vp_stage)  # type: ignore[misc]
        device.complete(self.module)
        if self.module.post_process and not isinstance(self.module.output_layer, ResponseHead):
            self.module.output_layer = ResponseHead.take_over(self.module.output_layer, self.row_chunk)

    def data_step(self, dataloader_iter: Iterator[Any]) -> Batch:
        """Next micro-batch, already this context-parallel rank's share, on this rank's device."""
        batch = next(dataloader_iter)
        if isinstance(batch, tuple):  # Lightning's (batch, index, dataloader index)
            batch = batch[0]
        return device.to_device(batch)

    def forward_step(self, batch: Batch) -> torch.Tensor:
        """Summed response log-probability of every packed sequence, fp32 ``[parts]``, nats.

        On all pipeline stages but the last: the hidden states for the next stage.
        """
        return score_sequences(self, batch)

    @property
    def training_loss_reduction(self) -> ObjectiveReduction:
        """The objective as NeMo's loss reduction."""
        if self.objective is None:
            raise ValueError(f"{type(self).__name__} was built without an objective: it cannot be trained")
        if self._training_loss_reduction is None or self._training_loss_reduction.objective is not self.objective:
            self._training_loss_reduction = ObjectiveReduction(self.objective)
        return self._training_loss_reduction

    validation_loss_reduction = training_loss_reduction


class ObjectiveReduction(MegatronLossReduction):
    """Turns the summed log-probabilities of a micro-batch into its loss and metrics.

    Every sample of the global batch has the same weight: the loss of a micro-batch is the mean over
    its samples, Megatron averages over the (equally large) micro-batches and data-parallel ranks.

    Args:
        objective: names the sequences.
        loss: of their scores, if it is not the objective's own.

    Attributes:
        metrics: after :meth:`reduce`, the means over the global batch (on the last pipeline stage).
        samples: after :meth:`reduce`, ids and losses of this rank's micro-batches.
    """

    def __init__(self, objective: Objective, loss: Loss | None = None) -> None:
        super().__init__()
        self.objective, self.loss = objective, loss or objective
        self.metrics: dict[str, float] = {}
        self.samples: list[tuple[Sequence[str], torch.Tensor]] = []
        self._samples: list[tuple[Sequence[str], torch.Tensor]] = []

    def forward(self, batch: Batch, logp: torch.Tensor) -> tuple[torch.Tensor, dict[str, dict[str, torch.Tensor]]]:
        """Loss of one micro-batch and what :meth:`reduce` needs of it."""
        names = self.objective.sequences
        logps = logp.view(-1, len(names)).unbind(1)
        tokens = batch["response_tokens"].view(-1, len(names)).unbind(1)
        policy = {
            name: SequenceScores(logp=score, tokens=count)
            for name, score, count in zip(names, logps, tokens, strict=True)
        }
        reference: Mapping[str, torch.Tensor] | None = batch.get("reference")
        if reference is not None:
            reference = {name: value.to(logp.dtype) for name, value in reference.items()}
        result = self.loss(policy, reference)
        self._samples.append((batch.get("ids", ()), result.per_sample.detach()))
        read = batch["real_tokens"].view(-1, len(names)).sum(0)
        long = [i for i, name in enumerate(names) if name.startswith("long")]
        counts = {"tokens": read.sum(), "tokens_long": read[long].sum()}
        return result.loss, {"means": result.metrics, "sums": counts}

    @torch.no_grad()
    def reduce(self, losses_reduced_per_micro_batch: Sequence[dict[str, dict[str, torch.Tensor]]]) -> torch.Tensor:
        """Means (of the metrics) and sums (of the token counts) over micro-batches and data-parallel ranks."""
        self.samples, self._samples = self._samples, []
        outputs, group = losses_reduced_per_micro_batch, parallel_state.get_data_parallel_group()
        means = torch.stack([torch.stack(list(o["means"].values())) for o in outputs]).double().mean(0)
        sums = torch.stack([torch.stack(list(o["sums"].values())) for o in outputs]).sum(0)
        dist.all_reduce(means, group=group)
        dist.all_reduce(sums, group=group)
        means /= group.size()
        self.metrics = dict(zip(outputs[0]["means"], means.tolist(), strict=True))
        self.metrics |= dict(zip(outputs[0]["sums"], sums.tolist(), strict=True))
        return torch.tensor(self.metrics["loss"], device=means.device)
