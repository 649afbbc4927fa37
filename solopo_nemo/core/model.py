"""Megatron-core's ``GPTModel`` for packed micro-batches: its layers and the response head."""

from __future__ import annotations

from typing import Any

from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer.transformer_config import TransformerConfig

from solopo_nemo.core import device
from solopo_nemo.core.head import LOGITS_CHUNK_SIZE, ResponseHead
from solopo_nemo.core.layers.extras import ScaledEmbedding, extras
from solopo_nemo.core.layers.rotary import keep_no_tables
from solopo_nemo.core.lora import LoRA, add_adapters


def build_model(
    config: TransformerConfig,
    vocab_size: int,
    max_sequence_length: int,
    *,
    layers: str = "auto",
    transformer_layer_spec: Any = None,
    logits_chunk_size: int = LOGITS_CHUNK_SIZE,
    lora: LoRA | None = None,
    **kwargs: Any,
) -> GPTModel:
    """Build a Megatron ``GPTModel`` that :class:`solopo_nemo.core.step.ForwardStep` can train.

    1. Prepare the process: without CUDA, Megatron's CUDA calls are answered on the CPU.
    2. Set the fields of ``config`` that packed micro-batches, the device and the layers decide, in place.
    3. Build this pipeline stage with these layers.
    4. Put a response head on the last stage, and adapters on the layers where ``lora`` asks for them.

    Valid under TP, SP, CP, PP and DP; virtual pipeline stages are not supported.

    Args:
        config: of the model; its parallel sizes are those of Megatron's groups, which exist.
        vocab_size: rows of the embedding, a multiple of the tensor-parallel size.
        max_sequence_length: as ``GPTModel`` takes it.
        layers: ``auto``, ``transformer_engine`` or ``torch``; see :func:`solopo_nemo.core.device.configure`.
        transformer_layer_spec: layers of your own; by default :func:`solopo_nemo.core.device.layer_spec`.
        logits_chunk_size: see :class:`solopo_nemo.core.head.ResponseHead`.
        lora: adapters, which alone are trained then; see :func:`solopo_nemo.core.lora.add_adapters`.
        **kwargs: more arguments of ``GPTModel``, such as ``rotary_base`` or ``share_embeddings_and_output_weights``.

    Raises:
        UserError: such layers do not run here.
        ValueError: with torch's layers, a model that is no RMSNorm model with a gated MLP.
    """
    device.prepare_process()
    device.configure(config, layers)
    model = GPTModel(
        config,
        transformer_layer_spec or device.layer_spec(config),
        vocab_size,
        max_sequence_length,
        pre_process=parallel_state.is_pipeline_first_stage(),
        post_process=parallel_state.is_pipeline_last_stage(),
        **{"position_embedding_type": "rope", **kwargs},
    )
    return complete(model, logits_chunk_size, lora)


def complete(model: GPTModel, logits_chunk_size: int = LOGITS_CHUNK_SIZE, lora: LoRA | None = None) -> GPTModel:
    """Give a built ``GPTModel`` its response head and adapters, in place; ``device.configure`` has set its config.

    Args:
        model: this pipeline stage, not yet wrapped.
        logits_chunk_size: see :class:`solopo_nemo.core.head.ResponseHead`.
        lora: settings of the adapters, or ``None``.
    """
    keep_no_tables(model)
    if model.pre_process and extras(model.config).scaled_embedding:
        model.embedding.__class__ = ScaledEmbedding  # Megatron names the class that it makes itself
    if model.post_process and not isinstance(model.output_layer, ResponseHead):
        model.output_layer = ResponseHead.from_output_layer(model.output_layer, logits_chunk_size)
    if lora is not None:
        add_adapters(model, lora)
    return model
