"""What some models compute beyond Megatron-core's layers, as fields of their config."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.models.common.embeddings.language_model_embedding import LanguageModelEmbedding


@dataclass
class LayerExtras:
    """Fields that torch's layers read of a model config, and that Megatron's ``TransformerConfig`` lacks.

    Attributes:
        post_norms: the outputs of attention and MLP are normalized before they are added to the residual.
        rotary_base_local: rotary base of the layers with a sliding window, without scaling; ``None``: that of all.
        scaled_embedding: the embedding is multiplied with ``sqrt(hidden_size)``, rounded to ``params_dtype``.
    """

    post_norms: bool = False
    rotary_base_local: float | None = None
    scaled_embedding: bool = False


def extras(config: Any) -> LayerExtras:
    """The extras of a model config; a config without the fields has none."""
    return config if isinstance(config, LayerExtras) else LayerExtras()


class ScaledEmbedding(LanguageModelEmbedding):
    """A ``GPTModel``'s embedding, scaled. TP, SP, CP, PP, DP: as the embedding itself."""

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """As ``LanguageModelEmbedding``; the factor is rounded to the type of the model, as in transformers."""
        out: torch.Tensor = super().forward(*args, **kwargs)
        factor = torch.tensor(self.config.hidden_size**0.5, dtype=self.config.params_dtype).item()
        return out * out.new_full((), factor)
