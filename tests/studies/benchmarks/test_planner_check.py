"""The configurations on which predictions are checked, and the comparison; measuring is studies/benchmarks/planner.py check."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from zygote import forking

from studies.benchmarks import planner_check as check
from studies.benchmarks.spec import StepSpec
from studies.benchmarks.step import measure_step
from studies.benchmarks.suite import RESULTS


def test_every_dimension_is_checked_more_than_once() -> None:
    assert len(check.SPECS) >= 20
    assert len({spec.key() for spec in check.SPECS}) == len(check.SPECS)
    for varied in (
        [spec.shape.hidden for spec in check.SPECS],
        [spec.shape.layers for spec in check.SPECS],
        [spec.shape.vocabulary for spec in check.SPECS],
        [spec.long for spec in check.SPECS],
        [spec.tensor for spec in check.SPECS],
        [spec.context for spec in check.SPECS],
        [spec.recompute for spec in check.SPECS],
    ):
        assert len(set(varied)) > 1
        assert sum(value != max(varied, key=varied.count) for value in varied) > 1


def test_a_comparison_takes_the_rank_that_needs_most() -> None:
    spec = check.SPECS[0]
    predicted = check.predict(spec).above_model
    row = check.compare(spec, {"peak_bytes": [predicted / 4, predicted / 1.25]}, predicted)
    assert abs(row.error - 0.25) < 1e-9
    assert check.table([row]).rows[0][-1] == check.table([row]).rows[0][-3] == "+25.0%"


def recorded() -> list[dict[str, Any]]:
    runs: list[dict[str, Any]] = json.loads((RESULTS / "planner.json").read_text())["runs"]
    return runs


def test_traced_peaks_are_within_five_percent_of_measured_ones() -> None:
    """All but one of a small model under all-to-all, where gloo's own buffers count."""
    errors = {StepSpec.from_json(run["spec"]): run["traced_bytes"] / max(run["peak_bytes"]) - 1 for run in recorded()}
    assert set(errors) == set(check.SPECS)
    beyond = [spec for spec, error in errors.items() if abs(error) > 0.05]
    assert [spec.context_mode for spec in beyond] == ["a2a"]
    assert max(map(abs, errors.values())) < 0.1


def test_the_planners_formulas_give_what_the_traces_found() -> None:
    """All 22 within 0.2 %."""
    for run in recorded():
        predicted = check.predict(StepSpec.from_json(run["spec"])).above_model
        assert predicted == pytest.approx(run["predicted_bytes"], rel=1e-6), "run planner.py check"
        assert predicted == pytest.approx(run["traced_bytes"], rel=0.002), run["spec"]


TRACED_AGAIN = (check.SPECS[9], check.SPECS[17])


def _trace_again(_: int, out: str) -> None:
    torch.save([check.trace(spec) for spec in TRACED_AGAIN], out)


@pytest.mark.long
def test_a_trace_gives_what_is_recorded_and_the_state_of_a_real_run(tmp_path: Path) -> None:
    """Some 60 s: two configurations are traced again, and one is trained."""
    with forking():
        torch.multiprocessing.start_processes(_trace_again, (str(tmp_path / "t"),), nprocs=1, start_method="spawn")
    traced = torch.load(tmp_path / "t")
    known = {StepSpec.from_json(run["spec"]): run["traced_bytes"] for run in recorded()}
    for spec, found in zip(TRACED_AGAIN, traced, strict=True):
        assert found["above_model"] == pytest.approx(known[spec], rel=0.01)
    measured = measure_step(TRACED_AGAIN[0], tmp_path)
    for kind in ("weights", "gradients", "optimizer"):
        assert traced[0][kind] == pytest.approx(max(rank[kind] for rank in measured["state_bytes"]), rel=0.02), kind
    assert traced[0]["above_model"] == pytest.approx(max(measured["peak_bytes"]), rel=0.05)
