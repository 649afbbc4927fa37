"""Results on disk: kept, found again, combined round by round."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from made_up import Folder, step_run

from solopo_nemo.runtime.errors import UserError
from studies.benchmarks.agreement import Disagreement, check_agreement
from studies.benchmarks.results import Spread, peak_gib, ratio, step_seconds
from studies.benchmarks.session import Session
from studies.benchmarks.spec import StepSpec
from studies.results import Results

SOLO, PEER = StepSpec("solo_dpo", 8192), StepSpec("trl_best", 8192)


def session(path: Path, asked: list[str], **options: Any) -> Session:
    def measure(spec: StepSpec) -> dict[str, Any]:
        asked.append(spec.system)
        return step_run(spec)

    return Session(Results.open(path, benchmark="step"), "command", measure, **options)


def test_systems_alternate_and_what_is_finished_is_not_measured_again(tmp_path: Path) -> None:
    asked: list[str] = []
    session(tmp_path / "a.json", asked).run_rounds([[SOLO, PEER]], 2)
    assert asked == ["solo_dpo", "trl_best"] * 2
    session(tmp_path / "a.json", asked).run_rounds([[SOLO, PEER]], 3)
    assert asked[4:] == ["solo_dpo", "trl_best"]
    session(tmp_path / "a.json", asked, again=True).run_rounds([[SOLO]], 1)
    assert asked[6:] == ["solo_dpo"]
    assert len(Results.read(tmp_path / "a.json").runs) == 6


def test_an_interruption_leaves_the_finished_runs(tmp_path: Path) -> None:
    def stopped(spec: StepSpec) -> dict[str, Any]:
        if spec.system == "trl_best":
            raise KeyboardInterrupt
        return step_run(spec)

    with pytest.raises(KeyboardInterrupt):
        Session(Results.open(tmp_path / "a.json", benchmark="step"), "command", stopped).run_rounds([[SOLO, PEER]], 1)
    (run,) = Results.read(tmp_path / "a.json").runs
    assert run["spec"]["system"] == "solo_dpo"


@pytest.mark.parametrize("text", ["{", "[]", '{"benchmark": "step"}'])
def test_a_file_of_something_else_is_one_clear_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"a\.json: no file of such results"):
        Results.open(path, benchmark="step")


def test_results_of_another_subcommand_are_not_mixed_in(folder: Folder) -> None:
    folder.steps("speed", [SOLO])
    with pytest.raises(UserError, match="holds results of benchmark 'step', not 'head'"):
        Results.open(folder.path / "speed.json", benchmark="head")


def test_a_ratio_is_taken_round_by_round(folder: Folder) -> None:
    folder.steps("speed", [SOLO, PEER], rounds=3)
    runs = Results.read(folder.path / "speed.json").runs
    solo, peer = ([run for run in runs if run["spec"]["system"] == name] for name in ("solo_dpo", "trl_best"))
    assert ratio(solo, peer, step_seconds) == Spread(0.5, 0.5, 0.5, 3)
    assert ratio(solo[:1], peer[1:], step_seconds) is None
    assert peak_gib(solo[0]) == pytest.approx(0.9)


def test_the_first_step_is_no_part_of_the_time() -> None:
    assert step_seconds({"seconds": [9.0, 2.0, 3.0, 4.0]}) == 3.0
    assert step_seconds({"seconds": [9.0]}) == 9.0


def test_agreement_is_checked_on_ids_scores_and_loss() -> None:
    own, peer = step_run(StepSpec("long_po", 8192)), step_run(PEER)
    other_length = step_run(StepSpec("trl_best", 4096)) | {"losses": [9.9]}
    assert check_agreement([own, other_length, peer]) == 0.0
    close = {"logps": [{"logps/chosen": -1527.01, "logps/rejected": -1528.0}]}
    assert check_agreement([own, peer | close]) == pytest.approx(0.01 / 1527, rel=1e-3)
    for change, what in (
        ({"losses": [0.6941]}, "loss differs"),
        ({"losses": [float("nan")]}, "loss differs"),
        ({"logps": [{"logps/chosen": -1520.0, "logps/rejected": -1528.0}]}, "logps/chosen differs"),
        ({"digest": {"prompt_long": "x", "chosen": "c"}}, "token ids of prompt_long differ"),
    ):
        with pytest.raises(Disagreement, match=what):
            check_agreement([own, peer | change])
