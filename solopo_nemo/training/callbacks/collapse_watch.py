"""Detects a policy that collapses while its alignment gap closes."""

from __future__ import annotations

from typing import Any


class CollapseWatch:
    """Warns if the alignment gap closes because the policy gets worse.

    The paper's loss has differences only, and does not keep the log-probability of the chosen response up: the gap can
    close because the short side falls. Means of the last steps are compared with means of the first steps.

    Args:
        window: number of steps of a mean.
        sink: allowed fall of ``logps/chosen``, as a share of its first mean.
        least: smallest fall that counts, in nats; docs/collapse.md compares some values.
    """

    def __init__(self, window: int = 5, sink: float = 0.5, least: float = 2.0) -> None:
        self.window, self.sink, self.least = window, sink, least
        self._rows: list[tuple[float, float]] = []
        self.warned = False

    def see(self, row: dict[str, Any]) -> str | None:
        """Takes the metrics of a step, and returns the warning once if the policy collapses, else None."""
        if "align/gap" not in row or self.warned:
            return None
        self._rows.append((row["logps/chosen"], row["align/gap"]))
        if len(self._rows) < 2 * self.window:
            return None
        first_logp, first_gap = (sum(x) / self.window for x in zip(*self._rows[: self.window], strict=True))
        logp, gap = (sum(x) / self.window for x in zip(*self._rows[-self.window :], strict=True))
        if gap > 0.7 * first_gap or first_logp - logp < max(self.least, self.sink * abs(first_logp)):
            return None
        self.warned = True
        return (
            f"step {row['step']}: the policy is collapsing: logps/chosen sank from {first_logp:.1f} to {logp:.1f} "
            f"while align/gap closed from {first_gap:.3g} to {gap:.3g}. Try objective.detach_higher=true, "
            "objective.nll_weight=0.2, or a smaller objective.alpha or optim.lr"
        )
