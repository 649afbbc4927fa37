"""A few training steps of a NeMo model at any layout, without a Trainer, for numerics tests.

Weights are seeded by parameter name and cut to the layout, so that every layout starts from the same model.
"""

from __future__ import annotations

import zlib
from typing import Any

import torch
import torch.distributed as dist
from layouts import OBJECTIVES, Layout

from solopo_nemo.families.family import FAMILIES

VOCAB, HIDDEN, LAYERS, HEADS, KV_HEADS, FFN = 256, 64, 4, 4, 2, 128
SAMPLES, MICRO_BATCH = 8, 2


def make_samples(turns: bool = False, seed: int = 3) -> list[dict[str, Any]]:
    """Samples of odd and very unequal lengths, one-token responses included; see `Layout.turns`."""
    g = torch.Generator().manual_seed(seed)

    def ids(low: int, high: int) -> list[int]:
        n = int(torch.randint(low, high, (), generator=g))
        return torch.randint(1, VOCAB, (n,), generator=g).tolist()

    samples = [
        {
            "id": str(i),
            "prompt_short": ids(3, 12),
            "prompt_long": ids(20, 60),
            "chosen": ids(1, 9),
            "rejected": ids(1, 9),
        }
        for i in range(SAMPLES)
    ]
    samples[0]["chosen"] = samples[0]["chosen"][:1]
    for i, sample in enumerate(samples) if turns else ():
        sample["chosen"] += [~i for i in ids(2, 20)] + ids(1, 5)
        sample["rejected"] = [~i for i in ids(1, 9)] + sample["rejected"]  # as data.score=last has it
        sample |= {f"rejected_{k}": ids(1, 4) + [~i for i in ids(1, 9)] + ids(1, 4) for k in range(2, 2 + i % 3)}
    return samples


def reference_score(sample: dict[str, Any], column: str) -> float:
    """A fixed made-up reference log-probability of an answer."""
    return -1.5 * sum(i >= 0 for i in sample[column]) - 0.1 * int(sample["id"])


def start(rank: int, world: int, port: int) -> None:
    import os

    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(world))
    torch.set_num_threads(1)
    from solopo_nemo.core import device

    device.prepare_process()
    dist.init_process_group("gloo", rank=rank, world_size=world)


def enter(layout: Layout) -> None:
    from megatron.core import parallel_state, tensor_parallel

    parallel_state.destroy_model_parallel()
    parallel_state.initialize_model_parallel(layout.tp, layout.pp, context_parallel_size=layout.cp)
    tensor_parallel.model_parallel_cuda_manual_seed(1, force_reset_rng=True)


def build(layout: Layout, lora: Any = None) -> Any:
    """A NeMo model with the mixin, Megatron's DDP around it, weights seeded by name."""
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads

    from solopo_nemo.nemo_model.models import classes_of, family_settings

    cls, config_cls = classes_of(layout.family)
    recompute: dict[str, Any] = {}
    if layout.recompute == "full":
        recompute = dict(recompute_granularity="full", recompute_method="uniform", recompute_num_layers=1)
    elif layout.recompute:
        recompute = dict(recompute_granularity="selective", recompute_modules=[layout.recompute])
    if layout.family == "qwen3":
        recompute["kv_channels"] = 2 * HIDDEN // HEADS
    if layout.family == "gemma3_text":
        recompute |= family_settings(FAMILIES[layout.family]) | dict(
            kv_channels=24, query_pre_attn_scalar=20, rotary_base_local=500.0, window_size=(layout.window - 1, 0),
            window_attn_skip_freq=[1, 0, 1, 1],
        )  # fmt: skip
    config = config_cls(
        **dict(
            num_layers=LAYERS, hidden_size=HIDDEN, ffn_hidden_size=FFN, num_attention_heads=HEADS,
            num_query_groups=KV_HEADS, vocab_size=VOCAB, seq_length=256, rotary_base=10000.0,
            share_embeddings_and_output_weights=layout.tied, layernorm_epsilon=1e-6,
            tensor_model_parallel_size=layout.tp, pipeline_model_parallel_size=layout.pp,
            context_parallel_size=layout.cp, sequence_parallel=layout.sp, cp_comm_type=layout.cp_mode,
            pipeline_dtype=torch.float32,
        )
        | recompute
    )  # fmt: skip
    model = cls(config, logits_chunk_size=3, lora=lora)
    model.configure_model()
    seed_weights(model)
    model.module = DistributedDataParallel(
        config,
        DistributedDataParallelConfig(use_distributed_optimizer=True, overlap_grad_reduce=False),
        model.module,
    )
    config.finalize_model_grads_func = finalize_model_grads
    return model


