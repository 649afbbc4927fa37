"""What differs on a GPU, decided and computed here with stand-ins: no line of it has run on one."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from products_stand_in import mm_of_a_gpu

from solopo_nemo.core import device as core_device
from solopo_nemo.core import head
from solopo_nemo.runtime import device, kernels
from solopo_nemo.runtime.errors import UserError


@pytest.fixture
def gpu_head(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """The head's branch for a GPU; the types that it multiplies."""
    calls: list[torch.dtype] = []
    monkeypatch.setattr(device, "cuda", lambda: True)
    monkeypatch.setattr(head, "GPU_VOCABULARY_TILE", 300)
    monkeypatch.setattr(torch, "mm", mm_of_a_gpu(calls))
    return calls


def _scored(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Summed log-probability of a confident answer of 500 tokens, and the two gradients."""
    torch.manual_seed(0)
    rows = (torch.randn(500, 64) * 3).bfloat16().to(dtype).requires_grad_()
    weight = (torch.randn(1000, 64) * 0.5).bfloat16().to(dtype).requires_grad_()
    labels = (rows.detach().double() @ weight.detach().double().t()).argmax(-1)
    if dtype == torch.float64:
        logp = (rows @ weight.t()).log_softmax(-1).gather(1, labels[:, None])[:, 0]
    else:
        logp = head.vocab_parallel_logprob(rows, weight, labels, None, 128)
    logp.double().sum().backward()
    assert rows.grad is not None
    assert weight.grad is not None
    return logp.double().sum().detach(), rows.grad.double(), weight.grad.double()


def test_the_head_rounds_no_logit_to_bf16(gpu_head: list[torch.dtype]) -> None:
    got, exact = _scored(torch.bfloat16), _scored(torch.float64)
    assert set(gpu_head) == {torch.bfloat16}
    assert abs(got[0] - exact[0]) < 1e-3
    for ours, theirs in zip(got[1:], exact[1:], strict=True):
        assert (ours - theirs).norm() / theirs.norm() < 0.01


def test_with_rounded_logits_the_sum_is_off_by_what_the_head_now_keeps() -> None:
    assert abs(_scored(torch.bfloat16)[0] - _scored(torch.float64)[0]) > 0.05


@pytest.mark.parametrize("zero", [False, True])
def test_a_weight_in_megatrons_buffer_takes_the_shared_placeholder(
    zero: bool, gpu_head: list[torch.dtype], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Megatron's own layers do it (tensor_parallel/layers.py:570-605), so that a micro-batch makes no new tensor."""
    asked: list[Any] = []
    base: Any = ModuleType("transformer_engine.pytorch.module.base")

    def get_dummy_wgrad(shape: list[int], dtype: torch.dtype, zero: bool = False) -> torch.Tensor:
        asked.append((shape, dtype, zero))
        return torch.zeros(shape, dtype=dtype)

    base.get_dummy_wgrad = get_dummy_wgrad
    for name in ("transformer_engine", "transformer_engine.pytorch", "transformer_engine.pytorch.module"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, base.__name__, base)
    weight: Any = torch.nn.Parameter(torch.randn(700, 8).bfloat16())
    weight.main_grad, weight.zero_out_wgrad = torch.zeros(700, 8), zero
    rows = torch.randn(5, 8).bfloat16()
    head.vocab_parallel_logprob(rows, weight, torch.arange(5), None, 2).sum().backward()
    assert asked == [([700, 8], torch.bfloat16, zero)]
    assert weight.grad_added_to_main_grad
    assert weight.main_grad.abs().sum() > 0


def test_no_rotary_table_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding

    from solopo_nemo.core.layers.rotary import FreshRotaryEmbedding, keep_no_tables

    monkeypatch.setattr(torch.cuda, "current_device", lambda: torch.device("cpu"))
    rotary = RotaryEmbedding(16, 1.0, rotary_base=10000, use_cpu_initialization=True)
    model = SimpleNamespace(position_embedding_type="rope", rotary_pos_emb=rotary, decoder=SimpleNamespace(layers=[]))
    for _ in range(2):  # once a model, however often it is completed
        keep_no_tables(model)
    fresh = model.rotary_pos_emb
    assert isinstance(fresh, FreshRotaryEmbedding)
    assert fresh.rotary is rotary
    packed = SimpleNamespace(max_seqlen_q=37, max_seqlen_kv=41)
    assert fresh.get_rotary_seq_len(None, None, None, None, packed) == 41
    before = RotaryEmbedding.forward.cache_info().currsize
    tables = [fresh(41, packed_seq=True) for _ in range(2)]
    assert RotaryEmbedding.forward.cache_info().currsize == before
    assert tables[0] is not tables[1]
    assert all(torch.equal(table, rotary(41, packed_seq=True)) for table in tables)
    assert RotaryEmbedding.forward.cache_info().currsize == before + 1  # what Megatron keeps
    assert not list(fresh.state_dict())


@pytest.fixture
def gpu_with(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Decisions as on a GPU with this Transformer Engine."""

    def installed(engine: str | None) -> None:
        monkeypatch.setattr(core_device, "cuda", lambda: True)
        monkeypatch.setattr(device, "current", lambda: torch.device("cpu"))
        monkeypatch.setattr(kernels.Installed, "here", classmethod(lambda cls: cls(engine)))
        monkeypatch.setattr("megatron.core.models.gpt.gpt_layer_specs.HAVE_TE", engine is not None)

    return installed


def a_config(**changed: Any) -> Any:
    from megatron.core.transformer.transformer_config import TransformerConfig

    fields = dict(
        num_layers=1, hidden_size=32, ffn_hidden_size=64, num_attention_heads=4, normalization="RMSNorm", bf16=True,
        gated_linear_unit=True, activation_func=F.silu, add_bias_linear=False, params_dtype=torch.bfloat16,
    )  # fmt: skip
    return TransformerConfig(**{**fields, **changed})


@pytest.mark.parametrize(("activation", "swiglu"), [(F.silu, True), (F.gelu, False)])
def test_the_fused_kernels_are_on_for_every_family(activation: Any, swiglu: bool, gpu_with: Callable[..., Any]) -> None:
    gpu_with("2.11.0")
    config = a_config(activation_func=activation)
    core_device.configure(config)
    assert config.transformer_impl == "transformer_engine"
    assert (config.bias_activation_fusion, config.apply_rope_fusion) == (swiglu, True)
    assert not config.use_te_activation_func  # Megatron refuses both (transformer_config.py:1230)


@pytest.mark.parametrize(("layers", "engine"), [("torch", "2.11.0"), ("auto", None)])
def test_torchs_layers_on_a_gpu_need_nothing_of_apex_or_the_engine(
    layers: str, engine: str | None, gpu_with: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from solopo_nemo.core.layers.attention import SDPACoreAttention

    gpu_with(engine)
    monkeypatch.setattr("solopo_nemo.core.layers.spec.get_num_layers_to_build", lambda *_, **__: 1)
    config = a_config(gradient_accumulation_fusion=True, masked_softmax_fusion=True, bias_dropout_fusion=True)
    core_device.configure(config, layers)
    assert config.transformer_impl == "local"
    assert not config.use_cpu_initialization  # weights are made on the GPU
    fused = [name for name in vars(config) if name.endswith("_fusion") and getattr(config, name)]
    assert set(fused) <= {"gradient_reduce_div_fusion"}, fused
    layer = core_device.layer_spec(config).layer_specs[0]
    assert layer.submodules.self_attention.submodules.core_attention is SDPACoreAttention
    config.init_model_with_meta_device = True
    core_device.configure(config, layers)
    assert config.use_cpu_initialization  # an import makes them on the meta device


def test_an_engine_that_cannot_be_imported_is_refused(
    gpu_with: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu_with("2.11.0")
    monkeypatch.setattr("megatron.core.models.gpt.gpt_layer_specs.HAVE_TE", False)
    with pytest.raises(
        UserError, match=r"2\.11\.0 is installed, and Megatron-core cannot import it.*model\.layers=torch"
    ):
        core_device.configure(a_config())


def test_the_lengths_stay_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core_device, "cuda", lambda: True)
    monkeypatch.setattr(core_device, "current", lambda: torch.device("meta"))
    batch: Any = {"ids": ["a"], "tokens": torch.zeros(1, 4), "lengths": [4]}
    moved: Any = core_device.to_device(batch)
    assert moved["tokens"].device.type == "meta"
    assert moved["lengths"] == [4]


def test_a_batch_is_copied_to_a_gpu_from_pinned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host waits for a copy from other memory, even with non_blocking=True."""
    calls: list[str] = []
    monkeypatch.setattr(core_device, "cuda", lambda: True)
    monkeypatch.setattr(core_device, "current", lambda: torch.device("cuda", 0))
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: calls.append("pinned") or self)
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *where, **how: calls.append(f"{where} {how}") or self)
    core_device.to_device({"tokens": torch.zeros(1, 4), "lengths": [4]})  # type: ignore[typeddict-item]
    assert calls == ["pinned", "(device(type='cuda', index=0),) {'non_blocking': True}"]


