"""Memory model of a transformer layer on a CPU, i.e. of the modules in ``solopo_nemo/core/layers``.

Names and order are those of :mod:`solopo_nemo.planning.gpu_layers`, with two differences. Norms and activations are
recomputed block by block instead of saved. Weight gradients are separate tensors until DDP adds them to its buffer.
Symbols: :class:`solopo_nemo.planning.sizes.Sizes`.
"""

from __future__ import annotations

from solopo_nemo.planning import head_steps
from solopo_nemo.planning.parameters import StageParameters
from solopo_nemo.planning.run import Run
from solopo_nemo.planning.sizes import Size, Sizes
from solopo_nemo.planning.timeline import Step, Tensor, again, checkpointed

RUNTIME = 30 * 2**20
"""Library code that the first step loads, and small blocks that malloc retains. Measurements: 12 to 54 MiB."""


def inputs(z: Sizes) -> tuple[Tensor, ...]:
    """Token ids and positions, the fp32 rotary table of the local tokens, and the libraries."""
    runtime = Tensor("libraries and heap", RUNTIME, "measured")
    return (*z.tensors(token_ids=z.T * 2 * 8, rotary_table=z.T * z.d * 4), runtime)


def forward(z: Sizes, selective: bool) -> list[Step]:
    """Steps from ``layer input`` to ``layer output``. Tensors alive afterwards, except the output, are saved."""
    attention = _attention(z)
    return [
        Step("norm and qkv projection", z.tensors(mixed_qkv=z.T * (z.a + 2 * z.k) * z.e), _gathered_norm(z)),
        Step(
            "rotary embedding",
            z.tensors(q=z.T * z.a * z.e, k=z.T * z.k * z.e),
            z.tensors(q_terms=z.T * z.a * 4),
        ),
        Step("values", z.tensors(v=z.T * z.k * z.e), drops=("mixed qkv",)),
        checkpointed(attention, "attention out") if selective else attention,
        Step("output projection", z.tensors(projected=z.T * z.h / z.s * z.e), _whole(z)),
        Step("attention residual", z.tensors(hidden=z.T * z.h / z.s * z.e), drops=("projected",)),
        Step("norm and fc1", z.tensors(fc1_out=z.T * 2 * z.f * z.e), _gathered_norm(z)),
        Step("swiglu and fc2", z.tensors(fc2_out=z.T * z.h / z.s * z.e), _whole(z)),
        Step("mlp residual", z.tensors(layer_output=z.T * z.h / z.s * z.e), drops=("fc2 out",)),
    ]


def backward(z: Sizes, selective: bool) -> list[Step]:
    """Steps from the ``gradient`` of the layer output to that of its input. They free what :func:`forward` saved."""
    fc2 = z.tensors(fc2_weight_gradient=z.h * z.f * 4)
    return [
        Step("swiglu and fc2 backward", z.tensors(fc1_gradient=z.T * 2 * z.f * z.e), (*_whole(z), *fc2), ("fc1 out",)),
        Step("norm and fc1 backward", works=_norm_backward(z, z.f * 2), drops=("fc1 gradient", "hidden")),
        Step(
            "output projection backward",
            z.tensors(attention_gradient=z.T * z.a * z.e),
            (*_whole(z), *z.tensors(projection_weight_gradient=z.h * z.a * 4)),
        ),
        *([again(_attention(z), "attention out")] if selective else []),
        _attention_backward(z),
        Step(
            "rotary embedding backward",
            z.tensors(mixed_gradient=z.T * (z.a + 2 * z.k) * z.e),
            z.tensors(turned_back=z.T * (z.a + z.k) * z.e),
            ("qkv gradient",),
        ),
        Step(
            "norm and qkv projection backward",
            works=_norm_backward(z, z.a + z.k * 2),
            drops=("mixed gradient", "layer input"),
        ),
    ]


