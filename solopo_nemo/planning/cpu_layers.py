"""What a transformer layer keeps and needs on a CPU: ``solopo_nemo/nemo_model/{layers,blockwise,attention}.py``.

Names and course are those of :mod:`solopo_nemo.planning.gpu_layers`; here a norm or an activation is made again, block
by block, rather than kept, and weight gradients are tensors of their own until DDP has added them to its buffer.
Symbols: :class:`solopo_nemo.planning.sizes.Sizes`.
"""

from __future__ import annotations

from solopo_nemo.planning import head_steps
from solopo_nemo.planning.parameters import StageParameters
from solopo_nemo.planning.run import Run
from solopo_nemo.planning.sizes import Sizes
from solopo_nemo.planning.timeline import Step, Tensor, again, checkpointed

RUNTIME = 30 * 2**20
"""Library code that the first step loads, and small blocks that the C library keeps: 12 to 54 MiB were measured."""


def inputs(z: Sizes) -> tuple[Tensor, ...]:
    """Token ids and positions; the rotary table of the rank's own tokens, fp32; the libraries' own."""
    runtime = Tensor("libraries and heap", RUNTIME, "measured")
    return (*z.tensors(token_ids="T * 2 * 8", rotary_table="T * d * 4"), runtime)


def forward(z: Sizes, checkpoint_attention: bool) -> list[Step]:
    """From ``layer input`` to ``layer output``; what is alive afterwards, but for the output, is saved for backward."""
    attention = _attention(z)
    return [
        Step("norm and qkv projection", z.tensors(mixed_qkv="T * (a + 2 * k) * e"), _gathered_norm(z)),
        Step(
            "rotary embedding",
            z.tensors(q="T * a * e", k="T * k * e"),
            z.tensors(q_terms="T * a * 4"),
        ),
        Step("values", z.tensors(v="T * k * e"), drops=("mixed qkv",)),
        checkpointed(attention, "attention out") if checkpoint_attention else attention,
        Step("output projection", z.tensors(projected="T * h / s * e"), _whole(z)),
        Step("attention residual", z.tensors(hidden="T * h / s * e"), drops=("projected",)),
        Step("norm and fc1", z.tensors(fc1_out="T * 2 * f * e"), _gathered_norm(z)),
        Step("swiglu and fc2", z.tensors(fc2_out="T * h / s * e"), _whole(z)),
        Step("mlp residual", z.tensors(layer_output="T * h / s * e"), drops=("fc2 out",)),
    ]


def backward(z: Sizes, checkpoint_attention: bool) -> list[Step]:
    """From ``gradient`` of the layer's output to that of its input; drops what :func:`forward` saved."""
    fc2 = z.tensors(fc2_weight_gradient="h * f * 4")
    return [
        Step("swiglu and fc2 backward", z.tensors(fc1_gradient="T * 2 * f * e"), (*_whole(z), *fc2), ("fc1 out",)),
        Step("norm and fc1 backward", works=_norm_backward(z, "2 * f"), drops=("fc1 gradient", "hidden")),
        Step(
            "output projection backward",
            z.tensors(attention_gradient="T * a * e"),
            (*_whole(z), *z.tensors(projection_weight_gradient="h * a * 4")),
        ),
        *([again(_attention(z), "attention out")] if checkpoint_attention else []),
        _attention_backward(z),
        Step(
            "rotary embedding backward",
            z.tensors(mixed_gradient="T * (a + 2 * k) * e"),
            z.tensors(turned_back="T * (a + k) * e"),
            ("qkv gradient",),
        ),
        Step(
            "norm and qkv projection backward",
            works=_norm_backward(z, "(a + 2 * k)"),
            drops=("mixed gradient", "layer input"),
        ),
    ]


def head(z: Sizes) -> list[Step]:
    """Final norm and response head, forward and backward."""
    return [
        Step("final norm", z.tensors(final_norm="T * h / s * e", final_unit="T * h / s * e", final_rstd="T / s * 4")),
        *head_steps.forward(z),
        Step("final norm released", drops=("final norm",)),
        *head_steps.backward(z),
        Step("row selection backward", z.tensors(norm_gradient="T * h / s * e")),
        Step("final norm backward", z.tensors(gradient="T * h / s * e"), z.tensors(norm_terms="2 * T * h / s * e")),
        Step("final norm done", drops=("norm gradient", "layer output", "final unit", "final rstd")),
    ]


def embedding_backward(z: Sizes) -> list[Step]:
    """The embedding's gradient is dense."""
    return [Step("embedding backward", works=(*z.tensors(embedding_gradient="v * h * e"), *_whole(z)))]


def optimizer(run: Run, stage: int) -> list[Step]:
    """Megatron's clipping makes a scaled copy of one gradient at a time; torch's fused AdamW works in place."""
    layout = run.layout
    parameters = StageParameters.of(run.shape, layout.tensor, layout.pipeline, stage)
    shard = max(parameters.embedding, parameters.head) / (layout.data * layout.context)
    return [Step("gradient clipping", works=(Tensor("scaled gradient", shard * 4, "P_largest / (DP * CP) * 4"),))]


def _whole(z: Sizes) -> tuple[Tensor, ...]:
    """Under sequence parallelism, the hidden states or gradients of all tokens."""
    return z.tensors(gathered="T * h * e") if z.s > 1 else ()


def _gathered_norm(z: Sizes) -> tuple[Tensor, ...]:
    return z.tensors(normalized="T * h / s * e", gathered="T * h * e") if z.s > 1 else ()


def _norm_backward(z: Sizes, width: str) -> tuple[Tensor, ...]:
    own = z.tensors(scattered="T * h / s * e") if z.s > 1 else ()
    common = {"input_gradient": "T * h * e", "weight_gradient": f"h * {width} * 4"}
    return (*_gathered_norm(z), *own, *z.tensors(**common))


def _attention(z: Sizes) -> Step:
    saved = z.tensors(attention_out="T * a * e", attention_lse="T * n * 4")
    if z.c == 1:
        return Step("core attention", saved, z.tensors(part_out="S * a * e"))
    if z.mode == "p2p":
        ring = z.tensors(ring_buffers="2 * T * 2 * k * e", step_out="S / c * a * e")
        return Step("core attention (p2p)", (*saved, *z.tensors(kv="T * 2 * k * e")), ring, ("k", "v"))
    exchanged = z.tensors(exchanged_qkv="T * (a + 2 * k) * e", exchanged_out="T * a * e")
    return Step(
        "core attention (a2a)", (*saved, *exchanged), z.tensors(send_buffers="T * (a + 2 * k) * e"), ("q", "k", "v")
    )


def _attention_backward(z: Sizes) -> Step:
    """Drops what :func:`_attention` made, and its inputs where they were saved."""
    gradients = z.tensors(qkv_gradient="T * (a + 2 * k) * e")
    done: tuple[str, ...] = ("attention out", "attention lse", "attention gradient")
    if z.c == 1:
        return Step("core attention backward", gradients, z.tensors(part="S * (a + 2 * k) * e"), (*done, "q", "k", "v"))
    if z.mode == "p2p":
        ring = {"ring_buffers": "4 * T * 2 * k * e", "step_gradients": "S / c * (a + 2 * k) * e"}
        return Step("core attention backward (p2p)", gradients, z.tensors(**ring), (*done, "q", "kv"))
    exchange = {"exchanged_gradient": "T * a * e", "exchanged_qkv_gradient": "T * (a + 2 * k) * e"}
    done += ("exchanged qkv", "exchanged out")
    return Step("core attention backward (a2a)", gradients, z.tensors(**exchange), done)
