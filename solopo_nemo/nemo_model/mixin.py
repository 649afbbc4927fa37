"""SoLoPO for NeMo models: :mod:`solopo_nemo.core` in the shape that NeMo's Lightning modules have."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
from nemo.collections.llm.gpt.model.base import default_layer_spec

from solopo_nemo.core import device
from solopo_nemo.core.head import LOGITS_CHUNK_SIZE
from solopo_nemo.core.lora import LoRA
from solopo_nemo.core.model import complete
from solopo_nemo.core.step import Batch, Reference, score_sequences
from solopo_nemo.nemo_model import compat
from solopo_nemo.nemo_model.reduction import ObjectiveReduction
from solopo_nemo.objectives import Objective

compat.allow_configs()

logger = logging.getLogger("solopo_nemo")


class SoLoPOMixin:
    """Preference optimization for ``nemo.collections.llm.GPTModel`` and its subclasses.

    ``class SoLoQwen2(SoLoPOMixin, llm.Qwen2Model): ...`` is a NeMo LightningModule like any other. Its step is
    :class:`solopo_nemo.core.step.ForwardStep`. Valid under TP, SP, CP, PP and DP; virtual pipeline stages are not
    supported.

    Args:
        config, optim, tokenizer, model_transform: as ``GPTModel`` takes them.
        objective: the loss; ``None`` for a model that is only converted or exported.
        reference: scores of the reference policy, for an objective that needs them.
        logits_chunk_size: rows of the logits that are made at a time; see :class:`solopo_nemo.core.head.ResponseHead`.
        lora: adapters, which alone are trained then; ``None``: all weights are.
        layers: ``auto``, ``transformer_engine`` or ``torch``; see :func:`solopo_nemo.core.device.configure`.
        row_chunk: its former name, which the contexts of earlier checkpoints hold.
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
        reference: Reference | None = None,
        logits_chunk_size: int = LOGITS_CHUNK_SIZE,
        layers: str = "auto",
        lora: LoRA | None = None,
        row_chunk: int | None = None,
    ) -> None:
        super().__init__(config, optim=optim, tokenizer=tokenizer, model_transform=model_transform)  # type: ignore[call-arg]
        self.objective, self.reference = objective, reference
        if row_chunk is not None:
            logger.warning("row_chunk is deprecated: it is called logits_chunk_size now")
        self.logits_chunk_size, self.layers, self.lora = row_chunk or logits_chunk_size, layers, lora

    def io_transform_args(self, init_fn: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Keep what belongs to a run, and not to the weights, out of NeMo's stored context."""
        for name in ("objective", "reference", "logits_chunk_size", "layers", "lora", "row_chunk"):
            kwargs.pop(name, None)
        return super().io_transform_args(init_fn, *args, **kwargs)  # type: ignore[misc]

    def configure_model(self, vp_stage: int | None = None) -> None:
        """Build the Megatron model with its layers and the response head.

        A layer spec that the user chose stays; NeMo's own is replaced where torch's layers are taken, and in a model
        with experts, whose router is this project's.
        """
        compat.prepare_process()
        device.configure(self.config, self.layers)
        own = self.config.transformer_impl == "local" or self.config.num_moe_experts is not None
        if own and self.config.transformer_layer_spec is default_layer_spec:
            self.config.transformer_layer_spec = device.layer_spec
        super().configure_model(vp_stage=vp_stage)  # type: ignore[misc]
        complete(self.module, self.logits_chunk_size, self.lora)

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The Megatron model's output; NeMo's own method leaves out ``padding_mask``."""
        out: torch.Tensor = self.module(*args, **kwargs)
        return out

    def data_step(self, dataloader_iter: Iterator[Any]) -> Batch:
        """Next micro-batch, already this context-parallel rank's share, on this rank's device."""
        batch = next(dataloader_iter)
        # Lightning gives (batch, index, dataloader index)
        return device.to_device(batch[0] if isinstance(batch, tuple) else batch)

    def forward_step(self, batch: Batch) -> torch.Tensor:
        """Scores fp32 ``[num_sequences]``, nats; see :func:`solopo_nemo.core.step.score_sequences`."""
        return score_sequences(self, batch)

    @property
    def training_loss_reduction(self) -> ObjectiveReduction:
        """The objective as NeMo's loss reduction."""
        if self.objective is None:
            raise ValueError(f"{type(self).__name__} was built without an objective: it cannot be trained")
        if self._training_loss_reduction is None or self._training_loss_reduction.step.objective is not self.objective:
            self._training_loss_reduction = ObjectiveReduction(self.objective, self.reference)
        return self._training_loss_reduction

    validation_loss_reduction = training_loss_reduction
