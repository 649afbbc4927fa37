"""SoLoPO for NeMo models: the training step of :mod:`solopo_nemo.core` as methods of a NeMo LightningModule."""

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
    :class:`solopo_nemo.core.step.ForwardStep`. It is valid under TP, SP, CP, PP and DP. Virtual pipeline stages are not
    supported. Importing the module makes NeMo's Llama configs usable without Transformer Engine; the process is changed
    further only when a model is built (:func:`solopo_nemo.nemo_model.compat.prepare_process`).

    Args:
        config, optim, tokenizer, model_transform: arguments of ``GPTModel``.
        objective: the loss; ``None`` for a model that is only converted or exported.
        reference: scores of the reference policy; needed if the objective has ``reference_sequences``.
        logits_chunk_size: number of rows of a tile of logits; see :class:`solopo_nemo.core.head.ResponseHead`.
        layers: ``auto``, ``transformer_engine`` or ``torch``; see :func:`solopo_nemo.core.device.configure`.
        lora: settings of the adapters, which are then the only trained parameters; ``None`` trains all weights.
        row_chunk: former name of ``logits_chunk_size``, which the contexts of earlier checkpoints contain.
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
        """Leaves arguments of the run, which do not belong to the weights, out of NeMo's stored context."""
        for name in ("objective", "reference", "logits_chunk_size", "layers", "lora", "row_chunk"):
            kwargs.pop(name, None)
        return super().io_transform_args(init_fn, *args, **kwargs)  # type: ignore[misc]

    def configure_model(self, vp_stage: int | None = None) -> None:
        """Builds the Megatron model with its layers, the response head and the adapters.

        NeMo's default layer spec is replaced if torch's layers are chosen, and in a model with experts, which has this
        project's router. A layer spec of the user stays.

        Args:
            vp_stage: virtual pipeline stage, as NeMo passes it.
        """
        compat.prepare_process()
        device.configure(self.config, self.layers)
        own = self.config.transformer_impl == "local" or self.config.num_moe_experts is not None
        if own and self.config.transformer_layer_spec is default_layer_spec:
            self.config.transformer_layer_spec = device.layer_spec
        super().configure_model(vp_stage=vp_stage)  # type: ignore[misc]
        complete(self.module, self.logits_chunk_size, self.lora)

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The output of the Megatron model. NeMo's method does not pass ``padding_mask``."""
        return self.module(*args, **kwargs)

    def data_step(self, dataloader_iter: Iterator[Any]) -> Batch:
        """The next micro-batch on this rank's device. It is this context-parallel rank's share already."""
        batch = next(dataloader_iter)
        # Lightning yields (batch, index, dataloader index)
        return device.to_device(batch[0] if isinstance(batch, tuple) else batch)

    def forward_step(self, batch: Batch) -> torch.Tensor:
        """The scores, fp32 ``[num_sequences]`` in nats; see :func:`solopo_nemo.core.step.score_sequences`."""
        return score_sequences(self, batch)

    @property
    def training_loss_reduction(self) -> ObjectiveReduction:
        """The objective as NeMo's loss reduction.

        Raises:
            ValueError: the model was built without an objective.
        """
        if self.objective is None:
            raise ValueError(f"{type(self).__name__} was built without an objective: it cannot be trained")
        if self._training_loss_reduction is None or self._training_loss_reduction.step.objective is not self.objective:
            self._training_loss_reduction = ObjectiveReduction(self.objective, self.reference)
        return self._training_loss_reduction

    validation_loss_reduction = training_loss_reduction
