"""A training step as formulas: what a rank holds at the moments that may be its highest, and what it sends.

The formulas are read from dry runs of tiny models, one for each :class:`Kind` of step, and lie in
``assets/traced_steps.json``. They hold for any size of the model, the micro-batch and the layout, so that the planner
computes a peak in microseconds, without Megatron. ``studies/benchmarks/traced_steps.py`` makes the file.

Symbols of the formulas, for one rank: ``T`` local tokens of a micro-batch, ``S`` tokens of the longest sequence over
all context-parallel ranks, ``R`` positions that the head scores, ``C`` of them at a time; ``h`` hidden size, ``d`` head
dimension; divided by ``t``: ``f`` feed-forward size, ``a`` and ``k`` channels of queries and keys, ``n`` and ``g``
their heads, ``v`` vocabulary; ``t``, ``c`` tensor- and context-parallel size; ``e`` bytes of an element; ``B`` and
``N`` tokens that a layer and a norm process at a time, ``W`` columns of the head; ``M`` layers between the first and
the last; ``E`` 1 with Transformer Engine's layers, else 0; on a GPU ``F`` 1 where the gradient of a layer's weight is
a tensor of its own: with torch's layers, unless the weight is frozen. With experts: ``q`` of them a token, ``X`` a
layer, ``x`` a rank, ``m`` channels of one, divided by ``u``, over how many ranks they are split; ``r`` rows of an
adapter.

PP: the traces have one stage. What its head or its embedding makes is left out where a stage has none, and each further
micro-batch in flight holds what layers and embedding save.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from solopo_nemo.planning.layout import Share
from solopo_nemo.planning.parameters import MLP
from solopo_nemo.planning.run import GPU, Run
from solopo_nemo.runtime.errors import require
from solopo_nemo.runtime.kernels import ENGINE
from solopo_nemo.runtime.paths import ASSETS

STEPS = ASSETS / "traced_steps.json"
SYMBOLS = "TSRChdfakngvtceBNWMEFqmxXur"
PARTS = ("saved by layers", "saved outside layers", "inputs", "temporaries")
BLOCK, GPU_BLOCK = 512, 16384
"""Tokens that a layer processes at a time; ``solopo_nemo.core.layers.blockwise`` has the same constants."""
TILE, GPU_TILE = 4096, 16384
"""Columns of a logits tile; ``solopo_nemo.core.head`` has the same constants. A test compares all four."""


@dataclass(frozen=True)
class Kind:
    """What decides which tensors a step makes; all else decides their sizes.

    Attributes:
        device: ``gpu`` or ``cpu``.
        recompute: ``none``, ``selective`` or ``full``.
        mode: communication of context parallelism; empty for one context rank.
        sequence: sequence parallelism.
        heads: queries and keys are normalized.
        behind: so are the outputs of attention and MLP, as in Gemma 3. Windows are as long as the sequences: those of a
            CPU hold a mask of a block more.
        experts: every layer has experts, which get equally many tokens each, as a dry run assumes.
        split: their channels are split over ranks.
        adapters: each of their modules has an adapter, and no weight is trained.
    """

    device: str
    recompute: str
    mode: str
    sequence: bool
    heads: bool
    behind: bool = False
    experts: bool = False
    split: bool = False
    adapters: bool = False

    @classmethod
    def of(cls, run: Run) -> Kind:
        """The kind of a run's step.

        Raises:
            UserError: of its steps there are no formulas.
        """
        require(is_known(run), NOT_KNOWN)
        layout, shape = run.layout, run.shape
        mode = layout.cp_comm_type if layout.context > 1 else ""
        experts = shape.experts is not None
        split, adapters = experts and layout.expert_split > 1, experts and bool(MLP & {*run.adapter_targets})
        norms = shape.family.qk_norm, shape.family.post_norms
        return cls(run.device, run.recompute, mode, layout.sequence, *norms, experts, split, adapters)

    def __str__(self) -> str:
        flags = ["sequence" * self.sequence, "norm of heads" * self.heads, "norms behind" * self.behind]
        flags += ["experts" * self.experts, "split" * self.split]
        flags += ["adapters" * self.adapters]
        return ", ".join(filter(None, (self.device, self.recompute, self.mode, *flags)))


NOT_KNOWN = (
    "the planner's formulas for models with experts are for GPUs, with experts in every layer, and adapters in none or "
    f"all of {', '.join(sorted(MLP))}, all channels of an expert on one rank; dry_run=true traces any run"
)


def is_known(run: Run) -> bool:
    """Whether there are formulas for a run's step."""
    experts = run.shape.experts
    if experts is None:
        return True
    adapted = MLP & {*run.adapter_targets}
    known = not adapted or (adapted == MLP and run.layout.expert_split == 1)
    return run.device == GPU and all(experts.layers) and known


