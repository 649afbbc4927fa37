"""Memory model of a transformer layer on a GPU: Transformer Engine with Megatron-core, bf16, flash attention.

The model follows the source of Transformer Engine 2.8 (``layernorm_linear.py``, ``linear.py``,
``context_parallel.py``; packed ``a2a`` of 2.10) and of Megatron-core 0.15.3 with SwiGLU, dropout-add and
weight-gradient fusion. Symbols: :class:`solopo_nemo.planning.sizes.Sizes`.
"""

from __future__ import annotations

from solopo_nemo.planning import head_steps
from solopo_nemo.planning.run import Run
from solopo_nemo.planning.sizes import Sizes
from solopo_nemo.planning.timeline import Step, Tensor

# "gradient" is the gradient of the residual stream in all steps


def forward(z: Sizes, selective: bool) -> list[Step]:
    """Steps from ``layer input`` to ``layer output``. Tensors alive afterwards, except the output, are saved.

    Args:
        z: sizes.
        selective: True if the MLP saves only its input (``model.recompute=selective``).
    """
    gathered = {"gathered": z.T * z.h * z.e} if z.s > 1 else {}
    return [
        Step(
            "norm and qkv projection",
            z.tensors(qkv_norm=z.T * z.h / z.s * z.e, qkv_rstd=z.T / z.s * 4, mixed_qkv=z.T * (z.a + 2 * z.k) * z.e),
            z.tensors(**gathered),
        ),
        # the fused kernel saves only the rotary table, which all layers share
        Step(
            "rotary embedding",
            z.tensors(q=z.T * z.a * z.e, k=z.T * z.k * z.e, v=z.T * z.k * z.e),
            drops=("mixed qkv",),
        ),
        _attention(z),
        Step("output projection", z.tensors(projected=z.T * z.h / z.s * z.e), z.tensors(**gathered)),
        Step("attention residual", z.tensors(hidden=z.T * z.h / z.s * z.e), drops=("projected",)),
        *_mlp(z),
        # an upper bound: all tensors count at the same time, but Megatron frees some of them earlier
        *([Step("mlp checkpoint", drops=("fc1 norm", "fc1 rstd", "fc1 out", "fc2 input"))] if selective else []),
        Step("mlp residual", z.tensors(layer_output=z.T * z.h / z.s * z.e), drops=("fc2 out",)),
    ]


def backward(z: Sizes, selective: bool) -> list[Step]:
    """Steps from the ``gradient`` of the layer output to that of its input. They free what :func:`forward` saved."""
    gathered = {"gathered": z.T * z.h * z.e} if z.s > 1 else {}
    norm = gathered | {
        "norm_gradient": z.T * z.h * z.e,
        "input_gradient": z.T * z.h / z.s * z.e,
        "sum": z.T * z.h / z.s * z.e,
    }
    return [
        *([*_mlp(z), Step("mlp again", drops=("fc2 out",))] if selective else []),
        Step("fc2 backward", z.tensors(fc2_input_gradient=z.T * z.f * z.e), z.tensors(**gathered), ("fc2 input",)),
        Step(
            "swiglu backward",
            z.tensors(fc1_gradient=z.T * 2 * z.f * z.e),
            drops=("fc2 input gradient", "fc1 out"),
        ),
        Step(
            "norm and fc1 backward", works=z.tensors(**norm), drops=("fc1 gradient", "fc1 norm", "fc1 rstd", "hidden")
        ),
        Step("output projection backward", z.tensors(attention_gradient=z.T * z.a * z.e), z.tensors(**gathered)),
        _attention_backward(z),
        Step(
            "rotary embedding backward",
            z.tensors(mixed_gradient=z.T * (z.a + 2 * z.k) * z.e),
            z.tensors(rotated_gradient=z.T * (z.a + z.k) * z.e),
            ("qkv gradient",),
        ),
        Step(
            "norm and qkv projection backward",
            works=z.tensors(**norm),
            drops=("mixed gradient", "qkv norm", "qkv rstd", "layer input"),
        ),
    ]


