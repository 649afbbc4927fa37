"""Checks a parallel layout against the number of ranks and against the model, before any work."""

from __future__ import annotations

from solopo_nemo.config.parallel import ParallelConfig
from solopo_nemo.config.peft import PeftConfig
from solopo_nemo.config.schema import RunConfig
from solopo_nemo.families.description import ModelDescription
from solopo_nemo.families.experts import Experts
from solopo_nemo.families.family import MODULES
from solopo_nemo.runtime import device, environment, kernels
from solopo_nemo.runtime.errors import require


def check_world(config: RunConfig, world: int) -> None:
    """Checks the layout and the batch sizes against a number of ranks.

    Args:
        config: configuration of the run.
        world: number of ranks.

    Raises:
        UserError: with the key to change.
    """
    p, t = config.parallel, config.trainer
    shape = f"parallel.tensor={p.tensor} x context={p.context} x pipeline={p.pipeline}"
    require(
        world % p.model_ranks == 0,
        f"{shape} = {p.model_ranks} ranks does not divide the world of {world} ranks: change parallel.*",
    )
    data = world // p.model_ranks
    experts = p.expert * p.expert_tensor_size
    require(
        p.tensor * p.context * data % experts == 0,
        f"parallel.expert={p.expert} x expert_tensor={p.expert_tensor_size} does not divide tensor={p.tensor} x "
        f"context={p.context} x {data} data-parallel ranks, among which the experts are split",
    )
    require(
        p.data in (None, data),
        f"parallel.data={p.data}: {shape} leaves {data} data-parallel ranks of {world}; set it to {data} or to null",
    )
    require(
        t.global_batch % (t.micro_batch * data) == 0,
        f"trainer.global_batch={t.global_batch} is not divisible by trainer.micro_batch={t.micro_batch} x {data} "
        "data-parallel ranks",
    )


def check_model(config: RunConfig, model: ModelDescription, on_gpu: bool | None = None) -> None:
    """Checks the layout against the shape of the model.

    Args:
        config: configuration of the run.
        model: description of the model.
        on_gpu: whether the run computes on GPUs; by default whether this process does.

    Raises:
        UserError: with the key to change.
    """
    on_gpu = device.cuda() if on_gpu is None else on_gpu
    check_tensor(config.parallel, model)
    check_experts(config, model, on_gpu)
    check_pipeline(config.parallel, model)
    check_context(config, model, on_gpu)


def check_tensor(p: ParallelConfig, model: ModelDescription) -> None:
    """Checks tensor parallelism; see :func:`check_model`."""
    parts = {
        "attention heads": model.num_attention_heads,
        "key/value heads": model.num_key_value_heads,
        "MLP channels (intermediate_size)": model.intermediate_size,
    }
    for part, size in parts.items():
        require(size % p.tensor == 0, f"parallel.tensor={p.tensor} does not divide the model's {size} {part}")
    require(
        model.vocab_size % p.tensor == 0,
        f"parallel.tensor={p.tensor} does not divide the model's vocabulary of {model.vocab_size}; transformers' "
        "resize_token_embeddings(pad_to_multiple_of=64) pads it",
    )


