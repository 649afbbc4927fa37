"""Builds the policy of a run or a dry run from its configuration: NeMo model, optimizer and DDP settings."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallelConfig
from megatron.core.optimizer import OptimizerConfig

from solopo_nemo.config.schema import RunConfig
from solopo_nemo.core.device import recomputed_modules
from solopo_nemo.core.step import Reference
from solopo_nemo.data.packing import Layout
from solopo_nemo.families.description import ModelDescription
from solopo_nemo.nemo_model.adapters import lora_of
from solopo_nemo.nemo_model.models import nemo_model
from solopo_nemo.objectives import Objective
from solopo_nemo.runtime import device

LOSS_SCALE = 1.0
"""Loss scale for bf16. With a scale, Megatron checks the gradients and skips an update that is not finite."""


def precision_of(config: RunConfig) -> str:
    """The precision of a run, ``fp32`` or ``bf16``; with ``trainer.precision=null`` it depends on the device."""
    return config.trainer.precision or device.default_precision()


def dtype_of(config: RunConfig) -> torch.dtype:
    """The dtype of weights and activations: that of :func:`precision_of`."""
    return torch.bfloat16 if precision_of(config) == "bf16" else torch.float32


def build_model(
    config: RunConfig, description: ModelDescription, objective: Objective, reference: Reference | None
) -> Any:
    """The NeMo model of a run. Its Megatron model is not built yet (``configure_model`` builds it).

    Args:
        config: configuration of the run.
        description: description of the model's folder.
        objective: the loss.
        reference: scores of the reference policy, or ``None``.
    """
    dtype = dtype_of(config)
    model = nemo_model(
        description,
        dtype,
        objective=objective,
        reference=reference,
        logits_chunk_size=config.model.logits_chunk_size,
        layers=config.model.layers,
        lora=lora_of(config, description),
    )
    settings: dict[str, Any] = {"cp_comm_type": config.parallel.cp_comm_type, "pipeline_dtype": dtype}
    if config.model.recompute == "full":
        settings |= {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    elif config.model.recompute == "selective":
        modules = recomputed_modules(description.experts is not None)
        settings |= {"recompute_granularity": "selective", "recompute_modules": modules}
    if description.experts is not None:
        settings["moe_z_loss_coeff"] = config.model.moe_z_loss or None
        if config.model.moe_aux_loss is not None:
            settings["moe_aux_loss_coeff"] = config.model.moe_aux_loss
    for key, value in settings.items():
        setattr(model.config, key, value)
    return model


def parallel_sizes(config: RunConfig) -> dict[str, Any]:
    """The parallel sizes under the names of Megatron's configs and NeMo's strategy."""
    return {
        "tensor_model_parallel_size": config.parallel.tensor,
        "pipeline_model_parallel_size": config.parallel.pipeline,
        "context_parallel_size": config.parallel.context,
        "expert_model_parallel_size": config.parallel.expert,
        "expert_tensor_parallel_size": config.parallel.expert_tensor_size,
        "sequence_parallel": config.parallel.sequence,
        "pipeline_dtype": dtype_of(config),
    }


def optimizer_config(config: RunConfig) -> OptimizerConfig:
    """The settings of Megatron's distributed AdamW.

    Memory of a rank: for each of its parameters 12 bytes in bf16 (fp32 weights and two moments) and 8 bytes in fp32,
    divided by DP x CP.
    """
    optim = config.optim
    return OptimizerConfig(
        optimizer="adam",
        lr=optim.lr,
        min_lr=optim.min_lr,
        weight_decay=optim.weight_decay,
        adam_beta1=optim.beta1,
        adam_beta2=optim.beta2,
        adam_eps=optim.eps,
        clip_grad=optim.clip_grad,
        use_distributed_optimizer=True,
        bf16=precision_of(config) == "bf16",
        loss_scale=LOSS_SCALE,
    )


def ddp_config() -> DistributedDataParallelConfig:
    """The settings of Megatron's DDP: fp32 gradients in one buffer, on a GPU reduced while backward runs."""
    return DistributedDataParallelConfig(
        use_distributed_optimizer=True,
        overlap_grad_reduce=device.cuda(),
        overlap_param_gather=device.cuda(),
        grad_reduce_in_fp32=True,
    )


def packing_layout(config: RunConfig) -> Layout:
    """This rank's layout for packing. Megatron's process groups must exist."""
    return Layout(
        cp_size=parallel_state.get_context_parallel_world_size(),
        cp_rank=parallel_state.get_context_parallel_rank(),
        multiple=config.parallel.tensor if config.parallel.sequence else 1,
    )
