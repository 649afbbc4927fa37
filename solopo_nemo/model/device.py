"""The one place that decides between CUDA (Transformer Engine, NCCL) and CPU (torch SDPA, gloo)."""

from __future__ import annotations

from typing import Any

import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig

from solopo_nemo.errors import UserError
from solopo_nemo.model import cpu_backend
from solopo_nemo.model.layers import sdpa_layer_spec


def cuda() -> bool:
    """Whether this process computes on a GPU."""
    return torch.cuda.is_available()


def to_device(batch: dict[str, Any]) -> dict[str, Any]:
    """The batch, nested dictionaries included, on this process's device."""
    return move_data_to_device(batch, torch.device("cuda", torch.cuda.current_device())) if cuda() else batch


def prepare_process() -> None:
    """Make Megatron-core and NeMo usable in this process; call before a model is built."""
    if not cuda():
        cpu_backend.install()
        return
    from nemo.collections.llm.gpt.model.base import HAVE_TE

    if not HAVE_TE:
        raise UserError("CUDA is present but Transformer Engine is not: install transformer-engine[pytorch]")


def layer_spec(config: TransformerConfig, vp_stage: int | None = None) -> ModuleSpec | TransformerBlockSubmodules:
    """Transformer layers for this device: NeMo's Transformer Engine spec on a GPU, ours on the CPU.

    Both use the same parameter names. A module-level function, so that NeMo can store it in a
    checkpoint's context and find it again.
    """
    if not cuda():
        return sdpa_layer_spec(config, vp_stage=vp_stage)
    from nemo.collections.llm.gpt.model.base import default_layer_spec

    return default_layer_spec(config, vp_stage=vp_stage)


def model_settings() -> dict[str, Any]:
    """Fields of a NeMo model config that the device decides.

    Packed micro-batches differ in length, so the pipeline exchanges shapes on every device.
    """
    settings: dict[str, Any] = {
        "transformer_layer_spec": layer_spec,
        "variable_seq_lengths": True,
        "moe_token_dispatcher_type": "alltoall",  # Megatron demands it with variable_seq_lengths
        "deallocate_pipeline_outputs": True,
    }
    if not cuda():
        settings |= {
            "use_cpu_initialization": True,
            "gradient_accumulation_fusion": False,
            "masked_softmax_fusion": False,
            "bias_activation_fusion": False,
            "bias_dropout_fusion": False,
            "persist_layer_norm": False,
            "apply_rope_fusion": False,
            "cross_entropy_loss_fusion": False,
        }
    return settings
