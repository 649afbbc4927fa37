"""Statistics of a build: counts, token statistics, rho and evidence positions."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from solopo_nemo.builders.contexts.compose import Contexts, Dropped
from solopo_nemo.data.lengths import Lengths, compression_rate

POSITION_BINS = 10


@dataclass
class LongStatistics:
    """Statistics of the long prompts of one target.

    Attributes:
        tokens: Lengths in tokens.
        evidence: Position of each supporting passage, from 0 (first) to 1 (last).
    """

    tokens: Lengths = field(default_factory=Lengths)
    evidence: array[float] = field(default_factory=lambda: array("d"))


class BuildStatistics:
    """Aggregates the facts of shards. Memory: eight bytes per number.

    Args:
        labels: Labels of the long targets, the longest last.
    """

    def __init__(self, labels: Iterable[str]) -> None:
        self.short = Lengths()
        self.long = {label: LongStatistics() for label in labels}
        self.rejected = 0
        self.dropped: Counter[str] = Counter()
        self.pair_kinds: Counter[str] = Counter()
        self.reason = "all rows are bad"

    @property
    def written(self) -> int:
        """The number of questions with contexts."""
        return len(self.short)

    def add(self, facts: dict[str, Any]) -> None:
        """Add the facts of one shard."""
        for tokens in facts["short"]:
            self.short.add(tokens)
        for label, long in self.long.items():
            for tokens in facts["long"][label]:
                long.tokens.add(tokens)
            long.evidence.extend(facts["evidence"][label])
        self.rejected += facts["rejected"]
        self.dropped.update(facts["dropped"])
        self.pair_kinds.update(facts["pair_kinds"])
        self.reason = facts["reason"] or self.reason

    def summary(self) -> dict[str, Any]:
        """Return the counts and statistics. Top-level values are those of the longest target; `lengths` has all."""
        lengths = {
            label: {
                "tokens": long.tokens.statistics(),
                "rho": compression_rate(self.short, long.tokens),
                "evidence_position": _positions(long.evidence),
            }
            for label, long in self.long.items()
        }
        longest = lengths[list(lengths)[-1]]
        dropped = self.dropped.total()
        return {
            "in": self.written + self.rejected + dropped,
            "out": self.written,
            "rejected": self.rejected,
            "dropped": dropped,
            "dropped_by_rule": dict(sorted(self.dropped.items())),
            "short_tokens": self.short.statistics(),
            "long_tokens": longest["tokens"],
            "rho": longest["rho"],
            "lengths": lengths,
            **({"pair_kinds": dict(sorted(self.pair_kinds.items()))} if self.pair_kinds else {}),
        }


def new_facts(labels: Iterable[str]) -> dict[str, Any]:
    """Return the facts of an empty shard as plain JSON values."""
    labels = list(labels)
    return {
        "short": [],
        "long": {label: [] for label in labels},
        "evidence": {label: [] for label in labels},
        "rejected": 0,
        "dropped": {},
        "pair_kinds": {},
        "reason": "",
    }


def note_contexts(facts: dict[str, Any], contexts: Contexts) -> None:
    """Add a written question to the facts of a shard."""
    facts["short"].append(contexts.short.tokens)
    for label, context in contexts.long.items():
        facts["long"][label].append(context.tokens)
        facts["evidence"][label] += [round(position, 4) for position in context.evidence]


def note_dropped(facts: dict[str, Any], dropped: Dropped) -> None:
    """Add a dropped question to the facts of a shard."""
    facts["dropped"][dropped.rule] = facts["dropped"].get(dropped.rule, 0) + 1
    facts["reason"] = dropped.reason


def _positions(evidence: array[float]) -> dict[str, Any]:
    if not evidence:
        return {}
    values = np.asarray(evidence)
    counts, _ = np.histogram(values, bins=POSITION_BINS, range=(0, 1))
    return {
        "mean": round(float(values.mean()), 4),
        "p10": round(float(np.percentile(values, 10)), 4),
        "p50": round(float(np.percentile(values, 50)), 4),
        "p90": round(float(np.percentile(values, 90)), 4),
        "tenths": [int(count) for count in counts],
    }
