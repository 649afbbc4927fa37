"""What the user sees of a long run."""

from __future__ import annotations

import pytest

from solopo_nemo.builders.pairs import meter as module
from solopo_nemo.builders.pairs.meter import Meter


def test_what_is_expected_follows_the_acceptance() -> None:
    meter = Meter(questions=1000, size=50)
    assert meter.expected() == 1000
    for number in range(20):
        meter.add_question(accepted=number % 4 == 0)
    assert meter.acceptance == 0.25
    assert meter.expected() == 200
    for _ in range(300):
        meter.add_question(accepted=False)
    assert meter.expected() == 1000, "there are no more"


def test_without_a_terminal_there_is_a_line_from_time_to_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    with Meter(questions=100, size=100) as meter:
        for _ in range(10):
            now += 15
            meter.add_samples(30)
            meter.add_question(accepted=True)
    assert capsys.readouterr().err.splitlines() == [
        "sampling: 4/100 questions, 2.0 samples/s, 100 % accepted, 24 min left",
        "sampling: 8/100 questions, 2.0 samples/s, 100 % accepted, 23 min left",
    ]
