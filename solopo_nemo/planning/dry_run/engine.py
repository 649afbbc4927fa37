"""What Transformer Engine's layers hold beside torch's, in one table, and its tensors in a trace of torch's layers.

Transformer Engine's layers run on a GPU alone, so a trace runs torch's (:mod:`solopo_nemo.core.layers`). They save the
same for backward, with these exceptions:

====================  ===============================  ===================================  ==========================
module of a layer     tensor                           bytes                                held
====================  ===============================  ===================================  ==========================
linear_qkv, fc1       ``ln_out``, ``rsigma``           ``T * h / s * e``, ``T / s * 4``     forward to backward
linear_fc2            ``saved_inputmat``               ``T * f * e``                        forward to backward
linear_fc2, experts   ``inputmats``                    ``n * f * e``                        forward to backward
core_attention, ring  ``out_per_step``                 ``c * T * a * e``                    while its forward runs
core_attention, ring  ``softmax_lse_per_step``         ``c * T * n * 4``                    while its forward runs
core_attention, ring  ``p2p_comm_buffers``             ``c * T * 2k * e``                   while its forward runs
rotary embedding      angles of the longest sequence   ``S * d * 4``                        as long as the micro-batch
====================  ===============================  ===================================  ==========================

Symbols: :mod:`solopo_nemo.planning.traced`; ``n`` tokens that reach a rank's experts, whose channels are ``f``.
Transformer Engine has less of one kind: it adds the gradient of a layer's weight to Megatron's buffer, where torch's
layers make it first, in fp32. A trace does not count these tensors (:func:`weight_shapes`): up to ``16 * f * h`` bytes,
which are 1.0 GiB for a 7B model on one tensor-parallel rank.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

SAVED = {"module/layernorm_linear.py": ("ln_out", "rsigma"), "module/linear.py": ("saved_inputmat",)}
"""Names of the tensors above in the calls of ``prepare_for_saving`` of Transformer Engine's sources, by file."""
PER_STEP = ("out_per_step", "softmax_lse_per_step", "p2p_comm_buffers")
"""Lists of ``context_parallel.py`` that keep a tensor of every step of the ring until all are merged."""


def hold(model: Any, longest: int) -> None:
    """Make the layers of a ``GPTModel`` hold what Transformer Engine's do.

    Args:
        model: with torch's layers.
        longest: tokens of the longest sequence over all context-parallel ranks.
    """
    if getattr(model, "rotary_pos_emb", None) is not None:
        model.rotary_pos_emb.register_forward_hook(lambda _, __, table: _keep_angles(table, longest))
    for layer in model.decoder.layers:
        experts = getattr(layer.mlp, "experts", None)
        for linear in (layer.self_attention.linear_qkv, *([] if experts else [layer.mlp.linear_fc1])):
            _save_with(linear, lambda x: (torch.empty_like(x), x.new_empty(x.shape[:-1], dtype=torch.float32)))
        if experts and experts.fused:
            _save_with(experts, partial(_activated, experts.linear_fc2.weight.shape[2]))
        elif not experts:
            _save_with(layer.mlp.linear_fc2, lambda x: (x.new_empty(*x.shape[:-1], x.shape[-1] // 2),))
        attention = layer.self_attention.core_attention
        if attention.cp_group.size() > 1 and attention.cp_comm_type == "p2p":
            _hold_steps(attention)


def weight_shapes(model: Any, tokens: int) -> frozenset[tuple[int, ...]]:
    """Shapes of the layers' weights, without one whose first size is the number of a rank's tokens too."""
    named = (pair for layer in model.decoder.layers for pair in layer.named_parameters())
    weights = (tuple(weight.shape) for name, weight in named if "linear_" in name and weight.dim() > 1)
    return frozenset(shape for shape in weights if shape[0] != tokens)


def _activated(width: int, rows: torch.Tensor) -> tuple[torch.Tensor]:
    return (rows.new_empty(rows.shape[0], width),)


def _keep_angles(table: Any, longest: int) -> None:
    table.angles = table.new_empty(longest, 2 * table.shape[-1])


def _save_with(module: Any, make: Callable[[torch.Tensor], tuple[torch.Tensor, ...]]) -> None:
    """Keep more tensors as long as those that a module saves for backward; none where it saves none."""
    hooks: Any = None

    def before(_: Any, given: Any) -> None:
        nonlocal hooks
        more = make(given[0])
        hooks = torch.autograd.graph.saved_tensors_hooks(lambda x: (x, more), lambda saved: saved[0])
        hooks.__enter__()

    def after(*_: Any) -> None:
        nonlocal hooks
        hooks.__exit__()
        hooks = None

    module.register_forward_pre_hook(before)
    module.register_forward_hook(after)


def _hold_steps(attention: Any) -> None:
    """Keep the output and the keys and values of every step of a ring while its forward runs."""
    held: list[torch.Tensor] = []

    def before(_: Any, given: Any) -> None:
        q, k = given[:2]
        steps = attention.cp_group.size()
        held.append(q.new_empty(steps, *q.shape))
        held.append(q.new_empty(steps, *q.shape[:-1], dtype=torch.float32))
        held.append(k.new_empty(steps, 2, *k.shape))

    attention.register_forward_pre_hook(before)
    attention.register_forward_hook(lambda *_: held.clear())
