"""Builds Megatron-core's ``GPTModel`` for packed micro-batches, with this project's layers and response head."""

from __future__ import annotations

from typing import Any

from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer.transformer_config import TransformerConfig

from solopo_nemo.core import device
from solopo_nemo.core.embedding import RowGradientEmbedding
from solopo_nemo.core.experts import forget_routes
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
    """Builds a Megatron ``GPTModel`` that :class:`solopo_nemo.core.step.ForwardStep` can train.

    1. Prepare the process: without CUDA, Megatron's CUDA calls run on the CPU.
    2. Set the fields of ``config`` that depend on packing, the device and the layers, in place.
    3. Build this pipeline stage with these layers.
    4. Replace the output layer of the last stage by a response head, and add the adapters of ``lora``.

    It is valid under TP, SP, CP, PP and DP. Virtual pipeline stages are not supported.

    Args:
        config: config of the model. Its parallel sizes are those of Megatron's process groups, which must exist.
        vocab_size: rows of the embedding, a multiple of the tensor-parallel size.
        max_sequence_length: argument of ``GPTModel``, in tokens.
        layers: ``auto``, ``transformer_engine`` or ``torch``; see :func:`solopo_nemo.core.device.configure`.
        transformer_layer_spec: your own layer spec; by default :func:`solopo_nemo.core.device.layer_spec`.
        logits_chunk_size: see :class:`solopo_nemo.core.head.ResponseHead`.
        lora: settings of the adapters, which are then the only trained parameters; see
            :func:`solopo_nemo.core.lora.add_adapters`.
        **kwargs: further arguments of ``GPTModel``, such as ``rotary_base`` or ``share_embeddings_and_output_weights``.

    Raises:
        UserError: these layers do not run on this machine.
        ValueError: torch's layers are chosen, and the model has no RMSNorm or no gated MLP.
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
    """Adds the response head and the adapters to a built ``GPTModel``, in place.

    Args:
        model: this pipeline stage, not yet wrapped. :func:`solopo_nemo.core.device.configure` has set its config.
        logits_chunk_size: see :class:`solopo_nemo.core.head.ResponseHead`.
        lora: settings of the adapters, or ``None``.

    Returns:
        The same model.
    """
    keep_no_tables(model)
    forget_routes(model)
    if model.pre_process and extras(model.config).scaled_embedding:
        model.embedding.__class__ = ScaledEmbedding  # GPTModel has no argument for the class of the embedding
    if model.pre_process and not device.cuda():
        model.embedding.word_embeddings.__class__ = RowGradientEmbedding
    if model.post_process and not isinstance(model.output_layer, ResponseHead):
        model.output_layer = ResponseHead.from_output_layer(model.output_layer, logits_chunk_size)
    if lora is not None:
        add_adapters(model, lora)
    return model
