"""Statistics of a build: counts, token statistics, rho and evidence positions."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np

from solopo_nemo.builders.contexts.compose import Contexts
from solopo_nemo.data.lengths import Lengths, compression_rate

POSITION_BINS = 10


class BuildStatistics:
    """Aggregates the facts of shards. Memory: eight bytes per number.

    Args:
        labels: Labels of the long targets, the longest last.

    Attributes:
        short: Lengths of the short prompts in tokens.
        long: Label -> lengths of the long prompts.
        evidence: Label -> position of each supporting passage in them, from 0 (first) to 1 (last).
    """

    def __init__(self, labels: Iterable[str]) -> None:
        self.short = Lengths()
        self.long = {label: Lengths() for label in labels}
        self.evidence = {label: array("d") for label in self.long}
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
                long.add(tokens)
            self.evidence[label].extend(facts["evidence"][label])
        self.rejected += facts["rejected"]
        self.dropped.update(facts["dropped"])
        self.pair_kinds.update(facts["pair_kinds"])
        self.reason = facts["reason"] or self.reason

    def summary(self) -> dict[str, Any]:
        """Return the counts and statistics. Top-level values are those of the longest target; `lengths` has all."""
        lengths = {
            label: {
                "tokens": long.statistics(),
                "rho": compression_rate(self.short, long),
                "evidence_position": _positions(self.evidence[label]),
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
    """Return the facts of an empty shard as JSON values."""
    labels = list(labels)
    return {
        "short": [],
        "long": {label: [] for label in labels},
        "evidence": {label: [] for label in labels},
        "rejected": 0,
        "dropped": Counter(),
        "pair_kinds": Counter(),
        "reason": "",
    }


def note_contexts(facts: dict[str, Any], contexts: Contexts) -> None:
    """Add a written question to the facts of a shard."""
    facts["short"].append(contexts.short.tokens)
    for label, context in contexts.long.items():
        facts["long"][label].append(context.tokens)
        facts["evidence"][label] += [round(position, 4) for position in context.evidence]


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
