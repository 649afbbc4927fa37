"""NeMo's Megatron strategy with this project's settings, for CPU and GPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import nemo.lightning as nl
from megatron.core import tensor_parallel
from megatron.core.optimizer import USING_PYTORCH_OPTIMIZER
from nemo.lightning.io.pl import MegatronCheckpointIO

from solopo_nemo.core.device import drop_empty, fuse_adamw, optimizers_of
from solopo_nemo.core.lora import part_of
from solopo_nemo.core.scoring import fit_to_checkpoint
from solopo_nemo.nemo_model import compat
from solopo_nemo.nemo_model.policy import ddp_config
from solopo_nemo.runtime import device


class _CheckpointIO(MegatronCheckpointIO):
    """NeMo's checkpoint reader. It also loads checkpoints without extra states, with adapters only or without them."""

    def load_checkpoint(self, path: Any, sharded_state_dict: Any = None, *args: Any, **kwargs: Any) -> Any:
        fit_to_checkpoint(sharded_state_dict, self._preprocess_checkpoint_load_path(path))
        return super().load_checkpoint(path, sharded_state_dict, *args, **kwargs)


class SoLoPOStrategy(nl.MegatronStrategy):
    """``nl.MegatronStrategy`` that also runs on a CPU. Its checkpoints load at any parallel layout.

    Args:
        seed: seed of Megatron's random-number trackers.
        verified: returns the verified checkpoint to resume from, just before it is loaded; a collective of all ranks.
            None loads the checkpoint that Lightning names.
        **kwargs: arguments of ``nl.MegatronStrategy``.
    """

    def __init__(self, *, seed: int, verified: Callable[[], Path] | None = None, **kwargs: Any) -> None:
        compat.prepare_process()
        super().__init__(
            # NeMo's printer runs a collective on rank 0 only (progress_printer.py:228), after which gloo hangs at the
            # next collective of all ranks
            replace_progress_bar=False,
            ckpt_async_save=device.saves_asynchronously(),
            ckpt_optim_fully_reshardable=True,
            # without it every rank of a GPU run gathers 12 bytes for each parameter of its stage in host memory at a
            # save (distrib_optimizer.py:1016, 1425). With it only the first data-parallel rank does, over gloo; at a
            # resume every rank still does. On a CPU all ranks write. The files are the same.
            distrib_optim_fully_reshardable_mem_efficient=device.cuda(),
            ddp=ddp_config(),
            **kwargs,
        )
        self._seed, self._verified = seed, verified
        self.unwrapped_checkpoint_io.__class__ = _CheckpointIO  # NeMo has no argument for this class

    def load_checkpoint(self, checkpoint_path: str | Path, selective_restore: bool = False) -> dict[str, Any]:
        """Loads a checkpoint. A checkpoint to resume is verified first; with adapters its base is loaded before it."""
        path = checkpoint_path if selective_restore or self._verified is None else self._verified()
        if self._trains_adapters and not selective_restore:
            self.selective_restore()  # the base weights, which a checkpoint of adapters does not hold
        return super().load_checkpoint(path, selective_restore=selective_restore)

    @property
    def _trains_adapters(self) -> bool:
        return getattr(self.lightning_module, "lora", None) is not None

    def save_checkpoint(self, checkpoint: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        """Saves a checkpoint. Of a model with adapters it holds only these and the state of their optimizer."""
        if self._trains_adapters:
            checkpoint["sharded_state_dict"] = part_of(self.megatron_parallel.sharded_state_dict(), adapters=True)
        super().save_checkpoint(checkpoint, *args, **kwargs)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Loads the model's weights; not strict with adapters, as a checkpoint then holds a part of the weights."""
        super().load_model_state_dict(checkpoint, strict=strict and not self._trains_adapters)

    def setup_distributed(self) -> None:
        """Creates the process groups, and seeds Megatron's random-number trackers, which NeMo seeds on a GPU only."""
        super().setup_distributed()
        if not device.cuda():  # nemo/lightning/megatron_init.py:238
            tensor_parallel.model_parallel_cuda_manual_seed(self._seed)

    def setup_optimizers(self, trainer: pl.Trainer) -> None:
        """Creates Megatron's optimizer, with torch's AdamW fused."""
        super().setup_optimizers(trainer)
        if self._setup_optimizers:
            drop_empty(self._megatron_optimizer())
            fuse_adamw(self._megatron_optimizer())

    def _megatron_optimizer(self) -> Any:
        return self.lightning_module.optimizers(use_pl_optimizer=False).mcore_optimizer

    def optimizer_sharded_state_dict(self, is_loading: bool = False, metadata: dict[str, Any] | None = None) -> Any:
        """The optimizer's sharded state. Before a load it creates the state of torch's AdamW, as Megatron reads it."""
        if is_loading and USING_PYTORCH_OPTIMIZER:  # distrib_optimizer.py:637 of Megatron-core reads each state's step
            for optimizer in optimizers_of(self._megatron_optimizer()):
                optimizer._init_optimizer_states_with_dummy_values()
        return super().optimizer_sharded_state_dict(is_loading=is_loading, metadata=metadata)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any], selective_restore: bool = False) -> None:
        """Loads the state of Megatron's optimizer. NeMo's method creates a CUDA device mesh, which only FSDP needs."""
        if not self.should_restore_optimizer_states(selective_restore=selective_restore):
            return
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer"], strict=True):
            optimizer.load_state_dict(state)
        fuse_adamw(self._megatron_optimizer())  # the saved groups may come from another optimizer
