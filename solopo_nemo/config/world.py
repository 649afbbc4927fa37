"""Whether a parallel layout fits the ranks that there are and the model, checked before any work."""

from __future__ import annotations

from solopo_nemo.config.schema import RunConfig
from solopo_nemo.families.description import ModelDescription
from solopo_nemo.runtime import device
from solopo_nemo.runtime.errors import require


def check_world(config: RunConfig, world: int) -> None:
    """Check the layout and the batches against a number of ranks.

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
    require(
        p.data in (None, data),
        f"parallel.data={p.data}: {shape} leaves {data} data-parallel ranks of {world}; set it to {data} or to null",
    )
    require(
        t.global_batch % (t.micro_batch * data) == 0,
        f"trainer.global_batch={t.global_batch} is not divisible by trainer.micro_batch={t.micro_batch} x {data} "
        "data-parallel ranks",
    )


def check_model(config: RunConfig, model: ModelDescription) -> None:
    """Check the layout against the model's shape.

    Args:
        model: what the model's folder says.

    Raises:
        UserError: with the key to change.
    """
    p = config.parallel
    heads, layers, vocab = model.num_attention_heads, model.num_hidden_layers, model.vocab_size
    kv_heads, ffn = model.num_key_value_heads, model.intermediate_size
    require(heads % p.tensor == 0, f"parallel.tensor={p.tensor} does not divide the model's {heads} attention heads")
    require(
        kv_heads % p.tensor == 0, f"parallel.tensor={p.tensor} does not divide the model's {kv_heads} key/value heads"
    )
    require(ffn % p.tensor == 0, f"parallel.tensor={p.tensor} does not divide the model's intermediate size of {ffn}")
    require(
        vocab % p.tensor == 0,
        f"parallel.tensor={p.tensor} does not divide the model's vocabulary of {vocab}; transformers' "
        "resize_token_embeddings(pad_to_multiple_of=64) pads it",
    )
    require(layers % p.pipeline == 0, f"parallel.pipeline={p.pipeline} does not divide the model's {layers} layers")
    require(
        p.context == 1 or p.cp_comm_type == "a2a" or model.attention_window is None,
        f"parallel.cp_comm_type={p.cp_comm_type}: the model's sliding-window attention needs a2a",
    )
    if p.cp_comm_type == "a2a" and p.context > 1:
        # Transformer Engine splits the key/value heads too; our own attention repeats them where there are too few
        split = {"attention": heads} | ({"key/value": kv_heads} if device.cuda() else {})
        for kind, count in split.items():
            require(
                count // p.tensor % p.context == 0,
                f"parallel.context={p.context} does not divide the {count // p.tensor} {kind} heads of a tensor rank: "
                "parallel.cp_comm_type=p2p has no such limit",
            )


def local_world(config: RunConfig) -> int:
    """Number of ranks that a plain ``python recipes/...`` starts on this host."""
    p = config.parallel
    if p.data is None and device.cuda():
        return max(device.count() // p.model_ranks, 1) * p.model_ranks
    return p.model_ranks * (p.data or 1)
