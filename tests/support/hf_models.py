"""Tiny Hugging Face models of every family, with random norms and biases, and what is asked of them in child processes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

SIZES = dict(
    vocab_size=2048, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=512,
)  # fmt: skip
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
SLIDES = ["sliding_attention", "full_attention"]

MOE = dict(head_dim=32, num_experts=8, num_experts_per_tok=3, moe_intermediate_size=40, rope_theta=1e6)


@dataclass(frozen=True)
class Case:
    """A model, and changes to its configuration that a comparison of logits must see."""

    family: str
    settings: dict[str, Any]
    dtype: torch.dtype = torch.float32
    shard: str = "5GB"
    wrong: dict[str, Any] = field(default_factory=dict)


CASES = {
    "qwen2_tied": Case("qwen2", dict(tie_word_embeddings=True, rms_norm_eps=1e-5), wrong=dict(rms_norm_eps=1e-3)),
    "qwen2_yarn": Case(
        "qwen2", dict(tie_word_embeddings=False, rope_scaling=YARN, rope_theta=1e6), torch.bfloat16, "200KB",
        wrong=dict(rope_scaling=YARN | {"attention_factor": 1.0}),
    ),
    "qwen2_some_layers_slide": Case(
        "qwen2", dict(use_sliding_window=True, sliding_window=40, max_window_layers=1, num_key_value_heads=4),
        wrong=dict(layer_types=["full_attention"] * 2),
    ),
    "qwen3": Case(
        "qwen3", dict(tie_word_embeddings=True, head_dim=32, rope_theta=1e6), torch.bfloat16,
        wrong=dict(rope_theta=1e5),
    ),
    "llama3": Case(
        "llama",
        dict(hidden_size=96, num_attention_heads=8, rope_theta=5e5, rope_scaling=LLAMA3),
        shard="300KB", wrong=dict(rope_scaling=LLAMA3 | {"low_freq_factor": 2.0}),
    ),
    "llama_linear_tied_fp16": Case(
        "llama", dict(tie_word_embeddings=True, rope_scaling={"rope_type": "linear", "factor": 2.0}), torch.float16,
        wrong=dict(rope_scaling=None),
    ),
    "mistral": Case(
        "mistral", dict(sliding_window=32, head_dim=24, rms_norm_eps=1e-5), torch.bfloat16,
        wrong=dict(sliding_window=33),  # what NeMo's own importer makes of 32
    ),
    "gemma3": Case(
        "gemma3_text",
        dict(
            head_dim=32, sliding_window=24, query_pre_attn_scalar=20, num_hidden_layers=3, rope_theta=1e5,
            rope_local_base_freq=5e3, layer_types=["sliding_attention", "full_attention", "sliding_attention"],
            rope_scaling={"rope_type": "linear", "factor": 2.0},
        ),
        wrong=dict(rope_local_base_freq=1e4),
    ),
    "smollm3": Case(
        "smollm3",
        dict(
            no_rope_layers=[0, 1, 1], num_hidden_layers=3, rope_theta=1e5, pad_token_id=None, bos_token_id=1, eos_token_id=2
        ),
        wrong=dict(no_rope_layers=[1, 0, 1]),
    ),
    "gemma3_bf16_long_windows": Case(
        "gemma3_text", dict(hidden_size=96, head_dim=24, sliding_window=512, layer_types=SLIDES), torch.bfloat16,
        "200KB",  # the square root of 96 is rounded
        wrong=dict(query_pre_attn_scalar=24),
    ),
    "qwen3_moe": Case(
        "qwen3_moe", MOE | dict(norm_topk_prob=True), torch.bfloat16, "100KB", wrong=dict(norm_topk_prob=False),
    ),
    "qwen3_moe_some_layers": Case(
        "qwen3_moe", MOE | dict(num_hidden_layers=3, mlp_only_layers=[0], norm_topk_prob=False),
        wrong=dict(norm_topk_prob=True),
    ),
    "mixtral": Case("mixtral", dict(num_local_experts=4, rms_norm_eps=1e-5, rope_theta=1e6), wrong=dict(num_experts_per_tok=3)),
}  # fmt: skip


def make(case: Case, folder: Path) -> None:
    """Write the model of a case."""
    from transformers import AutoConfig

    make_random(AutoConfig.for_model(case.family, **(SIZES | case.settings)), folder, case.dtype, case.shard)


def make_random(config: Any, folder: Path, dtype: torch.dtype, shard: str) -> None:
    """Write a random model with the embedded model's tokenizer and a generation config of its own."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    from solopo_nemo.runtime.paths import EMBEDDED_MODEL

    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype)
    for name, parameter in model.named_parameters():
        # random norms and biases: with ones and zeros, one that was never loaded would go unseen
        torch.nn.init.normal_(parameter, float(parameter.detach()[0]) if "norm" in name else 0.0, 0.1)
    model.generation_config = GenerationConfig(do_sample=True, temperature=0.6, top_k=20)
    model.save_pretrained(folder, max_shard_size=shard)
    AutoTokenizer.from_pretrained(EMBEDDED_MODEL).save_pretrained(folder)


