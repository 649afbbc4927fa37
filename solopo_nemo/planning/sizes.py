"""The symbols of the memory formulas, for one rank."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from types import CodeType

from solopo_nemo.planning.layout import Layout, Share
from solopo_nemo.planning.shape import ModelShape
from solopo_nemo.planning.timeline import Tensor


@dataclass(frozen=True)
class Sizes:
    """What the tensors of a micro-batch are sized by; widths are those of one tensor-parallel rank.

    Attributes:
        T: local tokens of the micro-batch.
        s: ranks that share the tokens between the tensor-parallel blocks: ``t`` under sequence parallelism, else 1.
        h: hidden size (whole).
        f: feed-forward width over t.
        a: ``heads * head_dim`` over t.
        k: ``kv_heads * head_dim`` over t.
        d: head_dim (whole).
        n: attention heads over t.
        v: vocabulary over t.
        R: rows that the head scores on this rank.
        C: rows that it scores at a time.
        S: tokens of the longest sequence over all context-parallel ranks.
        t, c: tensor- and context-parallel size.
        e: bytes of a parameter and of an activation (2 in bf16, 4 in fp32).
        mode: context-parallel communication.
    """

    T: int
    s: int
    h: int
    f: int
    a: int
    k: int
    d: int
    n: int
    v: int
    R: int
    C: int
    S: int
    t: int
    c: int
    e: int
    mode: str

    @classmethod
    def of(cls, shape: ModelShape, layout: Layout, share: Share, logits_chunk_size: int, itemsize: int) -> Sizes:
        """Of one rank of a layout."""
        t = layout.tensor
        return cls(
            T=share.tokens,
            s=t if layout.sequence else 1,
            h=shape.hidden_size,
            f=shape.intermediate_size // t,
            a=shape.query_size // t,
            k=shape.kv_size // t,
            d=shape.head_dim,
            n=shape.num_attention_heads // t,
            v=shape.vocab_size // t,
            R=share.rows,
            C=min(logits_chunk_size, share.rows),
            S=share.longest,
            t=t,
            c=layout.context,
            e=itemsize,
            mode=layout.cp_comm_type,
        )

    def tensor(self, name: str, formula: str) -> Tensor:
        """A tensor whose bytes are a formula in these symbols, e.g. ``T * h / s * e``."""
        return Tensor(name, float(eval(_compiled(formula), _FUNCTIONS, vars(self))), formula)

    def tensors(self, **formulas: str) -> tuple[Tensor, ...]:
        """Several tensors, by name (underscores read as spaces)."""
        return tuple(self.tensor(name.replace("_", " "), formula) for name, formula in formulas.items())


_FUNCTIONS = {"__builtins__": {"min": min, "max": max}}


@cache
def _compiled(formula: str) -> CodeType:
    return compile(formula, formula, "eval")
