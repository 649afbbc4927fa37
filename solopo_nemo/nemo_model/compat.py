"""Every patch of NeMo (2.7.3): for Megatron-core 0.16, and for machines without CUDA or Transformer Engine.

Those of torch and Megatron-core are in ``core.cpu_patches``. Importing this module changes no library; it lets NeMo
import with Megatron-core 0.16, and the package ``nemo_model`` imports it before any of NeMo.
"""

from __future__ import annotations

import inspect
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_installed: set[str] = set()


class _RemovedModule(MetaPathFinder, Loader):
    """An empty module in place of one that Megatron-core 0.16 has removed; 0.15's own is found first.

    nemo/utils/callbacks/dist_ckpt_io.py:39 imports it for checkpoints in the zarr format, which nothing here writes,
    and without it takes all of Megatron-core for missing.
    """

    name = "megatron.core.dist_checkpointing.strategies.tensorstore"

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """The spec of the empty module."""
        return ModuleSpec(fullname, self) if fullname == self.name else None

    def exec_module(self, module: ModuleType) -> None:
        """Nothing: it stays empty."""


sys.meta_path.append(_RemovedModule())


def prepare_process() -> None:
    """:func:`solopo_nemo.core.device.prepare_process`, NeMo's optimizer and checkpoint loading; once a process."""
    from nemo.lightning.io import pl

    from solopo_nemo.core import device

    device.prepare_process()
    _accept_removed_options()
    if not device.cuda() and "load" not in _installed:
        _installed.add("load")
        # nemo/lightning/io/pl.py:493-503 asserts an initialised CUDA; the tensors are where they belong
        pl._fix_tensors_device = lambda checkpoint: checkpoint


def _accept_removed_options() -> None:
    """Let NeMo build Megatron-core 0.16's optimizer.

    nemo/lightning/_strategy_lib.py:709-716 passes three options that 0.16 has replaced by ``config_overrides``. Their
    defaults mean the same in both: weight decay leaves out biases and what has one dimension.
    """
    from megatron.core import optimizer

    build = optimizer.get_megatron_optimizer
    if "optimizer" in _installed or "no_weight_decay_cond" in inspect.signature(build).parameters:
        return
    _installed.add("optimizer")

    def without_removed(
        *args: Any, no_weight_decay_cond: None = None, scale_lr_cond: None = None, lr_mult: float = 1.0, **kwargs: Any
    ) -> Any:
        if (no_weight_decay_cond, scale_lr_cond, lr_mult) != (None, None, 1.0):
            raise ValueError("Megatron-core 0.16 takes config_overrides in place of conditions on parameters")
        return build(*args, **kwargs)

    optimizer.get_megatron_optimizer = without_removed


def allow_configs() -> None:
    """Let NeMo's Llama configs be made without Transformer Engine; once a process.

    They ask for a rotary fusion that only Transformer Engine has (gpt/model/llama.py:81), and Megatron-core raises
    (transformer_config.py:1267). A user makes a config before a model, so this runs when the mixin is imported.
    """
    from megatron.core.models.common.embeddings.rope_utils import fused_apply_rotary_pos_emb_thd
    from megatron.core.transformer.transformer_config import TransformerConfig

    if fused_apply_rotary_pos_emb_thd is not None or "configs" in _installed:
        return
    _installed.add("configs")
    post_init = TransformerConfig.__post_init__

    def without_rope_fusion(self: Any) -> None:
        self.apply_rope_fusion = False
        post_init(self)

    TransformerConfig.__post_init__ = without_rope_fusion