def convert_all(progress: Any, root: Path) -> dict[str, dict[str, Any]]:
    """Each model of ``root`` there and back, one Megatron process for all.

    Returns, by case: the logits' differences of import and export, that under the wrong configuration, the largest
    relative difference of a gradient, and what NeMo's own context holds.
    """
    from nemo.lightning import io

    from solopo_nemo.nemo_model import convert

    found: dict[str, dict[str, Any]] = {}
    for name, case in CASES.items():
        source, checkpoint, back = root / name, root / f"{name}.nemo", root / f"{name}.back"
        imported = convert._import(progress, source, checkpoint, case.dtype, None, False)
        stored = io.load_context(checkpoint, subpath="model")
        found[name] = {
            "import": imported,
            "export": convert._export(progress, checkpoint, back, case.shard, False)[0],
            "wrong": _with_wrong_settings(progress, root, name, case),
            "gradient": _gradient_difference(root, name),
            "stored": (stored.config.rope_scaling, stored.tokenizer.text_to_ids("Hello")),
        }
    return found


def _with_wrong_settings(progress: Any, root: Path, name: str, case: Case) -> dict[str, float]:
    from solopo_nemo.data.tokenizer_files import load_tokenizer
    from solopo_nemo.families import hf
    from solopo_nemo.families.description import ModelDescription
    from solopo_nemo.nemo_model import verify
    from solopo_nemo.nemo_model.models import load_module, one_rank

    model = hf.read_config(root / name)
    sequences = verify.probes(load_tokenizer(root / name), model.vocab_size)
    want = verify.transformers_logits(root / name, model, case.dtype, sequences, progress, False)
    wrong = ModelDescription.from_hf({**model.source, **case.wrong})
    with one_rank():
        got = verify.megatron_logits(load_module(root / f"{name}.nemo", wrong, case.dtype), sequences, progress)
    return {kind: verify.largest_difference(got[kind], want[kind]) for kind in want}


def _gradient_difference(root: Path, name: str) -> float:
    """Of the gradients of the embedding and of every norm, one long sequence, fp32."""
    from transformers import AutoModelForCausalLM

    from solopo_nemo.families import hf
    from solopo_nemo.families.weights import expected_tensors, hf_tensors
    from solopo_nemo.nemo_model import verify
    from solopo_nemo.nemo_model.models import load_module, one_rank

    # without token 0, Gemma's padding token: transformers leaves it out of the embedding's gradient
    config, ids = hf.read_config(root / name), torch.arange(1, 301) * 7 % SIZES["vocab_size"]
    model: Any = AutoModelForCausalLM.from_pretrained(root / name, dtype=torch.float32)
    model(ids[None]).logits.logsumexp(-1).mean().backward()
    want = {key: p.grad for key, p in model.named_parameters()}
    with one_rank():
        module = load_module(root / f"{name}.nemo", config, torch.float32)
        logits = verify.packed_logits(module, [ids.tolist()])[0]
        logits.logsumexp(-1).mean().backward()
        with torch.no_grad():
            for p in module.parameters():
                p.copy_(p.grad)
        got = hf_tensors(module, expected_tensors(config, torch.float32), config.family)
        return max(float((g - want[key]).norm() / want[key].norm()) for key, g in got)


def versions(root: Path) -> list[str]:
    """Write every case as transformers 4 and as transformers 5 would, under ``root``; the names."""
    import json

    from true_values import to_version_5

    names = []
    for name, case in CASES.items():
        make(case, root / name)
        make(case, root / f"{name}_5")
        file = root / f"{name}_5" / "config.json"
        file.write_text(json.dumps(to_version_5(json.loads(file.read_text()))))
        names += [name, f"{name}_5"]
    return names


def megatron_logits(progress: Any, root: Path, names: list[str]) -> dict[str, list[torch.Tensor]]:
    """Import each model, compared with transformers on the way, and the logits of ``IDS`` from its checkpoint."""
    from solopo_nemo.families import hf
    from solopo_nemo.nemo_model import convert, verify
    from solopo_nemo.nemo_model.models import load_module, one_rank

    found = {}
    for name in names:
        dtype = torch.float32 if name.isdecimal() else CASES[name.removesuffix("_5")].dtype
        convert._import(progress, root / name, root / f"{name}.nemo", dtype, None, False)
        with one_rank(), torch.no_grad():
            module = load_module(root / f"{name}.nemo", hf.read_config(root / f"{name}.nemo" / "hf"), torch.float32)
            found[name] = verify.packed_logits(module, [ids.tolist() for ids in IDS])
    return found


