"""A few training steps of a NeMo model at any layout, without a Trainer, for numerics tests.

Weights are seeded by parameter name and cut to the layout, so that every layout starts from the same model.
"""

from __future__ import annotations

import zlib
from typing import Any

import layouts
import torch
import torch.distributed as dist
from layouts import OBJECTIVES, Layout

from solopo_nemo.families.family import FAMILIES

VOCAB, HIDDEN, LAYERS, HEADS, KV_HEADS, FFN = 256, 64, 4, 4, 2, 128
EXPERTS = dict(
    num_moe_experts=4, moe_ffn_hidden_size=48, moe_router_topk=2, moe_router_dtype="fp32", moe_permute_fusion=False,
    moe_aux_loss_coeff=0.5, moe_z_loss_coeff=0.1,
)  # fmt: skip
SAMPLES, MICRO_BATCH = 8, 2
GEMMA3 = {"query_pre_attn_scalar": 20.0, "rope_local_base_freq": 500.0}


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
    parallel_state.initialize_model_parallel(
        layout.tp, layout.pp, context_parallel_size=layout.cp, expert_model_parallel_size=layout.ep,
        expert_tensor_parallel_size=layout.etp,
    )  # fmt: skip
    tensor_parallel.model_parallel_cuda_manual_seed(1, force_reset_rng=True)


