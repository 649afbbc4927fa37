"""Every patch of NeMo (2.7.3), for machines without CUDA; torch's and Megatron's are in ``core.cpu_patches``.

Importing this module changes no library. With CUDA present its functions do nothing.
"""

from __future__ import annotations

from typing import Any

from megatron.core.transformer.transformer_config import TransformerConfig
from nemo.lightning.io import pl

from solopo_nemo.core import device

_installed: set[str] = set()


def prepare_process() -> None:
    """:func:`solopo_nemo.core.device.prepare_process`, and NeMo's checkpoint loading; once a process."""
    device.prepare_process()
    if not device.cuda() and "load" not in _installed:
        _installed.add("load")
        # nemo/lightning/io/pl.py:493-503 asserts an initialised CUDA; the tensors are where they belong
        pl._fix_tensors_device = lambda checkpoint: checkpoint


def allow_configs() -> None:
    """Let NeMo's Llama configs be made without Transformer Engine; once a process.

    They ask for a rotary fusion that only Transformer Engine has (gpt/model/llama.py:81), and Megatron-core raises
    (transformer_config.py:1267). A user makes a config before a model, so this runs when the mixin is imported.
    """
    if device.cuda() or "configs" in _installed:
        return
    _installed.add("configs")
    post_init = TransformerConfig.__post_init__

    def without_rope_fusion(self: Any) -> None:
        self.apply_rope_fusion = False
        post_init(self)

    TransformerConfig.__post_init__ = without_rope_fusion
