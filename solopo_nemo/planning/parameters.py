"""Parameter counts of one rank."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from solopo_nemo.families.family import LINEARS
from solopo_nemo.planning.shape import ModelShape


@dataclass(frozen=True)
class LayerParameters:
    """Parameters of one transformer layer on one of ``t`` tensor-parallel ranks.

    Symbols: ``h`` hidden size, ``f`` feed-forward size, ``a = heads * head_dim``, ``k = kv_heads * head_dim``.

    Attributes:
        qkv: ``(a + 2k) * h / t``, plus ``(a + 2k) / t`` for a bias.
        proj: ``a * h / t``.
        fc1: ``2 * f * h / t`` (gate and up projection).
        fc2: ``f * h / t``.
        norms: ``2h``, plus ``2 * head_dim`` for normalized queries and keys; replicated on every rank.
    """

    qkv: int
    proj: int
    fc1: int
    fc2: int
    norms: int

    @classmethod
    def of(cls, shape: ModelShape, tensor: int = 1) -> LayerParameters:
        """The parameters of one layer of a model."""
        h, f = shape.hidden_size, shape.intermediate_size
        a, k = shape.query_size, shape.kv_size
        return cls(
            qkv=(a + 2 * k) * (h + shape.qkv_bias) // tensor,
            proj=a * h // tensor,
            fc1=2 * f * h // tensor,
            fc2=f * h // tensor,
            norms=2 * h + 2 * shape.head_dim * shape.qk_norm,
        )

    @property
    def total(self) -> int:
        """The sum of all parts."""
        return self.qkv + self.proj + self.fc1 + self.fc2 + self.norms


def adapter_parameters(shape: ModelShape, rank: int, targets: Collection[str], tensor: int = 1) -> int:
    """Parameters of the adapters in one layer on one of ``t`` tensor-parallel ranks.

    ``rank * (in + out / t)`` for a module of a column-parallel layer, ``rank * (in / t + out)`` of a row-parallel one.
    """
    h, f, a, k = shape.hidden_size, shape.intermediate_size, shape.query_size, shape.kv_size
    split = {"q_proj": a, "k_proj": k, "v_proj": k, "o_proj": a, "gate_proj": f, "up_proj": f, "down_proj": f}
    return sum(rank * (h + split[module] // tensor) for module in targets)


def fused_adapter_weights(shape: ModelShape, rank: int, targets: Collection[str]) -> int:
    """Elements that the adapters of one layer multiply with each token: ``rank * modules * (in + out)`` a linear layer.

    A linear layer of several modules multiplies with the zeros of its fused ``B`` too (``core/lora.py``).
    """
    h, f = shape.hidden_size, shape.intermediate_size
    widths = (h + shape.query_size + 2 * shape.kv_size, shape.query_size + h, h + 2 * f, f + h)
    modules = [[path.split(".")[1] for path in paths] for paths in LINEARS.values()]
    return sum(rank * len({*names} & {*targets}) * width for names, width in zip(modules, widths, strict=True))


@dataclass(frozen=True)
class StageParameters:
    """Parameters of one pipeline stage on one tensor-parallel rank (``v`` vocabulary).

    Attributes:
        layers: parameters of its ``layers / pipeline`` layers.
        embedding: ``v * h / t`` on the first stage, else 0.
        head: ``v * h / t`` on the last stage, else 0; also 0 if it is tied to an embedding on the same stage.
        final_norm: ``h`` on the last stage, else 0.
    """

    layers: int
    embedding: int
    head: int
    final_norm: int

    @classmethod
    def of(cls, shape: ModelShape, tensor: int = 1, pipeline: int = 1, stage: int = 0) -> StageParameters:
        """The parameters of stage ``stage`` of ``pipeline``.

        The vocabulary is split evenly and not padded: the importers keep the model's vocabulary size, and the recipes
        refuse a tensor-parallel size that does not divide it.
        """
        first, last = stage == 0, stage == pipeline - 1
        vocabulary = shape.vocab_size * shape.hidden_size // tensor
        return cls(
            layers=LayerParameters.of(shape, tensor).total * (shape.num_hidden_layers // pipeline),
            embedding=vocabulary * first,
            head=vocabulary * (last and not (first and shape.tie_word_embeddings)),
            final_norm=shape.hidden_size * last,
        )

    @property
    def total(self) -> int:
        """The sum of all parts."""
        return self.layers + self.embedding + self.head + self.final_norm