@pytest.mark.parametrize("gpu", [False, True])
def test_a_host_that_reads_a_number_waits_for_its_gpu(gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from solopo_nemo.training.failures.watchdog import where_it_is

    monkeypatch.setattr(device, "cuda", lambda: gpu)
    number = torch.tensor(1)

    def _engine_run_backward() -> tuple[bool, str]:
        return where_it_is(sys._getframe())

    said = (where_it_is(sys._getframe()), number.item())[0]
    assert said[0] is gpu
    assert _engine_run_backward()[0] is gpu
    computes = where_it_is(sys._getframe())
    assert not computes[0]


@pytest.mark.parametrize(
    ("chip", "ranks", "given", "connections", "allocator"),
    [
        (None, 8, {}, None, None),
        ((9, 0), 8, {}, "1", "expandable_segments:True"),
        ((8, 0), 1, {}, None, "expandable_segments:True"),
        ((10, 0), 2, {}, "32", "expandable_segments:True"),
        ((9, 0), 2, {"CUDA_DEVICE_MAX_CONNECTIONS": "8"}, "8", "expandable_segments:True"),
        ((9, 0), 1, {"PYTORCH_CUDA_ALLOC_CONF": "x:1"}, None, "x:1"),
        ((9, 0), 1, {"PYTORCH_ALLOC_CONF": "x:1"}, None, None),
    ],
)
def test_variables_are_set_where_the_user_set_none(
    chip: tuple[int, int] | None,
    ranks: int,
    given: dict[str, str],
    connections: str | None,
    allocator: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "environ", dict(given))
    monkeypatch.setattr(device, "_capability_without_cuda", lambda: chip)
    device.prepare_environment(ranks)
    assert os.environ.get("CUDA_DEVICE_MAX_CONNECTIONS") == connections
    assert os.environ.get("PYTORCH_CUDA_ALLOC_CONF") == allocator


@pytest.mark.parametrize(("visible", "name"), [(None, "1"), ("", "1"), ("4,6", "6"), ("GPU-a, GPU-b", "GPU-b")])
def test_a_scoring_process_sees_the_gpu_of_its_rank(
    visible: str | None, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "_present", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(os, "environ", {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible})
    assert device.name_of_current() == name


@pytest.mark.parametrize("gpu", [False, True])
def test_the_questions_are_asked_in_a_process_of_their_own_on_a_gpu(gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from solopo_nemo.training import launch

    processes: list[str] = []

    def run_isolated(what: str, function: Any, *asked: Any) -> Any:
        processes.append(what)
        return function(None, *asked)

    monkeypatch.setattr(device, "cuda", lambda: gpu)
    monkeypatch.setattr(launch, "run_isolated", run_isolated)
    monkeypatch.setattr("solopo_nemo.evaluation.accuracy.evaluate_accuracy", lambda *asked: asked)
    assert launch._ask("model", 1) == ("model", 1)
    assert processes == ["the answer accuracy"] * gpu


def test_selective_recomputation_leaves_the_attention_of_a_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert core_device.recomputed_modules() == ["core_attn"]
    monkeypatch.setattr(core_device, "cuda", lambda: True)
    assert core_device.recomputed_modules() == ["mlp"]


@pytest.mark.distributed
@pytest.mark.parametrize("gpu", [False, True])
def test_one_rank_gathers_the_state_of_a_gpus_optimizer(gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from solopo_nemo.nemo_model import strategy

    monkeypatch.setattr(strategy.compat, "prepare_process", lambda: None)
    monkeypatch.setattr(device, "cuda", lambda: gpu)
    made = strategy.SoLoPOStrategy(seed=1)
    assert made.sharded_state_dict_metadata["distrib_optim_sharding_type"] == "fully_reshardable"
    assert made.sharded_state_dict_metadata["distrib_optim_fully_reshardable_mem_efficient"] is gpu
    assert isinstance(made.unwrapped_checkpoint_io, strategy._CheckpointIO)


@pytest.mark.distributed
@pytest.mark.parametrize("gpu", [False, True])
def test_on_a_gpu_policy_and_reference_are_built_in_bf16(gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plugin sets the model's config, from which the callback of the online reference builds its copy, too."""
    from nemo.lightning.pytorch.plugins.mixed_precision import update_config_with_dtype_overrides

    from solopo_nemo.config.schema import load_config
    from solopo_nemo.training.fit import mixed_precision

    monkeypatch.setattr(device, "cuda", lambda: gpu)
    plugin = mixed_precision(load_config("solo_dpo", ["trainer.precision=bf16"]))
    assert plugin is not None
    config = update_config_with_dtype_overrides(plugin.dtype_config, a_config(bf16=False, params_dtype=torch.float32))
    assert config.bf16
    assert config.params_dtype is (torch.bfloat16 if gpu else torch.float32)
    assert mixed_precision(load_config("solo_dpo", ["trainer.precision=fp32"])) is None
