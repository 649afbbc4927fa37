"""The collapse warning: when it comes, and when it does not."""

from __future__ import annotations

from typing import Any

from solopo_nemo.training.callbacks.collapse_watch import CollapseWatch


def warnings(logps: list[float], gaps: list[float]) -> list[tuple[int, str]]:
    watch, seen = CollapseWatch(), []
    for step, (logp, gap) in enumerate(zip(logps, gaps, strict=True), start=1):
        row: dict[str, Any] = {"step": step, "logps/chosen": logp, "align/gap": gap}
        if message := watch.see(row):
            seen.append((step, message))
    return seen


def line(start: float, end: float, steps: int = 40) -> list[float]:
    return [start + (end - start) * i / (steps - 1) for i in range(steps)]


def test_a_sinking_policy_with_a_closing_gap_is_reported_once() -> None:
    (step, message), *more = warnings(line(-20, -80), line(3, 0.3))
    assert not more
    assert 10 <= step < 40
    assert "objective.detach_higher=true" in message


def test_a_closing_gap_alone_is_what_is_wanted() -> None:
    assert not warnings(line(-20, -15), line(3, 0.1))


def test_a_sinking_policy_whose_gap_stays_is_not_this_collapse() -> None:
    assert not warnings(line(-20, -80), line(3, 3))


def test_small_movements_of_a_confident_policy_do_not_count() -> None:
    assert not warnings(line(-0.01, -1.5), line(3, 0.1))


def test_objectives_without_alignment_are_not_watched() -> None:
    watch = CollapseWatch()
    assert all(watch.see({"step": i, "logps/chosen": -10.0 * i}) is None for i in range(40))