def build(layout: Layout, lora: Any = None) -> Any:
    """A NeMo model with the mixin, Megatron's DDP around it, weights seeded by name."""
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads

    from solopo_nemo.nemo_model.models import MODELS, classes_of, family_settings

    cls, config_cls = classes_of(layout.family)
    recompute: dict[str, Any] = {}
    if layout.recompute == "full":
        recompute = dict(recompute_granularity="full", recompute_method="uniform", recompute_num_layers=1)
    elif layout.recompute:
        recompute = dict(recompute_granularity="selective", recompute_modules=[layout.recompute])
    if layout.family.startswith("qwen3"):
        recompute["kv_channels"] = 2 * HIDDEN // HEADS
    if layout.family not in MODELS:
        recompute |= family_settings(FAMILIES[layout.family])
    if layout.family == "gemma3_text":
        recompute |= dict(
            kv_channels=24, query_pre_attn_scalar=GEMMA3["query_pre_attn_scalar"],
            rotary_base_local=GEMMA3["rope_local_base_freq"], window_size=(layout.window - 1, 0),
            window_attn_skip_freq=[1, 0, 1, 1],
        )  # fmt: skip
    if layout.family in layouts.EXPERTS:
        recompute |= EXPERTS | dict(
            expert_model_parallel_size=layout.ep, expert_tensor_parallel_size=layout.etp,
            # one layer without experts
            moe_layer_freq=[1, 1, 0, 1] if layout.family == "qwen3_moe" else 1,
        )  # fmt: skip
    config = config_cls(
        **dict(
            num_layers=LAYERS, hidden_size=HIDDEN, ffn_hidden_size=FFN, num_attention_heads=HEADS,
            num_query_groups=KV_HEADS, vocab_size=VOCAB, seq_length=256, rotary_base=10000.0,
            share_embeddings_and_output_weights=layout.tied, layernorm_epsilon=1e-6,
            tensor_model_parallel_size=layout.tp, pipeline_model_parallel_size=layout.pp,
            context_parallel_size=layout.cp, sequence_parallel=layout.sp, cp_comm_type=layout.cp_mode,
            pipeline_dtype=torch.float32, params_dtype=torch.float32, bf16=False,
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


def _splits(p: torch.Tensor) -> list[tuple[int, Any]]:
    """Axes of a parameter that are split over ranks, with their groups."""
    from megatron.core import parallel_state

    found = []
    if getattr(p, "tensor_model_parallel", False):
        found.append((p.partition_dim, parallel_state.get_tensor_model_parallel_group()))
    if p.dim() == 3:  # of experts, the first axis
        found = [(p.partition_dim, parallel_state.get_expert_tensor_parallel_group())] * (p.partition_dim > 0)
        found.append((0, parallel_state.get_expert_model_parallel_group()))
    return [(axis, group) for axis, group in found if group.size() > 1]


def _halves(name: str, axis: int) -> int:
    """How many parts are split each by itself: gate and up projection of an MLP."""
    return 2 if "linear_fc1" in name and not (axis == 0 and "experts" in name) else 1


@torch.no_grad()
def seed_weights(model: Any) -> None:
    for name, p in model.module.named_parameters():
        full_name, shape = _global_name(name, model.config), list(p.shape)
        if model.config.share_embeddings_and_output_weights and full_name.startswith("output_layer"):
            full_name = "embedding.word_embeddings.weight"
        for axis, group in _splits(p):
            shape[axis] *= group.size()
        g = torch.Generator().manual_seed(zlib.crc32(full_name.encode()))
        # random norm weights: with all ones, a norm that was never loaded would go unseen
        mean = "norm" in full_name and not model.config.layernorm_zero_centered_gamma
        full = torch.randn(shape, generator=g) * 0.15 + float(mean)
        for axis, group in _splits(p):
            halves = full.chunk(_halves(full_name, axis), axis)
            full = torch.cat([h.chunk(group.size(), axis)[group.rank()] for h in halves], axis)
        p.copy_(full)


def gather_full(model: Any, tensors: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """(parameter, its gradient) by local name -> full gradients by global name, all pipeline stages together."""
    from megatron.core import parallel_state

    out = {}
    for name, (p, t) in tensors.items():
        full_name, t = _global_name(name, model.config), t.detach().contiguous()
        for axis, group in _splits(p):
            parts = [torch.empty_like(t) for _ in range(group.size())]
            dist.all_gather(parts, t.contiguous(), group=group)
            halves = [x.chunk(_halves(full_name, axis), axis) for x in parts]
            t = torch.cat([torch.cat(own, axis) for own in zip(*halves, strict=True)], axis)
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

    from solopo_nemo.core.experts import take_metrics

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
    if model.config.num_moe_experts:
        model.routing = routing(model)
    return metrics[0] | take_metrics(model.module, model.config, len(data))


def gradients(model: Any) -> dict[str, torch.Tensor]:
    return gather_full(
        model, {n: (p, p.main_grad) for n, p in model.module.module.named_parameters() if p.requires_grad}
    )


def whole_gradients(model: Any) -> dict[str, torch.Tensor]:
    """Like :func:`gradients`; DDP with a distributed optimizer reduce-scatters, so the shards are summed (and put back)."""
    from megatron.core import parallel_state

    everyone = parallel_state.get_data_parallel_group(with_context_parallel=True)
    buffers = [(buffer, everyone) for buffer in model.module.buffers]
    buffers += [(b, parallel_state.get_expert_data_parallel_group()) for b in model.module.expert_parallel_buffers]
    scattered = [buffer.grad_data.clone() for buffer, _ in buffers]
    for buffer, group in buffers:
        shard = buffer.grad_data.numel() // group.size()
        own = buffer.grad_data[group.rank() * shard : (group.rank() + 1) * shard].clone()
        buffer.grad_data.zero_()
        buffer.grad_data[group.rank() * shard : (group.rank() + 1) * shard] = own
        dist.all_reduce(buffer.grad_data, group=group)
    whole = gradients(model)
    for (buffer, _), data in zip(buffers, scattered, strict=True):
        buffer.grad_data.copy_(data)
    return whole


def routing(model: Any) -> dict[int, list[int]]:
    """Real tokens of each expert in the last step by layer, over all ranks."""
    from megatron.core import parallel_state

    from solopo_nemo.core.experts import routers_of

    own = {}
    for router in routers_of(model.module):
        load = router.load.clone()
        dist.all_reduce(load, group=router.tp_dp_cp_group)
        own[router.layer_number] = load.tolist()
    stages: list[Any] = [None] * parallel_state.get_pipeline_model_parallel_world_size()
    dist.all_gather_object(stages, own, group=parallel_state.get_pipeline_model_parallel_group())
    return {layer: load for stage in stages for layer, load in stage.items()}


def run_layout(layout: Layout, steps: dict[str, int]) -> dict[str, Any]:
    """Metrics and gradients of the first step; losses and routing of it and of so many optimizer steps more, by name."""
    from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer

    from solopo_nemo.objectives import build_objective

    enter(layout)
    model, result = build(layout), {}
    for name, count in steps.items():
        kind, options = OBJECTIVES[name]
        objective = build_objective(kind, **options)
        seed_weights_of(model)
        metrics = step(model, layout, objective)
        result[name] = {
            "metrics": metrics,
            "grads": whole_gradients(model),
            "losses": [metrics["loss"]],
            "routing": [getattr(model, "routing", None)],
        }
        if not count:
            continue
        optimizer = get_megatron_optimizer(
            OptimizerConfig(optimizer="adam", lr=1e-3, weight_decay=0.1, clip_grad=1.0, use_distributed_optimizer=True),
            [model.module],
        )
        for _ in range(count):
            optimizer.step()
            result[name]["losses"].append(step(model, layout, objective)["loss"])
            result[name]["routing"].append(getattr(model, "routing", None))
    return result


def seed_weights_of(model: Any) -> None:
    """Start again from the seeded weights (the parameters are inside Megatron's DDP by now)."""
    wrapped, model.module = model.module, model.module.module
    seed_weights(model)
    model.module = wrapped
