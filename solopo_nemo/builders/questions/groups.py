"""Groups of passages: one passage, or two to four that share an entity, for one question each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from random import Random

from solopo_nemo.builders.contexts.gold import names
from solopo_nemo.builders.questions.passages import Count, Passage
from solopo_nemo.data.normal_form import normalize
from solopo_nemo.runtime.progress import with_progress

_SIZES = (1, 1, 1, 1, 2, 2, 3, 4)
"""Half of the questions are about one passage, a quarter about two, an eighth about three, and about four."""
_FEWEST_TOKENS = 24


@dataclass(frozen=True)
class Group:
    """Passages for one question, in the order of the corpus."""

    passages: tuple[Passage, ...]

    @property
    def id(self) -> str:
        """A hash of the texts."""
        return sha256("\0".join(passage.text for passage in self.passages).encode()).hexdigest()[:16]


def make_groups(passages: Sequence[Passage], seed: int, count: Count) -> list[Group]:
    """Return a group for each passage of at least 24 tokens, in a seeded random order.

    A passage gets others that hold its rarest name which others hold as well, of the same document where there are
    enough. Names are recognised by capitals, so other scripts have groups of one passage.

    Args:
        passages: The passages of all documents, in order.
        seed: Seed of the order, the sizes and the choices.
        count: Gives the tokens of a text.
    """
    holders: dict[str, list[int]] = {}
    named: list[list[str]] = []
    for number, passage in enumerate(with_progress(passages, "finding names")):
        own = sorted({name for name in map(normalize, names(passage.text)) if name})
        named.append(own)
        for name in own:
            holders.setdefault(name, []).append(number)
    random = Random(f"{seed}:groups")
    order = [number for number, passage in enumerate(passages) if count(passage.text) >= _FEWEST_TOKENS]
    random.shuffle(order)
    found: dict[tuple[int, ...], Group] = {}
    for number in order:
        members = _members(number, random.choice(_SIZES), [holders[name] for name in named[number]], passages, random)
        for chosen in (members, (number,)):
            if chosen not in found:
                found[chosen] = Group(tuple(passages[member] for member in chosen))
                break
    return list(found.values())


def _members(
    number: int, size: int, shared: list[list[int]], passages: Sequence[Passage], random: Random
) -> tuple[int, ...]:
    rarest = min((others for others in shared if len(others) > 1), key=len, default=None)
    if size == 1 or rarest is None:
        return (number,)
    others = [other for other in rarest if other != number]
    random.shuffle(others)
    others.sort(key=lambda other: passages[other].document != passages[number].document)
    return tuple(sorted([number, *others[: size - 1]]))
