"""Settings of Megatron-core that depend on the device and the layers (Transformer Engine or plain torch).

:mod:`solopo_nemo.runtime.device` knows the device, :mod:`solopo_nemo.runtime.kernels` decides which layers run on it.
The model's config carries the decision in Megatron's field ``transformer_impl``: ``local`` means plain torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F

from solopo_nemo.core import cpu_patches
from solopo_nemo.runtime import kernels
from solopo_nemo.runtime.device import cuda, current
from solopo_nemo.runtime.errors import require

if TYPE_CHECKING:  # an import of Megatron-core is faster after prepare_process
    from megatron.core.transformer.transformer_config import TransformerConfig

    from solopo_nemo.data.packing import Batch

__all__ = [
    "configure",
    "cuda",
    "current",
    "drop_empty",
    "fuse_adamw",
    "layer_spec",
    "optimizers_of",
    "prepare_process",
    "recomputed_modules",
    "to_device",
]


def to_device(batch: Batch) -> Batch:
    """The batch with its tensors on this process's device.

    They are copied from pinned memory, so that the host does not wait for what the GPU computes before.
    """
    if not cuda():
        return batch
    where = current()

    def move(tensor: torch.Tensor) -> torch.Tensor:
        pinned = tensor.pin_memory() if where.type == "cuda" else tensor
        return pinned.to(where, non_blocking=True)

    return cast("Batch", {k: move(v) if torch.is_tensor(v) else v for k, v in batch.items()})


def prepare_process() -> None:
    """Makes Megatron-core usable in this process. Call it before a model or Megatron's groups are built."""
    cpu_patches.install()
    cpu_patches.install_optimizer()


def configure(config: TransformerConfig, layers: str = "auto") -> None:
    """Sets the fields of a model config that depend on packing, the device and the layers, in place.

    Args:
        config: config of the model.
        layers: value of ``model.layers``: ``auto``, ``transformer_engine`` or ``torch``.

    Raises:
        UserError: these layers do not run on this machine; the message names the remedy.
    """
    chosen = kernels.choose_layers(layers, kernels.Installed.here() if cuda() else None, _need(config))
    # packed micro-batches differ in length, so that pipeline stages exchange shapes, which Megatron refuses with its
    # default dispatcher of experts (allgather)
    settings: dict[str, Any] = {"variable_seq_lengths": True, "moe_token_dispatcher_type": "alltoall"}
    if chosen.name == kernels.ENGINE:
        from megatron.core.models.gpt.gpt_layer_specs import HAVE_TE

        require(
            HAVE_TE,
            f"model.layers={layers}: {chosen.why}, and Megatron-core cannot import it: python -c 'import "
            "transformer_engine.pytorch' says why; model.layers=torch goes without",
        )
        # NeMo sets them for Llama only. Unfused, the rotary embedding reads lengths from the GPU (rope_utils.py:204),
        # for which the host waits
        settings |= {
            "transformer_impl": "transformer_engine",
            "apply_rope_fusion": not config.multi_latent_attention,
            "bias_activation_fusion": config.gated_linear_unit and config.activation_func is F.silu,
        }
        if config.num_moe_experts is not None:
            settings |= {"moe_grouped_gemm": True, "moe_permute_fusion": True}
    else:
        settings |= {
            "transformer_impl": "local",
            # an import builds the model on the meta device; GPU initialization would allocate it on the GPU
            "use_cpu_initialization": not cuda() or bool(getattr(config, "init_model_with_meta_device", False)),
            "gradient_accumulation_fusion": False,
            "masked_softmax_fusion": False,
            "bias_activation_fusion": False,
            "use_te_activation_func": True,  # the activation comes from the layer spec
            "bias_dropout_fusion": False,
            "persist_layer_norm": False,
            "cross_entropy_loss_fusion": False,
            "apply_rope_fusion": False,
        }
    for field, value in settings.items():
        setattr(config, field, value)


def _need(config: TransformerConfig) -> kernels.Need:
    """The requirements of a model's config on its layers."""
    from solopo_nemo.core.layers.extras import extras

    own = extras(config)
    return kernels.Need(
        "fp32" if config.params_dtype == torch.float32 and not (config.bf16 or config.fp16) else "bf16",
        config.kv_channels,
        config.window_size is not None,
        (config.cp_comm_type or "p2p") if config.context_parallel_size > 1 else None,
        kernels.lacking(own.post_norms, own.rotary_base_local is not None),
    )


def recomputed_modules(experts: bool = False) -> list[str]:
    """Megatron's names of the modules that ``model.recompute=selective`` computes again in backward.

    On a GPU it is the MLP, whose saved tensors are the largest of a layer. Fused attention saves no scores, and its
    recomputation costs the most at long prompts (transformer_config.py:974 warns of it). On a CPU it is core attention.

    Args:
        experts: whether the model has mixture-of-experts layers, which are then recomputed with routing and exchange.
    """
    return ["mlp", *["moe"] * experts] if cuda() else ["core_attn"]


def layer_spec(config: TransformerConfig, vp_stage: int | None = None) -> Any:
    """The layer spec of a config that :func:`configure` has set. Parameter names are the same for both kinds of layers.

    Args:
        config: config of the model.
        vp_stage: virtual pipeline stage, as Megatron passes it.
    """
    if config.transformer_impl == "local":
        from solopo_nemo.core.layers.spec import torch_layer_spec

        return torch_layer_spec(config, vp_stage)
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec
    from megatron.core.transformer.moe.moe_layer import MoELayer

    from solopo_nemo.core.layers.experts import Router

    block = get_gpt_decoder_block_spec(config, use_transformer_engine=True, vp_stage=vp_stage)
    for layer in block.layer_specs:
        if layer.submodules.mlp.module is MoELayer:
            layer.submodules.mlp.submodules.router = Router
    return block


def optimizers_of(optimizer: Any) -> list[Any]:
    """The parts of a Megatron optimizer: those that it chains, or the optimizer itself."""
    return list(getattr(optimizer, "chained_optimizers", [optimizer]))


def drop_empty(optimizer: Any) -> None:
    """Leaves out of a chain the optimizer without parameters: with adapters of experts alone, that of all else.

    Megatron makes it without buffers (distrib_optimizer.py:524) and cannot save it. Ranks have the same groups of
    parameters (optimizer/__init__.py:181), so that it is empty on all or on none.

    Args:
        optimizer: Megatron's chain of optimizers.
    """
    optimizer.chained_optimizers = [part for part in optimizers_of(optimizer) if not part.is_stub_optimizer]


def fuse_adamw(optimizer: Any) -> None:
    """Switches torch's AdamW to its fused kernel, which reads memory once. Megatron has no option for it.

    Args:
        optimizer: Megatron's optimizer; parts with another optimizer than torch's AdamW stay as they are.
    """
    for part in optimizers_of(optimizer):
        if isinstance(part.optimizer, torch.optim.AdamW):
            for group in part.optimizer.param_groups:
                group["fused"] = True
