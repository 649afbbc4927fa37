"""Forward-only scoring of packed micro-batches at any parallel layout, and loading of the frozen reference policy."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.pipeline_parallel import get_forward_backward_func

from solopo_nemo.core import device
from solopo_nemo.core.lora import has_adapters, part_of
from solopo_nemo.core.model import complete
from solopo_nemo.core.step import Batch, score_sequences


def score_batches(module: Any, batches: Sequence[Batch]) -> list[torch.Tensor]:
    """Computes the summed response log-probabilities of each micro-batch, without gradients.

    1. Run Megatron's schedule forward only, in evaluation mode.
    2. Keep the scores of the last pipeline stage.
    3. Broadcast them over the pipeline.

    TP, SP, CP, PP: the result is the same on every rank. DP: each rank has its own micro-batches.
    Memory: the activations of one layer; nothing is saved for backward.

    Args:
        module: a Megatron model (bare, or inside its DDP wrapper) with a response head on its last stage.
        batches: packed micro-batches of this data-parallel rank. Every rank passes the same number.

    Returns:
        One fp32 ``[num_sequences]`` for each micro-batch, in nats.
    """
    kept: list[torch.Tensor] = []

    def forward_step(iterator: Iterator[Batch], model: Any) -> Any:
        scores = score_sequences(model, device.to_device(next(iterator)))

        def keep(output: torch.Tensor) -> tuple[torch.Tensor, dict[str, Any]]:
            kept.append(output.detach().clone())  # the schedule scales the returned loss in place
            return output.sum(), {}

        return scores, keep

    was_training = module.training
    module.eval()
    with torch.no_grad():
        get_forward_backward_func()(
            forward_step_func=forward_step,
            data_iterator=iter(batches),
            model=[module],
            num_microbatches=len(batches),
            seq_length=1,  # unused: with variable_seq_lengths the stages exchange their shapes
            micro_batch_size=1,
            forward_only=True,
        )
    module.train(was_training)
    if parallel_state.get_pipeline_model_parallel_world_size() > 1:
        if not kept:
            kept = [torch.empty(len(batch["response_tokens"]), device=device.current()) for batch in batches]
        flat = torch.cat(kept)
        dist.broadcast(
            flat,
            parallel_state.get_pipeline_model_parallel_last_rank(),
            group=parallel_state.get_pipeline_model_parallel_group(),
        )
        kept = list(flat.split([len(k) for k in kept]))
    return kept


def fit_to_checkpoint(wanted: dict[str, Any], weights: Path) -> None:
    """Restricts the state of a model to what a checkpoint holds, in place, so that it can be loaded.

    A checkpoint of a model with adapters holds either the adapters alone, or all weights but the adapters. Extra states
    may be missing (:func:`fill_extra_states`). A missing weight stays an error.

    Args:
        wanted: dict whose ``state_dict`` is the model's sharded state.
        weights: folder of the Megatron checkpoint.
    """
    from megatron.core.dist_checkpointing.serialization import load_sharded_metadata

    there = load_sharded_metadata(str(weights))
    fill_extra_states(wanted, there)
    if has_adapters(wanted["state_dict"]):
        wanted["state_dict"] = part_of(wanted["state_dict"], adapters=has_adapters(there))


def fill_extra_states(wanted: Any, there: Collection[str]) -> None:
    """Replaces the extra states that a checkpoint lacks by empty ones, in place.

    Norms of Transformer Engine have an extra state, which is empty without FP8. Checkpoints that earlier versions wrote
    without Transformer Engine have none.

    Args:
        wanted: the sharded state dict that ``dist_checkpointing.load`` is given.
        there: the keys of the checkpoint.
    """
    from megatron.core.dist_checkpointing.dict_utils import dict_list_map_inplace
    from megatron.core.dist_checkpointing.mapping import LocalNonpersistentObject, ShardedObject

    def filled(value: Any) -> Any:
        if isinstance(value, ShardedObject) and value.key.endswith("_extra_state") and value.unique_key not in there:
            return LocalNonpersistentObject(torch.empty(0, dtype=torch.uint8))
        return value

    dict_list_map_inplace(filled, wanted)


def load_weights(module: Any, checkpoint: Path) -> None:
    """Loads a NeMo checkpoint into a bare Megatron model, at any layout; the parameters keep their dtypes.

    Of a model with adapters it loads the part that the checkpoint holds (:func:`fit_to_checkpoint`).
    """
    from megatron.core import dist_checkpointing

    wanted = {"state_dict": module.sharded_state_dict(prefix="module.")}
    fit_to_checkpoint(wanted, checkpoint / "weights")
    state = dist_checkpointing.load(wanted, str(checkpoint / "weights"))["state_dict"]
    # not strict: extra states of Transformer Engine may be missing
    module.load_state_dict({k.removeprefix("module."): v for k, v in state.items()}, strict=False)


def frozen_copy(model: GPTModel, checkpoint: Path, logits_chunk_size: int) -> torch.nn.Module:
    """Turns a newly built model into the frozen reference policy.

    1. Add the response head, and move the model to this process's device.
    2. Load the weights of the checkpoint.
    3. Switch gradients off, and wrap the model for bf16 where its config has it.

    Args:
        model: a model of the policy's architecture and layout.
        checkpoint: NeMo checkpoint (the folder with ``weights``) of the reference policy.
        logits_chunk_size: see :class:`solopo_nemo.core.head.ResponseHead`.

    Returns:
        The module that :class:`solopo_nemo.core.reference.OnlineReference` takes.
    """
    from megatron.core.transformer.module import Float16Module

    module = complete(model, logits_chunk_size).to(device.current())
    load_weights(module, checkpoint)
    module.requires_grad_(False)
    return Float16Module(module.config, module) if module.config.bf16 else module