def _global_name(name: str, config: Any) -> str:
    from megatron.core.transformer.transformer_layer import get_transformer_layer_offset

    parts = name.split(".")
    if "layers" in parts:
        i = parts.index("layers") + 1
        parts[i] = str(int(parts[i]) + get_transformer_layer_offset(config))
    return ".".join(parts)


def _is_split(p: torch.Tensor) -> bool:
    from megatron.core import parallel_state

    return getattr(p, "tensor_model_parallel", False) and parallel_state.get_tensor_model_parallel_world_size() > 1


@torch.no_grad()
def seed_weights(model: Any) -> None:
    from megatron.core import parallel_state

    n, r = parallel_state.get_tensor_model_parallel_world_size(), parallel_state.get_tensor_model_parallel_rank()
    for name, p in model.module.named_parameters():
        full_name, shape = _global_name(name, model.config), list(p.shape)
        if model.config.share_embeddings_and_output_weights and full_name.startswith("output_layer"):
            full_name = "embedding.word_embeddings.weight"
        if _is_split(p):
            shape[p.partition_dim] *= n
        g = torch.Generator().manual_seed(zlib.crc32(full_name.encode()))
        # random norm weights: with all ones, a norm that was never loaded would go unseen
        mean = "norm" in full_name and not model.config.layernorm_zero_centered_gamma
        full = torch.randn(shape, generator=g) * 0.15 + float(mean)
        if _is_split(p):
            halves = full.chunk(2, p.partition_dim) if "linear_fc1" in full_name else (full,)
            full = torch.cat([h.chunk(n, p.partition_dim)[r] for h in halves], p.partition_dim)
        p.copy_(full)


