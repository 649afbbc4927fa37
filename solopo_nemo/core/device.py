"""What the device decides in Megatron-core: Transformer Engine and NCCL on CUDA, plain torch and gloo on a CPU.

:mod:`solopo_nemo.runtime.device` says which device it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F

from solopo_nemo.core import cpu_patches
from solopo_nemo.runtime import kernels
from solopo_nemo.runtime.device import cuda, current
from solopo_nemo.runtime.errors import UserError

if TYPE_CHECKING:  # Megatron-core is imported after prepare_process where that is possible: it is faster
    from megatron.core.transformer.transformer_config import TransformerConfig

    from solopo_nemo.data.packing import Batch

__all__ = ["configure", "cuda", "current", "layer_spec", "prepare_process", "recomputed_modules", "to_device"]


def to_device(batch: Batch) -> Batch:
    """The batch with its tensors on this process's device."""
    if not cuda():
        return batch
    # the longest length stays on the host, which reads it: from the GPU it would wait for all that runs there
    moved = {k: v.to(current(), non_blocking=True) if torch.is_tensor(v) and v.dim() else v for k, v in batch.items()}
    return cast("Batch", moved)


def prepare_process() -> None:
    """Make Megatron-core usable in this process; call before a model or its groups are built.

    Raises:
        UserError: CUDA without Transformer Engine.
    """
    if not cuda():
        cpu_patches.install()
        return
    from megatron.core.models.gpt.gpt_layer_specs import HAVE_TE

    if not HAVE_TE:
        raise UserError(kernels.NO_ENGINE)


def configure(config: TransformerConfig) -> None:
    """Set the fields of a model config that packed micro-batches and the device decide, in place."""
    # packed micro-batches differ in length: the pipeline exchanges shapes, which Megatron ties to this dispatcher
    settings: dict[str, Any] = {"variable_seq_lengths": True, "moe_token_dispatcher_type": "alltoall"}
    if cuda():
        # NeMo sets them for Llama alone; unfused, the rotary embedding asks the GPU for lengths (rope_utils.py:204)
        settings["apply_rope_fusion"] = not config.multi_latent_attention
        settings["bias_activation_fusion"] = config.gated_linear_unit and config.activation_func is F.silu
    else:
        settings |= {
            "use_cpu_initialization": True,
            "gradient_accumulation_fusion": False,
            "masked_softmax_fusion": False,
            "bias_activation_fusion": False,
            "use_te_activation_func": True,  # Megatron then takes the activation from the layer spec
            "bias_dropout_fusion": False,
            "persist_layer_norm": False,
            "cross_entropy_loss_fusion": False,
        }
    for field, value in settings.items():
        setattr(config, field, value)


def recomputed_modules() -> list[str]:
    """What ``model.recompute=selective`` computes again in backward, as Megatron names it.

    On a GPU the MLP, whose tensors are the largest of a layer: fused attention saves no scores, and to run it again
    costs the most at long prompts (transformer_config.py:974 warns). On a CPU core attention.
    """
    return ["mlp"] if cuda() else ["core_attn"]


def layer_spec(config: TransformerConfig) -> Any:
    """The transformer layers of this device: Transformer Engine's on CUDA, ours on a CPU, under the same names."""
    if not cuda():
        from solopo_nemo.core.layers.spec import sdpa_layer_spec

        return sdpa_layer_spec(config)
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec

    return get_gpt_decoder_block_spec(config, use_transformer_engine=True)
