"""The one place that decides between CUDA (Transformer Engine, NCCL) and CPU (torch SDPA, gloo)."""

from __future__ import annotations

from typing import Any

import psutil
import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from megatron.core.transformer.transformer_config import TransformerConfig

from solopo_nemo.core import cpu_patches
from solopo_nemo.core.layers.rotary import use_local_positions
from solopo_nemo.core.layers.spec import sdpa_layer_spec
from solopo_nemo.runtime.errors import UserError


def cuda() -> bool:
    """Whether this process computes on a GPU."""
    return torch.cuda.is_available()


def memory_gib() -> float:
    """Memory of this process's GPU in GiB, or of the machine where there is none."""
    size = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory if cuda() else None
    return float(size or psutil.virtual_memory().total) / 2**30


def saves_asynchronously() -> bool:
    """Whether checkpoints are written while the training goes on.

    Megatron forks the writer: from a GPU it has its own copies, on a CPU the weights that it reads would be trained on.
    """
    return cuda()


def to_device(batch: dict[str, Any]) -> dict[str, Any]:
    """The batch, nested dictionaries included, on this process's device."""
    return move_data_to_device(batch, torch.device("cuda", torch.cuda.current_device())) if cuda() else batch


def prepare_process() -> None:
    """Make Megatron-core and NeMo usable in this process; call before a model is built."""
    if not cuda():
        cpu_patches.install()
        return
    from nemo.collections.llm.gpt.model.base import HAVE_TE

    if not HAVE_TE:
        raise UserError("CUDA is present but Transformer Engine is not: install transformer-engine[pytorch]")


def configure(config: TransformerConfig) -> None:
    """Set the fields of a model config that the device decides, in place.

    On a GPU NeMo's Transformer Engine layers stay, on the CPU ours take their place, under the same
    parameter names; a layer spec that the user chose stays on either.
    """
    # packed micro-batches differ in length: the pipeline exchanges shapes, which Megatron ties to this dispatcher
    settings: dict[str, Any] = {"variable_seq_lengths": True, "moe_token_dispatcher_type": "alltoall"}
    if not cuda():
        from nemo.collections.llm.gpt.model.base import default_layer_spec

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
        if getattr(config, "transformer_layer_spec", None) is default_layer_spec:
            settings["transformer_layer_spec"] = sdpa_layer_spec
    for field, value in settings.items():
        setattr(config, field, value)


def complete(model: Any) -> None:
    """Finish a built Megatron ``GPTModel`` whose config :func:`configure` has set, in place."""
    if not cuda():
        use_local_positions(model)
