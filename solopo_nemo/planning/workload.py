"""The workload of one sample: its sequences, their lengths and the scored positions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from solopo_nemo.objectives import Objective


@dataclass(frozen=True)
class Lengths:
    """Lengths of a typical sample in tokens.

    Attributes:
        long, short: tokens of the two prompts.
        response: tokens of each response, its end token included.
        rejected: rejected responses.
    """

    long: int
    short: int
    response: int = 128
    rejected: int = 1

    def __post_init__(self) -> None:
        for name in ("long", "short", "response", "rejected"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class Sequence:
    """One sequence of a sample, as the model sees it. A sample has one for each of its rejected responses.

    Attributes:
        name: name in ``objective.sequences``.
        inputs: input tokens, ``prompt + response - 1``; the last token is a label only.
        rows: positions that the head scores, one per response token.
    """

    name: str
    inputs: int
    rows: int


@dataclass(frozen=True)
class Workload:
    """The sequences of one sample.

    Attributes:
        policy: sequences that the policy runs forward and backward, packed together.
        reference: sequences that the frozen reference policy scores, forward only.
    """

    policy: tuple[Sequence, ...]
    reference: tuple[Sequence, ...] = ()

    @classmethod
    def of(cls, objective: Objective, lengths: Lengths) -> Workload:
        """The sequences of an objective at given lengths."""
        return cls(_sequences(objective.sequences, lengths), _sequences(objective.reference_sequences, lengths))


def _sequences(names: Iterable[str], lengths: Lengths) -> tuple[Sequence, ...]:
    from solopo_nemo.objectives import SEQUENCES

    def one(name: str) -> Sequence:
        prompt = lengths.long if SEQUENCES[name].prompt == "long" else lengths.short
        return Sequence(name, prompt + lengths.response - 1, lengths.response)

    def count(name: str) -> int:
        return lengths.rejected if SEQUENCES[name].answer == "rejected" else 1

    return tuple(one(name) for name in names for _ in range(count(name)))