def gather_full(model: Any, tensors: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """(parameter, its gradient) by local name -> full gradients by global name, all pipeline stages together."""
    from megatron.core import parallel_state

    tp_group, n = (
        parallel_state.get_tensor_model_parallel_group(),
        parallel_state.get_tensor_model_parallel_world_size(),
    )
    out = {}
    for name, (p, t) in tensors.items():
        full_name, t = _global_name(name, model.config), t.detach().contiguous()
        if _is_split(p):
            parts = [torch.empty_like(t) for _ in range(n)]
            dist.all_gather(parts, t, group=tp_group)
            if "linear_fc1" in full_name:
                halves = [x.chunk(2, p.partition_dim) for x in parts]
                t = torch.cat([torch.cat([h[i] for h in halves], p.partition_dim) for i in (0, 1)], p.partition_dim)
            else:
                t = torch.cat(parts, p.partition_dim)
        out[full_name] = t.clone()
    stages: list[Any] = [None] * parallel_state.get_pipeline_model_parallel_world_size()
    dist.all_gather_object(stages, out, group=parallel_state.get_pipeline_model_parallel_group())
    merged: dict[str, torch.Tensor] = {}
    for stage in stages:
        merged |= stage
    if model.config.share_embeddings_and_output_weights:
        merged.pop("output_layer.weight", None)  # the last stage's copy of the embedding
    return merged


def batches(layout: Layout, objective: Any) -> list[Any]:
    """This data-parallel rank's micro-batches of one global batch."""
    from megatron.core import parallel_state

    from solopo_nemo.data.packing import Layout as Packing
    from solopo_nemo.data.packing import pack

    packing = Packing(layout.cp, parallel_state.get_context_parallel_rank(), layout.tp if layout.sp else 1)
    samples, out = make_samples(layout.turns), []
    dp, dp_rank = parallel_state.get_data_parallel_world_size(), parallel_state.get_data_parallel_rank()
    for i in range(0, SAMPLES, MICRO_BATCH):
        if (i // MICRO_BATCH) % dp != dp_rank:
            continue
        out.append(pack(samples[i : i + MICRO_BATCH], objective.sequences, packing))
    return out


def made_up_reference(objective: Any, turns: bool) -> Any:
    """:func:`reference_score` as the step asks for it."""
    from solopo_nemo.core.reference import CachedReference

    names, table = objective.reference_sequences, {}
    for s in make_samples(turns):
        rejected = [reference_score(s, column) for column in s if column.startswith("rejected")]
        of = {"chosen": reference_score(s, "chosen"), "rejected": rejected if len(rejected) > 1 else rejected[0]}
        table[s["id"]] = {name: of[name.partition("_")[2]] for name in names}
    return CachedReference(names, table)


def step(model: Any, layout: Layout, objective: Any) -> dict[str, float]:
    """Forward and backward of one global batch; metrics on every rank."""
    from megatron.core import parallel_state
    from megatron.core.pipeline_parallel import get_forward_backward_func

    model.objective, model.reference, model._training_loss_reduction = (
        objective,
        made_up_reference(objective, layout.turns),
        None,
    )
    reduction = model.training_loss_reduction

    def forward_step(iterator: Any, _: Any) -> Any:
        batch = model.data_step(iterator)
        out = model.forward_step(batch)
        reduction.setup(batch)
        return out, reduction

    data = batches(layout, objective)
    model.module.zero_grad_buffer()
    outputs = get_forward_backward_func()(
        forward_step_func=forward_step, data_iterator=iter(data), model=[model.module], num_microbatches=len(data),
        seq_length=1, micro_batch_size=1,
    )  # fmt: skip
    if outputs:
        reduction.reduce(outputs)
    metrics = [reduction.metrics]
    dist.broadcast_object_list(
        metrics,
        parallel_state.get_pipeline_model_parallel_last_rank(),
        group=parallel_state.get_pipeline_model_parallel_group(),
    )
    return metrics[0]


def gradients(model: Any) -> dict[str, torch.Tensor]:
    return gather_full(
        model, {n: (p, p.main_grad) for n, p in model.module.module.named_parameters() if p.requires_grad}
    )


def whole_gradients(model: Any) -> dict[str, torch.Tensor]:
    """Like :func:`gradients`; DDP with a distributed optimizer reduce-scatters, so the shards are summed (and put back)."""
    from megatron.core import parallel_state

    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    scattered = [buffer.grad_data.clone() for buffer in model.module.buffers]
    for buffer in model.module.buffers:
        shard = buffer.grad_data.numel() // group.size()
        own = buffer.grad_data[group.rank() * shard : (group.rank() + 1) * shard].clone()
        buffer.grad_data.zero_()
        buffer.grad_data[group.rank() * shard : (group.rank() + 1) * shard] = own
        dist.all_reduce(buffer.grad_data, group=group)
    whole = gradients(model)
    for buffer, data in zip(model.module.buffers, scattered, strict=True):
        buffer.grad_data.copy_(data)
    return whole


def run_layout(layout: Layout, steps: dict[str, int]) -> dict[str, Any]:
    """Metrics and gradients of the first step, and losses of so many optimizer steps more, by objective name."""
    from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer

    from solopo_nemo.objectives import build_objective

    enter(layout)
    model, result = build(layout), {}
    for name, count in steps.items():
        kind, options = OBJECTIVES[name]
        objective = build_objective(kind, **options)
        seed_weights_of(model)
        metrics = step(model, layout, objective)
        result[name] = {"metrics": metrics, "grads": whole_gradients(model), "losses": [metrics["loss"]]}
        if not count:
            continue
        optimizer = get_megatron_optimizer(
            OptimizerConfig(optimizer="adam", lr=1e-3, weight_decay=0.1, clip_grad=1.0, use_distributed_optimizer=True),
            [model.module],
        )
        for _ in range(count):
            optimizer.step()
            result[name]["losses"].append(step(model, layout, objective)["loss"])
    return result


def seed_weights_of(model: Any) -> None:
    """Start again from the seeded weights (the parameters are inside Megatron's DDP by now)."""
    wrapped, model.module = model.module, model.module.module
    seed_weights(model)
    model.module = wrapped