def _mlp(z: Sizes) -> list[Step]:
    """From ``hidden`` to ``fc2 out``."""
    gathered = {"gathered": z.T * z.h * z.e} if z.s > 1 else {}
    return [
        Step(
            "norm and fc1",
            z.tensors(fc1_norm=z.T * z.h / z.s * z.e, fc1_rstd=z.T / z.s * 4, fc1_out=z.T * 2 * z.f * z.e),
            z.tensors(**gathered),
        ),
        Step("swiglu", z.tensors(fc2_input=z.T * z.f * z.e)),
        Step("fc2", z.tensors(fc2_out=z.T * z.h / z.s * z.e), z.tensors(**gathered)),
    ]


def _attention(z: Sizes) -> Step:
    saved = z.tensors(attention_out=z.T * z.a * z.e, attention_lse=z.T * z.n * 4)
    if z.c == 1:
        return Step("core attention", saved)
    if z.mode == "p2p":  # K/V and partial output of every ring step stay alive until the outputs are merged
        ring = {
            "ring_kv": (z.c - 1) * z.T * 2 * z.k * z.e,
            "partial_outputs": z.c * z.T * z.a * z.e,
            "partial_lse": z.c * z.T * z.n * 4,
        }
        kv = z.tensors(last_kv=z.T * 2 * z.k * z.e)
        return Step("core attention (p2p)", (*saved, *kv), z.tensors(**ring), ("k", "v"))
    # a2a: the saved tensors have all positions and heads / c; the output is saved again for the projection
    exchanged = z.tensors(exchanged_qkv=z.T * (z.a + 2 * z.k) * z.e, exchanged_out=z.T * z.a * z.e)
    buffers = z.tensors(send_buffers=z.T * (z.a + 2 * z.k) * z.e)
    return Step("core attention (a2a)", (*saved, *exchanged), buffers, ("q", "k", "v"))


def _attention_backward(z: Sizes) -> Step:
    """The backward step of :func:`_attention`. It frees the saved tensors and inputs."""
    kernel = {"dq_accumulator": z.T * z.a * 4, "softmax_sum": z.T * z.n * 4}
    gradients = z.tensors(qkv_gradient=z.T * (z.a + 2 * z.k) * z.e)
    done: tuple[str, ...] = ("attention out", "attention lse", "attention gradient")
    if z.c == 1:
        return Step("core attention backward", gradients, z.tensors(**kernel), (*done, "q", "k", "v"))
    if z.mode == "p2p":
        ring = kernel | {"ring_buffers": 2 * 2 * z.T * 2 * z.k * z.e, "step_gradients": z.T * (z.a + 2 * z.k) * z.e}
        return Step("core attention backward (p2p)", gradients, z.tensors(**ring), (*done, "q", "last kv"))
    exchange = kernel | {"exchanged_gradient": z.T * z.a * z.e, "exchanged_qkv_gradient": z.T * (z.a + 2 * z.k) * z.e}
    done += ("exchanged qkv", "exchanged out")
    return Step("core attention backward (a2a)", gradients, z.tensors(**exchange), done)


def inputs(z: Sizes) -> tuple[Tensor, ...]:
    """Token ids and positions, and the fp32 rotary table, which has the full length on every rank."""
    return z.tensors(token_ids=z.T * 2 * 8, rotary_table=z.S * z.d * 4)


def head(z: Sizes) -> list[Step]:
    """Steps of the final norm and the response head, forward and backward."""
    return [
        Step("final norm", z.tensors(final_norm=z.T * z.h / z.s * z.e, final_rstd=z.T / z.s * 4)),
        *head_steps.forward(z, gpu=True),
        Step("final norm released", drops=("final norm",)),
        *head_steps.backward(z, gpu=True),
        Step(
            "final norm backward", z.tensors(gradient=z.T * z.h / z.s * z.e), z.tensors(selected=z.T * z.h / z.s * z.e)
        ),
        Step("final norm done", drops=("layer output", "final rstd")),
    ]


def embedding_backward(z: Sizes) -> list[Step]:
    """Steps of the embedding's backward pass. The gradient is dense."""
    return [Step("embedding backward", works=z.tensors(embedding_gradient=z.v * z.h * z.e, gathered=z.T * z.h * z.e))]


def optimizer(run: Run, stage: int) -> list[Step]:
    """No steps: FusedAdam works in place, on shards that are views of the gradient buffer."""
    return []
