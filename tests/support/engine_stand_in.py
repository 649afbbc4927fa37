"""A small stand-in for Transformer Engine 2.11: the layers that Megatron-core's default spec makes, in plain torch.

:func:`install` it before Megatron-core is imported. Signatures and asserts are those of the real sources at v2.11, with
file and line below ``transformer_engine/pytorch``; the arithmetic is not theirs. Tensor parallelism is not here.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F

VERSION = "2.11.0"


class _WithExtraState(torch.nn.Module):
    """module/base.py and ops/op.py:528-611: an extra state, empty without FP8, that a strict load asks for."""

    def get_extra_state(self) -> torch.Tensor:
        return torch.empty(0, dtype=torch.uint8)

    def set_extra_state(self, state: torch.Tensor | None) -> None:
        assert state is None or state.numel() == 0


class RMSNorm(_WithExtraState):
    """module/rmsnorm.py:16."""

    def __init__(
        self, hidden_size: int, eps: float, sequence_parallel: bool, zero_centered_gamma: bool, params_dtype: torch.dtype, device: Any
    ) -> None:  # fmt: skip
        super().__init__()
        assert not zero_centered_gamma
        self.eps, self.weight = eps, torch.nn.Parameter(torch.ones(hidden_size, dtype=params_dtype, device=device))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class Linear(_WithExtraState):
    """module/linear.py:1072-1099."""

    def __init__(
        self, in_features: int, out_features: int, sequence_parallel: bool = False, fuse_wgrad_accumulation: bool = False,
        tp_group: Any = None, tp_size: int = 1, get_rng_state_tracker: Any = None, rng_tracker_name: str | None = None,
        init_method: Any = None, bias: bool = True, return_bias: bool = False, params_dtype: torch.dtype | None = None,
        parallel_mode: str | None = None, device: Any = "cuda",
    ) -> None:  # fmt: skip
        super().__init__()
        assert parallel_mode in ("row", "column", None)
        assert tp_size == 1
        self.parallel_mode, self.use_bias, self.return_bias = parallel_mode, bias, return_bias
        self.weight = torch.nn.Parameter(torch.empty(out_features, in_features, dtype=params_dtype, device=device))
        init_method(self.weight)
        if bias:
            self.bias = torch.nn.Parameter(torch.zeros(out_features, dtype=params_dtype, device=device))

    def forward(self, x: torch.Tensor, is_first_microbatch: bool | None = None) -> Any:
        bias = self.bias if self.use_bias else None
        return (F.linear(x, self.weight), bias) if self.return_bias else F.linear(x, self.weight, bias)


class LayerNormLinear(Linear):
    """module/layernorm_linear.py:100-130."""

    def __init__(
        self, in_features: int, out_features: int, eps: float = 1e-5, normalization: str = "LayerNorm",
        return_layernorm_output: bool = False, zero_centered_gamma: bool = False, **linear: Any,
    ) -> None:  # fmt: skip
        super().__init__(in_features, out_features, **linear)
        assert (normalization, return_layernorm_output, zero_centered_gamma) == ("RMSNorm", False, False)
        self.eps, self.layer_norm_weight = (
            eps,
            torch.nn.Parameter(torch.ones(in_features, dtype=linear["params_dtype"])),
        )

    def forward(self, x: torch.Tensor, is_first_microbatch: bool | None = None) -> Any:
        return super().forward(F.rms_norm(x, self.layer_norm_weight.shape, self.layer_norm_weight, self.eps))


class GroupedLinear(_WithExtraState):
    """module/grouped_linear.py:588-790."""

    fp8 = fp8_calibration = False

    def __init__(
        self, num_gemms: int, in_features: int, out_features: int, sequence_parallel: bool = False,
        fuse_wgrad_accumulation: bool = False, tp_group: Any = None, tp_size: int = 1, get_rng_state_tracker: Any = None,
        rng_tracker_name: str | None = None, init_method: Any = None, bias: bool = True, return_bias: bool = False,
        params_dtype: torch.dtype | None = None, parallel_mode: str | None = None, device: Any = "cuda", ub_name: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        assert tp_size == 1 and not bias
        self.num_gemms, self.use_bias, self.fp8_meta = num_gemms, bias, {"fp8_checkpoint": False}
        for i in range(num_gemms):
            weight = torch.nn.Parameter(torch.empty(out_features, in_features, dtype=params_dtype, device=device))
            init_method(weight)
            # :732
            weight.tensor_model_parallel, weight.partition_dim, weight.partition_stride = (
                True,
                int(parallel_mode == "row"),
                1,
            )  # type: ignore[attr-defined]
            self.register_parameter(f"weight{i}", weight)

    def init_fp8_metadata(self, num_gemms: int = 1) -> None:
        """module/base.py: nothing without FP8."""

    def forward(self, inp: torch.Tensor, m_splits: list[int], is_first_microbatch: bool | None = None) -> torch.Tensor:
        assert len(m_splits) == self.num_gemms  # :786
        assert all(isinstance(rows, int) for rows in m_splits)  # torch.split in :152
        weights = [getattr(self, f"weight{i}") for i in range(self.num_gemms)]
        assert inp.size(-1) == weights[0].size(-1)  # :138
        return torch.cat([F.linear(rows, w) for rows, w in zip(inp.split(m_splits), weights, strict=True)])


def moe_permute_with_probs(
    inp: torch.Tensor, probs: torch.Tensor, routing_map: torch.Tensor, num_out_tokens: int = -1
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """permutation.py:184-330, 545-575, with the rows' tokens for a map."""
    assert inp.size(0) == routing_map.size(0)  # :205
    assert num_out_tokens is not None  # :209
    mask = routing_map.bool().t()
    rows = mask.nonzero()[:, 1]
    assert len(rows) == num_out_tokens  # the output's size, in triton/permutation.py
    return inp[rows], probs.t()[mask], rows


