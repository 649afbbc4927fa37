"""The symbols of the memory formulas, for one rank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from solopo_nemo.planning.layout import Layout, Share
from solopo_nemo.planning.shape import ModelShape
from solopo_nemo.planning.timeline import Tensor


class Size(float):
    """A number with its formula. For example, ``Size(6, "T") * 2`` has the value 12 and the formula ``T * 2``.

    Attributes:
        formula: formula in the symbols of :class:`Sizes`.
    """

    formula: str

    def __new__(cls, value: float, formula: str) -> Size:
        """Create a number with a formula."""
        size = super().__new__(cls, value)
        size.formula = formula
        return size

    def _joined(self, sign: str, other: Any, value: float) -> Size:
        terms = [
            _text(term) if sign == "+" or " + " not in _text(term) else f"({_text(term)})" for term in (self, other)
        ]
        return Size(value, f" {sign} ".join(terms))

    def __add__(self, other: float) -> Size:
        return self._joined("+", other, float(self) + float(other))

    def __mul__(self, other: float) -> Size:
        return self._joined("*", other, float(self) * float(other))

    def __rmul__(self, other: float) -> Size:
        return Size(other, _text(other))._joined("*", self, float(other) * float(self))

    def __sub__(self, other: float) -> Size:
        return Size(float(self) - float(other), f"({self.formula} - {_text(other)})")

    def __truediv__(self, other: float) -> Size:
        return self._joined("/", other, float(self) / float(other))


def _text(number: float) -> str:
    return number.formula if isinstance(number, Size) else f"{number:g}"


@dataclass(frozen=True)
class Sizes:
    """The sizes that determine the tensors of a micro-batch on one rank.

    Attributes:
        T: local tokens of the micro-batch.
        s: sequence-parallel size: ``t`` under sequence parallelism, else 1.
        h: hidden size.
        f: feed-forward size divided by t.
        a: ``heads * head_dim`` divided by t.
        k: ``kv_heads * head_dim`` divided by t.
        d: head dimension.
        n: attention heads divided by t.
        v: vocabulary size divided by t.
        R: positions that the head scores on this rank.
        C: positions that the head scores in one chunk.
        S: tokens of the longest sequence over all context-parallel ranks.
        t, c: tensor- and context-parallel size.
        e: bytes of a parameter or activation element (2 in bf16, 4 in fp32).
        mode: context-parallel communication.
    """

    T: Size
    s: Size
    h: Size
    f: Size
    a: Size
    k: Size
    d: Size
    n: Size
    v: Size
    R: Size
    C: Size
    S: Size
    t: Size
    c: Size
    e: Size
    mode: str

    @classmethod
    def of(cls, shape: ModelShape, layout: Layout, share: Share, logits_chunk_size: int, itemsize: int) -> Sizes:
        """The sizes of one rank of a layout."""
        t = layout.tensor
        numbers = {
            "T": share.tokens,
            "s": t if layout.sequence else 1,
            "h": shape.hidden_size,
            "f": shape.intermediate_size // t,
            "a": shape.query_size // t,
            "k": shape.kv_size // t,
            "d": shape.head_dim,
            "n": shape.num_attention_heads // t,
            "v": shape.vocab_size // t,
            "R": share.rows,
            "C": min(logits_chunk_size, share.rows),
            "S": share.longest,
            "t": t,
            "c": layout.context,
            "e": itemsize,
        }
        return cls(**{name: Size(value, name) for name, value in numbers.items()}, mode=layout.cp_comm_type)

    def tensors(self, **sizes: Size) -> tuple[Tensor, ...]:
        """Tensors from names and sizes in bytes. Underscores in the names become spaces."""
        return tuple(Tensor(name.replace("_", " "), float(size), size.formula) for name, size in sizes.items())
