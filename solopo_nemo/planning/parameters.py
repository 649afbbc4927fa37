"""Parameter counts of one rank."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from solopo_nemo.families.family import LINEARS, MODULES
from solopo_nemo.planning.shape import ModelShape

MLP = frozenset(name for name, path in MODULES.items() if path.startswith("mlp."))
"""Names of the modules of an MLP, which each expert has."""


@dataclass(frozen=True)
class LayerParameters:
    """Parameters of one transformer layer on one of ``t`` tensor-parallel ranks.

    Symbols: ``h`` hidden size, ``f`` feed-forward size, ``a = heads * head_dim``, ``k = kv_heads * head_dim``.

    Attributes:
        matrices: ``(a + 2k) * h / t`` of qkv, plus ``(a + 2k) / t`` for a bias; ``a * h / t`` of proj; without experts
            ``3 * f * h / t`` of gate, up and down projection.
        replicated: norms, ``2h``, or ``4h`` with norms behind attention and MLP, plus ``2 * head_dim`` for normalized
            queries and keys; with experts the router, ``experts * h``.
        experts: ``experts * 3 * size * h / x`` with experts, on one of ``x`` ranks that they are split over.
    """

    matrices: int
    replicated: int
    experts: int

    @classmethod
    def of(cls, shape: ModelShape, tensor: int = 1, expert_ranks: int = 0) -> LayerParameters:
        """The parameters of one layer of a model: with experts on one of ``expert_ranks`` ranks, or with one MLP."""
        h, a, k, experts = shape.hidden_size, shape.query_size, shape.kv_size, shape.experts if expert_ranks else None
        f = 0 if experts else shape.intermediate_size
        norms = len(shape.family.norms) * h + 2 * shape.head_dim * shape.family.qk_norm
        return cls(
            matrices=((a + 2 * k) * (h + shape.family.qkv_bias) + a * h + 3 * f * h) // tensor,
            replicated=norms + (experts.count * h if experts else 0),
            experts=experts.count * 3 * experts.size * h // expert_ranks if experts else 0,
        )

    @property
    def total(self) -> int:
        """The sum of all parts."""
        return self.matrices + self.replicated + self.experts


def adapter_parameters(shape: ModelShape, rank: int, targets: Collection[str], tensor: int = 1) -> int:
    """Parameters of the adapters in one layer on one of ``t`` tensor-parallel ranks, without those of experts.

    ``rank * (in + out / t)`` for a module of a column-parallel layer, ``rank * (in / t + out)`` of a row-parallel one.
    """
    targets = {*targets} - MLP if shape.experts else targets
    h, f, a, k = shape.hidden_size, shape.intermediate_size, shape.query_size, shape.kv_size
    split = {"q_proj": a, "k_proj": k, "v_proj": k, "o_proj": a, "gate_proj": f, "up_proj": f, "down_proj": f}
    return sum(rank * (h + split[module] // tensor) for module in targets)


def expert_adapter_parameters(shape: ModelShape, rank: int, targets: Collection[str], expert: int, split: int) -> int:
    """Parameters of the adapters of one layer's experts on one of ``expert * split`` ranks.

    ``rank * (h + size / split)`` for each of ``count / expert`` experts and each module.
    """
    if shape.experts is None:
        return 0
    one = rank * (shape.hidden_size + shape.experts.size // split)
    return shape.experts.count // expert * len({*targets} & MLP) * one


def fused_adapter_weights(shape: ModelShape, rank: int, targets: Collection[str]) -> int:
    """Elements that the adapters of one layer multiply with each token: ``rank * modules * (in + out)`` a linear layer.

    A linear layer of several modules multiplies with the zeros of its fused ``B`` too (``core/lora.py``). With experts
    those of each that a token is sent to.
    """
    h, f, passes = shape.hidden_size, shape.intermediate_size, 1
    if shape.experts:
        f, passes = shape.experts.size, shape.experts.chosen
    widths = (h + shape.query_size + 2 * shape.kv_size, shape.query_size + h, passes * (h + 2 * f), passes * (f + h))
    modules = [[path.split(".")[1] for path in paths] for paths in LINEARS.values()]
    return sum(rank * len({*names} & {*targets}) * width for names, width in zip(modules, widths, strict=True))


@dataclass(frozen=True)
class StageParameters:
    """Parameters of one pipeline stage on one tensor-parallel rank.

    A stage has ``layers / pipeline`` layers. The last one also has the final norm, and the head unless it is tied to an
    embedding on the same stage.

    Attributes:
        total: all of them.
        experts: those of its experts, on one of the ranks that they are split over.
        embedding: ``v * h / t`` on the first stage, with a vocabulary of ``v``, else 0.
    """

    total: int
    experts: int
    embedding: int

    @classmethod
    def of(
        cls, shape: ModelShape, tensor: int = 1, pipeline: int = 1, stage: int = 0, expert_ranks: int = 1
    ) -> StageParameters:
        """The parameters of stage ``stage`` of ``pipeline``.

        The vocabulary is split evenly and not padded: the importers keep the model's vocabulary size, and the recipes
        refuse a tensor-parallel size that does not divide it.
        """
        first, last = stage == 0, stage == pipeline - 1
        vocabulary, count = shape.vocab_size * shape.hidden_size // tensor, shape.num_hidden_layers // pipeline
        mixed = sum(shape.experts.layers[stage * count :][:count]) if shape.experts else 0
        layer, of_experts = LayerParameters.of(shape, tensor), LayerParameters.of(shape, tensor, expert_ranks)
        layers, embedding = layer.total * (count - mixed) + of_experts.total * mixed, vocabulary * first
        head = vocabulary * (last and not (first and shape.tie_word_embeddings))
        return cls(layers + embedding + head + shape.hidden_size * last, of_experts.experts * mixed, embedding)