def check_experts(config: RunConfig, model: ModelDescription, on_gpu: bool) -> None:
    """Checks the settings of mixture-of-experts layers; see :func:`check_model`."""
    p, experts, settings = config.parallel, model.experts, config.model
    if experts is None:
        none = f"the model, a {model.family.models}, has no experts: leave it out"
        require(p.expert == 1, f"parallel.expert={p.expert}: {none}")
        require(settings.moe_aux_loss is None, f"model.moe_aux_loss={settings.moe_aux_loss}: {none}")
        require(not settings.moe_z_loss, f"model.moe_z_loss={settings.moe_z_loss}: {none}")
        return
    kernels.check_experts()
    require(
        experts.count % p.expert == 0,
        f"parallel.expert={p.expert} does not divide the model's {experts.count} experts",
    )
    require(
        experts.size % p.expert_tensor_size == 0,
        f"parallel.expert_tensor={p.expert_tensor_size} does not divide the {experts.size} channels of the model's "
        "experts",
    )
    require(
        not on_gpu or (model.hidden_size % 8 == 0 and experts.size // p.expert_tensor_size % 8 == 0),
        f"the grouped product of experts takes widths that 8 divides; hidden_size={model.hidden_size} and experts of "
        f"{experts.size} channels over parallel.expert_tensor={p.expert_tensor_size} ranks are not",
    )
    require(
        p.tensor == 1 or p.sequence,
        f"parallel.tensor={p.tensor}: a model with experts needs parallel.sequence=true with it, so that no token is "
        "sent to its experts twice",
    )
    require(
        on_gpu or p.expert == 1 or p.expert_tensor_size == 1,
        f"parallel.expert_tensor={p.expert_tensor_size} with parallel.expert={p.expert}: gloo, which connects ranks on "
        "CPUs, gathers no unequal numbers of tokens; set parallel.expert_tensor=1",
    )
    _check_expert_optimizer(config, experts)
    peft = config.peft
    if not peft.on or not _of_experts(peft):
        return
    without = "leave gate_proj, up_proj and down_proj out of peft.targets"
    require(
        not on_gpu or peft.rank is None or peft.rank % 8 == 0,
        f"peft.rank={peft.rank}: the grouped product of experts takes widths that 8 divides; give such a rank, or "
        f"{without}",
    )
    require(
        not peft.dropout or p.expert_tensor_size == 1,
        f"peft.dropout={peft.dropout}: adapters of experts have none where parallel.expert_tensor="
        f"{p.expert_tensor_size} splits their channels; give peft.dropout=0, or {without}",
    )


def _of_experts(peft: PeftConfig) -> list[str]:
    """The targets that are not of the attention."""
    return [name for name in peft.modules if not MODULES[name].startswith("self_attn.")]


def _check_expert_optimizer(config: RunConfig, experts: Experts) -> None:
    """Megatron has an optimizer for the experts and one for all else, and cannot save one that is empty on a stage.

    It goes by a parameter's mark ``allreduce``, whatever layer has it (optimizer/__init__.py:165). One that is empty on
    every stage is dropped.
    """
    peft, stages, layers = config.peft, config.parallel.pipeline, experts.layers
    adapted = peft.modules if peft.on else ()
    targets = _of_experts(peft) if peft.on else []
    if len(layers) % stages or (peft.on and not targets):
        return
    size = len(layers) // stages
    parts = [layers[size * i : size * (i + 1)] for i in range(stages)]
    require(
        all(any(part) for part in parts),
        f"parallel.pipeline={stages}: a stage would have no layer with experts (mlp_only_layers, decoder_sparse_step), "
        "and Megatron's optimizer cannot save such a stage; take fewer stages",
    )
    alone = {all(part) for part in parts}
    require(
        not peft.on or len(targets) < len(adapted) or len(alone) == 1,
        f"peft.targets=[{','.join(adapted)}]: with parallel.pipeline={stages} some stages adapt experts alone, "
        "which Megatron's optimizer cannot save beside others; add a module of the attention, such as q_proj",
    )


def check_pipeline(p: ParallelConfig, model: ModelDescription) -> None:
    """Checks pipeline parallelism; see :func:`check_model`."""
    layers = model.num_hidden_layers
    require(layers % p.pipeline == 0, f"parallel.pipeline={p.pipeline} does not divide the model's {layers} layers")


def layers_of(config: RunConfig, model: ModelDescription | None, on_gpu: bool) -> kernels.Layers:
    """The layers of a run, chosen by :func:`solopo_nemo.runtime.kernels.choose_layers`.

    Args:
        config: configuration of the run.
        model: description of the model; None if it is not read yet.
        on_gpu: whether the run computes on GPUs.

    Raises:
        UserError: neither kind of layers runs there.
    """
    need = kernels.Need(
        config.trainer.precision or device.default_precision(on_gpu),
        model.head_dim if model else None,
        model is not None and model.attention_window is not None,
        config.parallel.cp_comm_type if config.parallel.context > 1 else None,
        model.family.own if model else "",
    )
    return kernels.choose_layers(config.model.layers, kernels.Installed.of_run(on_gpu), need)


def check_context(config: RunConfig, model: ModelDescription, on_gpu: bool) -> kernels.Layers:
    """Checks the layers and context parallelism, and returns the layers; see :func:`check_model`."""
    layers, p = layers_of(config, model, on_gpu), config.parallel
    if p.context > 1 and kernels.CONTEXT_MODES[p.cp_comm_type].splits_heads:
        # Transformer Engine splits the key/value heads too; this project's attention repeats them if there are too few
        engine = layers.name == kernels.ENGINE
        split = {"attention": model.num_attention_heads} | ({"key/value": model.num_key_value_heads} if engine else {})
        for kind, count in split.items():
            require(
                count // p.tensor % p.context == 0,
                f"parallel.context={p.context} does not divide the {count // p.tensor} {kind} heads of a tensor rank: "
                "parallel.cp_comm_type=p2p has no such limit",
            )
    return layers


def own_world(config: RunConfig) -> int:
    """The number of ranks of the job that this process is a rank of; else as :func:`local_world`."""
    return environment.world_size() if environment.started_as_rank() else local_world(config)


def local_world(config: RunConfig) -> int:
    """The number of ranks that a plain ``python recipes/...`` starts on this host."""
    p = config.parallel
    if p.data is None and device.cuda():
        return max(device.count() // p.model_ranks, 1) * p.model_ranks
    return p.model_ranks * p.least_data
