"""What an evaluation measures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from solopo_nemo.runtime.errors import UserError


@dataclass(frozen=True)
class SuiteSettings:
    """What the suites are asked with.

    Attributes:
        data: folder of the data files, ``<suite>/<dataset>.jsonl`` and the like.
        lengths: prompt lengths in tokens, answer included, of the suites that build their prompts.
        depths: where needles stand, in percent of the context.
        limit: questions a cell; None takes each suite's own number.
        seeds: of suites that sample their answers.
        max_new_tokens: longest answer; None takes each suite's own.
    """

    data: Path
    lengths: tuple[int, ...] = (4096, 8192, 16384, 32768)
    depths: tuple[int, ...] = (0, 25, 50, 75, 100)
    limit: int | None = None
    seeds: tuple[int, ...] = (0, 1, 2)
    max_new_tokens: int | None = None

    def __post_init__(self) -> None:
        for option, values, low, high in (
            ("lengths", self.lengths, 1, 2**31),
            ("depths", self.depths, 0, 100),
            ("seeds", self.seeds, 0, 2**31),
        ):
            given = ",".join(map(str, values))
            if not values or len(set(values)) < len(values):
                raise UserError(f"--{option} {given}: give one or more different numbers")
            if not low <= min(values) <= max(values) <= high:
                raise UserError(f"--{option} {given}: each must lie between {low} and {high}")
        if self.limit is not None and self.limit < 1:
            raise UserError(f"--limit {self.limit}: must be at least 1")
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise UserError(f"--max-new-tokens {self.max_new_tokens}: must be at least 1")
        object.__setattr__(self, "lengths", tuple(sorted(self.lengths)))