def head(z: Sizes) -> list[Step]:
    """Steps of the final norm and the response head, forward and backward."""
    return [
        Step(
            "final norm",
            z.tensors(final_norm=z.T * z.h / z.s * z.e, final_unit=z.T * z.h / z.s * z.e, final_rstd=z.T / z.s * 4),
        ),
        *head_steps.forward(z),
        Step("final norm released", drops=("final norm",)),
        *head_steps.backward(z),
        Step("row selection backward", z.tensors(norm_gradient=z.T * z.h / z.s * z.e)),
        Step(
            "final norm backward",
            z.tensors(gradient=z.T * z.h / z.s * z.e),
            z.tensors(norm_terms=2 * z.T * z.h / z.s * z.e),
        ),
        Step("final norm done", drops=("norm gradient", "layer output", "final unit", "final rstd")),
    ]


def embedding_backward(z: Sizes) -> list[Step]:
    """Steps of the embedding's backward pass. The gradient is dense."""
    return [Step("embedding backward", works=(*z.tensors(embedding_gradient=z.v * z.h * z.e), *_whole(z)))]


def optimizer(run: Run, stage: int) -> list[Step]:
    """Steps of the optimizer. Megatron's clipping copies one gradient at a time; torch's fused AdamW is in place."""
    layout = run.layout
    parameters = StageParameters.of(run.shape, layout.tensor, layout.pipeline, stage)
    largest = max(parameters.embedding, parameters.head)
    if run.adapter_rank is not None:
        largest = run.adapter_rank * run.shape.intermediate_size
    shard = largest / (layout.data * layout.context)
    return [Step("gradient clipping", works=(Tensor("scaled gradient", shard * 4, "P_largest / (DP * CP) * 4"),))]


def _whole(z: Sizes) -> tuple[Tensor, ...]:
    """The gathered hidden states or gradients of all tokens, under sequence parallelism."""
    return z.tensors(gathered=z.T * z.h * z.e) if z.s > 1 else ()


def _gathered_norm(z: Sizes) -> tuple[Tensor, ...]:
    return z.tensors(normalized=z.T * z.h / z.s * z.e, gathered=z.T * z.h * z.e) if z.s > 1 else ()


def _norm_backward(z: Sizes, width: Size) -> tuple[Tensor, ...]:
    own = z.tensors(scattered=z.T * z.h / z.s * z.e) if z.s > 1 else ()
    common = {"input_gradient": z.T * z.h * z.e, "weight_gradient": z.h * width * 4}
    return (*_gathered_norm(z), *own, *z.tensors(**common))


def _attention(z: Sizes) -> Step:
    saved = z.tensors(attention_out=z.T * z.a * z.e, attention_lse=z.T * z.n * 4)
    if z.c == 1:
        return Step("core attention", saved, z.tensors(part_out=z.S * z.a * z.e))
    if z.mode == "p2p":
        ring = z.tensors(ring_buffers=2 * z.T * 2 * z.k * z.e, step_out=z.S / z.c * z.a * z.e)
        return Step("core attention (p2p)", (*saved, *z.tensors(kv=z.T * 2 * z.k * z.e)), ring, ("k", "v"))
    exchanged = z.tensors(exchanged_qkv=z.T * (z.a + 2 * z.k) * z.e, exchanged_out=z.T * z.a * z.e)
    return Step(
        "core attention (a2a)",
        (*saved, *exchanged),
        z.tensors(send_buffers=z.T * (z.a + 2 * z.k) * z.e),
        ("q", "k", "v"),
    )


def _attention_backward(z: Sizes) -> Step:
    """The backward step of :func:`_attention`. It frees the saved tensors and inputs."""
    gradients = z.tensors(qkv_gradient=z.T * (z.a + 2 * z.k) * z.e)
    done: tuple[str, ...] = ("attention out", "attention lse", "attention gradient")
    if z.c == 1:
        return Step(
            "core attention backward", gradients, z.tensors(part=z.S * (z.a + 2 * z.k) * z.e), (*done, "q", "k", "v")
        )
    if z.mode == "p2p":
        ring = {"ring_buffers": 4 * z.T * 2 * z.k * z.e, "step_gradients": z.S / z.c * (z.a + 2 * z.k) * z.e}
        return Step("core attention backward (p2p)", gradients, z.tensors(**ring), (*done, "q", "kv"))
    exchange = {"exchanged_gradient": z.T * z.a * z.e, "exchanged_qkv_gradient": z.T * (z.a + 2 * z.k) * z.e}
    done += ("exchanged qkv", "exchanged out")
    return Step("core attention backward (a2a)", gradients, z.tensors(**exchange), done)
