"""Settings that all suites share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from solopo_nemo.runtime.errors import require, require_at_least


@dataclass(frozen=True)
class SuiteSettings:
    """Settings that all suites share.

    Attributes:
        data: folder of the data files, such as ``<suite>/<dataset>.jsonl``.
        lengths: sequence lengths (prompt and answer) in tokens, for the suites that build their prompts.
        depths: needle positions in percent of the context.
        limit: questions per cell; None uses the suite's default.
        seeds: sampling seeds, for the suites that sample answers.
        max_new_tokens: maximum answer length in tokens; None uses the suite's default.
        skip_bad: go on without bad rows of the data, and name them.
        literal: score by the literal form of sub-EM; see :func:`~solopo_nemo.data.answers.is_right`.
    """

    data: Path
    lengths: tuple[int, ...] = (4096, 8192, 16384, 32768)
    depths: tuple[int, ...] = (0, 25, 50, 75, 100)
    limit: int | None = None
    seeds: tuple[int, ...] = (0, 1, 2)
    max_new_tokens: int | None = None
    skip_bad: bool = False
    literal: bool = False

    def __post_init__(self) -> None:
        for option, values, low, high in (
            ("lengths", self.lengths, 1, 2**31),
            ("depths", self.depths, 0, 100),
            ("seeds", self.seeds, 0, 2**31),
        ):
            given = ",".join(map(str, values))
            different = bool(values) and len(set(values)) == len(values)
            require(different, f"--{option} {given}: give one or more different numbers")
            inside = low <= min(values) <= max(values) <= high
            require(inside, f"--{option} {given}: each must lie between {low} and {high}")
        require_at_least(1, limit=self.limit, max_new_tokens=self.max_new_tokens)
        object.__setattr__(self, "lengths", tuple(sorted(self.lengths)))