def moe_unpermute(
    inp: torch.Tensor, row_id_map: torch.Tensor, merging_probs: torch.Tensor | None = None,
    restore_shape: torch.Size | None = None,
) -> torch.Tensor:  # fmt: skip
    """permutation.py:333-500, 578-620."""
    assert merging_probs is None
    assert restore_shape is not None
    return torch.zeros(restore_shape, dtype=inp.dtype).index_add(0, row_id_map, inp)


def moe_sort_chunks_by_index_with_probs(
    inp: torch.Tensor, probs: torch.Tensor, split_sizes: torch.Tensor, sorted_index: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """permutation.py:623-720, 747-772."""
    assert torch.is_tensor(split_sizes) and torch.is_tensor(sorted_index)  # :639-640: both on the GPU
    assert split_sizes.size(0) == sorted_index.size(0)  # :646
    inps, all_probs = (x.split(split_sizes.tolist()) for x in (inp, probs))
    order = sorted_index.tolist()
    return torch.cat([inps[i] for i in order]), torch.cat([all_probs[i] for i in order])


def moe_sort_chunks_by_index(inp: torch.Tensor, split_sizes: torch.Tensor, sorted_index: torch.Tensor) -> torch.Tensor:
    """permutation.py:724-744."""
    return moe_sort_chunks_by_index_with_probs(inp, inp[:, 0], split_sizes, sorted_index)[0]


class DotProductAttention(_WithExtraState):
    """attention/dot_product_attention/dot_product_attention.py."""

    calls = 0

    def __init__(
        self, num_attention_heads: int, kv_channels: int, num_gqa_groups: int | None = None, attention_dropout: float = 0.0,
        attn_mask_type: str = "causal", sequence_parallel: bool = False, tp_size: int = 1, get_rng_state_tracker: Any = None,
        tp_group: Any = None, layer_number: int | None = None, attention_type: str = "self", softmax_scale: float | None = None,
        window_size: tuple[int, int] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        assert attention_type in ("self", "cross")  # :419
        assert window_size is None
        self.dim, self.groups, self.scale = kv_channels, num_gqa_groups, softmax_scale
        self.register_load_state_dict_post_hook(self._forgive)

    @staticmethod
    def _forgive(_: Any, incompatible: Any) -> None:
        """473-483: a checkpoint without core attention's extra state loads."""
        missing = [key for key in incompatible.missing_keys if "core_attention._extra_state" not in key]
        incompatible.missing_keys[:] = missing

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: torch.Tensor | None = None, *,
        qkv_format: str, cu_seqlens_q: torch.Tensor, cu_seqlens_kv: torch.Tensor, cu_seqlens_q_padded: torch.Tensor | None,
        cu_seqlens_kv_padded: torch.Tensor | None, max_seqlen_q: int, max_seqlen_kv: int, attn_mask_type: str,
    ) -> torch.Tensor:  # fmt: skip
        assert query.dtype == key.dtype == value.dtype  # :1044
        assert query.dtype in (torch.bfloat16, torch.float16)  # utils.py:436: else no kernel for packed sequences
        assert key.shape[:-1] == value.shape[:-1]  # :1047
        assert query.shape[-1] == key.shape[-1] == self.dim  # :1052-1060
        assert key.shape[-2] == self.groups  # :1064
        assert qkv_format == "thd"  # what this project sends; :1088
        assert all(len(x.shape) == 3 for x in (query, key, value))  # :1107
        assert "padding" in attn_mask_type  # :1110
        assert cu_seqlens_q.shape == cu_seqlens_kv.shape  # :1116
        assert len(cu_seqlens_q.shape) == 1
        assert cu_seqlens_q.dtype == cu_seqlens_kv.dtype == torch.int32  # :1121
        assert isinstance(max_seqlen_q, int)  # :1125-1131: None is read from the GPU
        assert isinstance(max_seqlen_kv, int)
        DotProductAttention.calls += 1
        lengths, out = cu_seqlens_q.diff().tolist(), []
        for q, k, v in zip(*(x.split(lengths) for x in (query, key, value)), strict=True):
            heads = (x.transpose(0, 1)[None] for x in (q, k, v))
            one = F.scaled_dot_product_attention(*heads, is_causal=True, scale=self.scale, enable_gqa=True)
            out.append(one[0].transpose(0, 1).flatten(1))
        return torch.cat(out)


def apply_rotary_pos_emb(
    t: torch.Tensor, freqs: torch.Tensor, tensor_format: str = "sbhd", start_positions: Any = None,
    interleaved: bool = False, fused: bool = False, cu_seqlens: torch.Tensor | None = None, cp_size: int = 1, cp_rank: int = 0,
) -> torch.Tensor:  # fmt: skip
    """attention/rope.py:346-410."""
    assert (tensor_format, fused, interleaved, cp_size) == ("thd", True, False, 1)
    assert cu_seqlens is not None  # :400
    lengths = cu_seqlens.diff().tolist()
    assert max(lengths) <= freqs.shape[0]
    angles = torch.cat([freqs[:length, 0] for length in lengths])
    first, second = t.float().chunk(2, -1)
    turned = t.float() * angles.cos() + torch.cat((-second, first), -1) * angles.sin()
    return turned.to(t.dtype)


MOVES = (moe_permute_with_probs, moe_unpermute, moe_sort_chunks_by_index_with_probs, moe_sort_chunks_by_index)


class _Module(ModuleType):
    """A module of Transformer Engine: what is not here is an empty class, which nobody may use."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_SplitAlongDim":  # guarded imports of what 2.11 has not got, too
            raise AttributeError(name)
        return type(name, (), {})


class _Finder(MetaPathFinder, Loader):
    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        module = fullname.split(".")[0] == "transformer_engine" and fullname.split(".")[-1][0].islower()
        return ModuleSpec(fullname, self, is_package=True) if module else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Module(spec.name)

    def exec_module(self, module: Any) -> None:
        ours: dict[str, dict[str, Any]] = {
            "transformer_engine": {"__version__": VERSION},
            "transformer_engine.pytorch": {
                kind.__name__: kind for kind in (RMSNorm, Linear, LayerNormLinear, GroupedLinear, DotProductAttention)
            },
            "transformer_engine.pytorch.cpu_offload": {"get_cpu_offload_context": lambda *_: (nullcontext(), None)},
            "transformer_engine.pytorch.attention.rope": {"apply_rotary_pos_emb": apply_rotary_pos_emb},
            "transformer_engine.pytorch.permutation": {function.__name__: function for function in MOVES},
        }
        vars(module).update(ours.get(module.__name__, {}))


def install() -> None:
    """Let ``import transformer_engine`` find the stand-in, in this process."""
    assert "megatron.core.extensions.transformer_engine" not in sys.modules
    sys.meta_path.insert(0, _Finder())
    import transformer_engine.common.recipe
    import transformer_engine.pytorch.distributed
    import transformer_engine.pytorch.ops  # noqa: F401


def on_gpu(gpu: bool) -> None:
    """Let the package take this process for one on a GPU with the stand-in, or without; tensors are on the CPU."""
    from solopo_nemo.core import device
    from solopo_nemo.runtime import device as runtime_device
    from solopo_nemo.runtime.kernels import Installed

    here = Installed(VERSION)
    Installed.here = classmethod(lambda cls: here)  # type: ignore[method-assign, assignment]
    device.cuda = runtime_device.cuda = lambda: gpu
    device.current = runtime_device.current = lambda: torch.device("cpu")
