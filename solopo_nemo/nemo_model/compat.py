"""All patches of NeMo (2.7.3): for Megatron-core 0.16, and for machines without CUDA or Transformer Engine.

``core.cpu_patches`` has the patches of torch and Megatron-core. Importing this module changes no library. It makes NeMo
importable with Megatron-core 0.16, so that the package ``nemo_model`` imports it before NeMo.
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
    """Provides an empty module in place of one that Megatron-core 0.16 removed; the module of 0.15 is found first.

    nemo/utils/callbacks/dist_ckpt_io.py:39 imports it for checkpoints in the zarr format, which this project does not
    write. If the import fails, NeMo treats all of Megatron-core as missing.
    """

    name = "megatron.core.dist_checkpointing.strategies.tensorstore"

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """The spec of the empty module."""
        return ModuleSpec(fullname, self) if fullname == self.name else None

    def exec_module(self, module: ModuleType) -> None:
        """Leaves the module empty."""


sys.meta_path.append(_RemovedModule())


def prepare_process() -> None:
    """Makes NeMo usable in this process: :func:`solopo_nemo.core.device.prepare_process` and the patches of NeMo."""
    from nemo.lightning.io import pl

    from solopo_nemo.core import device

    device.prepare_process()
    _accept_removed_options()
    if not device.cuda() and "load" not in _installed:
        _installed.add("load")
        # nemo/lightning/io/pl.py:493-503 asserts that CUDA is initialized; the tensors are on the CPU already
        pl._fix_tensors_device = lambda checkpoint: checkpoint


def _accept_removed_options() -> None:
    """Makes NeMo able to build the optimizer of Megatron-core 0.16.

    nemo/lightning/_strategy_lib.py:709-716 passes three options that 0.16 replaced by ``config_overrides``. Both
    versions have the same defaults: no weight decay for biases and parameters with one dimension.
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
    """Makes NeMo's Llama configs usable without Transformer Engine. A second call does nothing.

    They require a rotary fusion that only Transformer Engine has (gpt/model/llama.py:81), and Megatron-core raises
    without it (transformer_config.py:1267). Users create a config before a model, so that the import of the mixin calls
    this function.
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