IDS = [torch.arange(n) * 7 % SIZES["vocab_size"] for n in (90, 300, 41)]
"""Three sequences to pack."""


def logits_in_layouts(root: Path, runs: list[tuple[str, Any]]) -> list[torch.Tensor]:
    """Logits ``[tokens, vocabulary]`` of ``IDS``, packed, by model name and layout; on rank 0 of all."""
    import engine

    out = []
    for name, layout in runs:
        engine.enter(layout)
        out.append(_layout_logits(root / f"{name}.nemo", layout))
    return out


@torch.no_grad()
def _layout_logits(checkpoint: Path, layout: Any) -> torch.Tensor:
    import torch.distributed as dist
    from megatron.core import parallel_state, tensor_parallel
    from megatron.core.pipeline_parallel import get_forward_backward_func

    from solopo_nemo.core.layers.attention import PackedSequences
    from solopo_nemo.core.scoring import load_weights
    from solopo_nemo.data.packing import Layout as Packing
    from solopo_nemo.data.packing import pack
    from solopo_nemo.families import hf
    from solopo_nemo.nemo_model.models import nemo_model

    model = nemo_model(hf.read_config(checkpoint / "hf"), torch.float32)
    settings = dict(
        tensor_model_parallel_size=layout.tp, pipeline_model_parallel_size=layout.pp, context_parallel_size=layout.cp,
        sequence_parallel=layout.sp, cp_comm_type=layout.cp_mode, pipeline_dtype=torch.float32,
        expert_model_parallel_size=layout.ep, expert_tensor_parallel_size=layout.etp,
    )  # fmt: skip
    for key, value in settings.items():
        setattr(model.config, key, value)
    model.configure_model()
    load_weights(model.module, checkpoint)
    if layout.ep * layout.etp > 1:
        _save_again(model.module, checkpoint, layout)
    samples = [{"prompt_short": ids[:1].tolist(), "chosen": [*ids[1:].tolist(), 0]} for ids in IDS]
    packing = Packing(layout.cp, parallel_state.get_context_parallel_rank(), layout.tp if layout.sp else 1)
    batch = pack(samples, ["short_chosen"], packing)
    packed = PackedSequences.of(batch["lengths"], batch["cu_seqlens"], layout.cp)

    kept: list[torch.Tensor] = []

    def forward_step(_: Any, module: Any) -> Any:
        def keep(logits: torch.Tensor) -> tuple[torch.Tensor, dict[str, Any]]:
            kept.append(tensor_parallel.gather_from_tensor_model_parallel_region(logits)[0].clone())
            return logits.sum(), {}

        return module(batch["tokens"], batch["position_ids"], None, packed_seq_params=packed), keep

    get_forward_backward_func()(
        forward_step_func=forward_step, data_iterator=iter(()), model=[model.module.eval()], num_microbatches=1,
        seq_length=1, micro_batch_size=1, forward_only=True,
    )  # fmt: skip
    # where each local row stands in the sequences laid end to end
    lengths, starts = [len(ids) for ids in IDS], [0]
    for n in lengths:
        starts.append(starts[-1] + n)
    local = (batch["cu_seqlens"].diff() // layout.cp).tolist()
    parts = torch.arange(len(IDS)).repeat_interleave(torch.tensor(local))
    position = batch["position_ids"][0]
    real = position < torch.tensor(lengths)[parts]
    own = ((torch.tensor(starts)[parts] + position)[real], kept[0][real]) if kept else None
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, own)
    whole = torch.full((starts[-1], SIZES["vocab_size"]), torch.nan)
    for rows, logits in filter(None, gathered):
        whole[rows] = logits
    return whole


def _save_again(module: Any, checkpoint: Path, layout: Any) -> None:
    """Save what a layout has loaded: every tensor of the checkpoint is to be the same."""
    import torch.distributed as dist
    from megatron.core import dist_checkpointing

    again = checkpoint.with_suffix(f".{layout.name}")
    again.mkdir(exist_ok=True)
    dist.barrier()
    dist_checkpointing.save({"state_dict": module.sharded_state_dict(prefix="module.")}, str(again))
    want, got = (dist_checkpointing.load_plain_tensors(str(folder)) for folder in (checkpoint / "weights", again))
    tensors = [name for name in want if name.startswith("module.") and not name.endswith("_extra_state")]
    assert any(".experts." in name for name in tensors)
    assert [name for name in tensors if not torch.equal(got[name], want[name].float())] == []


def transformers_logits(folder: Path) -> torch.Tensor:
    """The same from transformers, each sequence alone."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return torch.cat([model(ids[None]).logits[0] for ids in IDS])