class Sizes:
    """The values of :data:`SYMBOLS` for one rank of a run."""

    def __init__(self, run: Run) -> None:
        layout, shape, gpu = run.layout, run.shape, run.device == GPU
        share, t = Share.of(run.workload.policy, run.micro_batch, layout), layout.tensor
        vocabulary, heads, groups = (
            size // t for size in (shape.vocab_size, shape.num_attention_heads, shape.num_key_value_heads)
        )
        block, tile = (GPU_BLOCK, GPU_TILE) if gpu else (BLOCK, TILE)
        of_norm = share.tokens // (t if layout.sequence else 1)
        self.values = np.array(
            [
                *(share.tokens, share.longest, share.rows, min(run.logits_chunk_size, share.rows)),
                *(shape.hidden_size, shape.head_dim, shape.intermediate_size // t),
                *(heads * shape.head_dim, groups * shape.head_dim, heads, groups, vocabulary),
                *(t, layout.context, run.itemsize),
                *(min(block, share.tokens), min(block, of_norm), min(tile, vocabulary)),
                shape.num_hidden_layers // layout.pipeline - 2,
                run.layers == ENGINE,
                run.adapter_rank is None and run.layers != ENGINE,
                *_of_experts(run),
                run.adapter_rank or 1,
            ],
            dtype=float,
        )

    def __call__(self, formula: Formula) -> float:
        """The value of a formula."""
        return float(formula.factors @ self.terms(formula.powers))

    def terms(self, powers: Any) -> Any:
        """The values of products, whose exponents are the rows of ``powers``."""
        return np.prod(self.values**powers, axis=1)


def _of_experts(run: Run) -> tuple[int, ...]:
    experts, layout = run.shape.experts, run.layout
    if experts is None:  # in no formula of such a run
        return (1,) * 5
    split = layout.expert_split
    return experts.chosen, experts.size // split, experts.count // layout.expert, experts.count, split


class Formula:
    """A sum of products, such as ``2*T*h/t*e + 4*T*n``."""

    def __init__(self, text: str) -> None:
        pairs = [term.split("*", 1) for term in text.split(" + ")] if text else []
        self.terms = {term: float(factor) for factor, term in pairs}
        self.factors = np.array([*self.terms.values()])
        self.powers = np.array([*map(powers_of, self.terms)]).reshape(-1, len(SYMBOLS))

    def text(self, sizes: Sizes) -> str:
        """The formula without the terms that are 0."""
        values = sizes.terms(self.powers)
        shown = [(term, factor) for (term, factor), value in zip(self.terms.items(), values, strict=True) if value]
        return " + ".join(f"{factor:g}*{term}" for term, factor in shown)


def powers_of(term: str) -> tuple[int, ...]:
    """Exponents of :data:`SYMBOLS` in a product such as ``T*h/t*e``."""
    found = re.findall(r"([*/])(\w)", f"*{term}")
    return tuple(sum((sign == "*") - (sign == "/") for sign, name in found if name == symbol) for symbol in SYMBOLS)


class TracedStep:
    """The formulas of one kind of step.

    Attributes:
        saved: bytes that each layer saves for backward.
        outside: bytes that a micro-batch holds beside them until backward.
        sent: bytes that a micro-batch sends, by process group, in units of ``(ranks - 1) / ranks``.
        moments: name, and bytes by part, of moments that may be the highest.
    """

    def __init__(self, kind: Kind) -> None:
        texts, step = _stored()["texts"], _stored()["steps"][str(kind)]
        self.saved, self.outside = (Formula(texts[step[name]]) for name in ("saved", "outside"))
        self.sent = {group: Formula("" if place is None else texts[place]) for group, place in step["sent"].items()}
        self.moments = [
            (texts[name], {part: Formula(texts[i]) for part, i in zip(PARTS, places, strict=True) if i is not None})
            for name, *places in step["moments"]
        ]
        sums = [[formula.terms for formula in parts.values()] for _, parts in self.moments]
        terms = sorted({term for parts in sums for part in parts for term in part})
        self._factors = np.array([[sum(part.get(term, 0.0) for part in parts) for term in terms] for parts in sums])
        self._powers = np.array([*map(powers_of, terms)])

    def highest(self, sizes: Sizes, without: tuple[str, ...] = ()) -> tuple[str, Mapping[str, Formula]]:
        """The moment that holds most, leaving out those of some parts of the model: ``head``, ``embedding``."""
        totals = self._factors @ sizes.terms(self._powers)
        totals[[name.startswith(without) for name, _ in self.moments]] = 0.0
        return self.moments[int(totals.argmax())]


@cache
def traced_step(kind: Kind) -> TracedStep:
    """The formulas of a kind of step."""
    return TracedStep(kind)


@cache
def _stored() -> dict[str, Any]:
    return json.loads(STEPS.read_text())
