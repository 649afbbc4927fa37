"""Token targets: a number, a range or a distribution. The target of each question is drawn with its own seed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

from solopo_nemo.runtime.errors import UserError, require
from solopo_nemo.runtime.units import token_count

_NUMBER = re.compile(r"\d+[kKmM]?")
_RANGE = re.compile(r"(\d+[kKmM]?)-(\d+[kKmM]?)")


@dataclass(frozen=True)
class Target:
    """The distribution of the maximum prompt length, in tokens.

    Attributes:
        label: The user's text, or the stem of a file. It names the output if there are several targets.
        low: Smallest target.
        high: Largest target.
        lengths: Samples of the distribution; empty for the uniform distribution from `low` to `high`.
    """

    label: str
    low: int
    high: int
    lengths: tuple[int, ...] = ()

    @property
    def varies(self) -> bool:
        """True if the target differs between questions."""
        return self.low < self.high

    def draw(self, random: Random) -> int:
        """Return the target of one question."""
        return random.choice(self.lengths) if self.lengths else random.randint(self.low, self.high)


@dataclass(frozen=True)
class Targets:
    """The targets of the short prompt and of the long prompts, in increasing order.

    Raises:
        UserError: The targets do not increase, or two have the same label.
    """

    short: Target
    long: tuple[Target, ...]

    @classmethod
    def parse(cls, short: int | str, long: int | str) -> Targets:
        """Parse the user's options. Several long targets are separated by commas.

        Raises:
            UserError: A target is not a number, a range such as `6000-9000`, or a file with one length per line.
        """
        long_targets = tuple(_parse(part.strip(), "--long-tokens") for part in str(long).split(","))
        return cls(_parse(str(short).strip(), "--short-tokens"), long_targets)

    def __post_init__(self) -> None:
        if self.long and (not self.short.low > 0 or self.short.high >= self.long[0].low):
            raise UserError(
                f"--short-tokens {self.short.label} and --long-tokens {self.long[0].label}: "
                "the short target must be positive and below the long one, for every question"
            )
        for lower, higher in zip(self.long, self.long[1:], strict=False):
            if lower.high >= higher.low:
                raise UserError(f"--long-tokens {lower.label},{higher.label}: each target must be above the one before")
        if len({target.label for target in self.long}) < len(self.long):
            raise UserError("--long-tokens: two of the files have the same name, which names their outputs: rename one")

    def named(self) -> Iterator[tuple[str, Target]]:
        """Yield the targets and their names, from the shortest to the longest."""
        yield "short", self.short
        for target in self.long:
            yield "long" if len(self.long) == 1 else target.label, target


def _parse(text: str, option: str) -> Target:
    if _NUMBER.fullmatch(text):
        return Target(text, token_count(text), token_count(text))
    if match := _RANGE.fullmatch(text):
        low, high = map(token_count, match.groups())
        require(low <= high, f"{option} {text}: the range ends below its begin: swap them")
        return Target(text, low, high)
    path = Path(text)
    if not path.is_file():
        raise UserError(
            f"{option} {text!r}: give a number, such as 7500 or 8K, a range like 6000-9000, or a file with one length "
            "a line"
        )
    return _read_distribution(path)


def _read_distribution(path: Path) -> Target:
    lengths: list[int] = []
    try:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if not line.strip():
                continue
            if not _NUMBER.fullmatch(line.strip()) or not token_count(line.strip()):
                raise UserError(f"{path}:{number}: {line[:40]!r} is no length: write one positive number a line")
            lengths.append(token_count(line.strip()))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text: write one length a line") from error
    require(bool(lengths), f"{path}: no lengths in it: write one a line")
    return Target(path.stem, min(lengths), max(lengths), tuple(lengths))
