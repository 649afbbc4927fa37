"""The document is what the generator makes of the results; its goals are read out of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_up import Folder, step_run

from solopo_nemo.runtime.errors import UserError
from studies.benchmarks.document import REASONS, write
from studies.benchmarks.goals import GOALS, modelled_flops
from studies.benchmarks.results import Collected
from studies.benchmarks.spec import StepSpec
from studies.benchmarks.suite import DOCUMENT, RESULTS, SUITE, read_suite
from studies.results import read_yaml

VALUES = {goal.name: goal for goal in GOALS}


def measured(folder: Folder, name: str) -> float:
    value = VALUES[name].measure(Collected.read(folder.path))
    assert value is not None, name
    return value.median


def test_the_document_is_what_the_generator_makes_of_the_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[str] = []  # which plots there are, without drawing them
    monkeypatch.setattr("solopo_nemo.pages.figures.draw", lambda folder, name, make: drawn.append(name))
    page = write(RESULTS, tmp_path / "performance.md")
    assert DOCUMENT.read_text() == page.read_text(), "run: python tools/benchmark.py document"
    assert len(drawn) == 5
    assert all((RESULTS / f"{name}{suffix}.png").is_file() for name in drawn for suffix in ("", "-dark"))
    assert read_yaml(RESULTS / REASONS).keys() <= VALUES.keys()


def test_goals_are_read_out_of_the_results(complete: Folder) -> None:
    assert measured(complete, "solo_best_8k") == pytest.approx(0.5)
    assert measured(complete, "solo_as_is_4k") == pytest.approx(1 / 40)
    assert measured(complete, "vanilla_best_32k") == pytest.approx(0.95)
    assert measured(complete, "slope") == pytest.approx(0.5, rel=1e-6)
    assert measured(complete, "longest") == pytest.approx(2.0)
    assert measured(complete, "longest_cp4") == pytest.approx(211 / 32)
    assert measured(complete, "head") == pytest.approx(0.0)
    assert measured(complete, "cp4_memory") == pytest.approx(0.25)
    assert measured(complete, "exponent") == pytest.approx(1.0, abs=1e-5)
    assert measured(complete, "cp2_time") == pytest.approx(0.5)
    assert VALUES["longest_recompute"].measure(Collected.read(complete.path)) is None  # TRL's side is missing


def test_speed_up_is_over_the_cost_models(complete: Folder) -> None:
    speed = Collected.read(complete.path)
    vanilla, solo = (speed.select("speed", system=system, long=8192)[0] for system in ("long_po", "solo_dpo"))
    modelled = modelled_flops(vanilla) / modelled_flops(solo)
    assert 1.2 < modelled < 2.0
    assert measured(complete, "speed_up_8k") == pytest.approx(1.9 / modelled)


def test_the_planners_error_is_the_largest_of_all_its_configurations(folder: Folder) -> None:
    spec = StepSpec("solo_dpo", 8192)
    (measured_bytes,) = step_run(spec)["peak_bytes"]
    folder.steps("planner", [spec], predicted_bytes=1.04 * measured_bytes)
    folder.steps(
        "planner",
        [StepSpec("long_po", 8192)],
        predicted_bytes=0.93 * step_run(StepSpec("long_po", 8192))["peak_bytes"][0],
    )
    assert measured(folder, "planner") == pytest.approx(7.0)


def test_a_missed_goal_stays_with_its_value_and_reason(
    complete: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("studies.benchmarks.document.draw_all", lambda results, folder: [])
    (complete.path / REASONS).write_text("longest: TRL pads less than was thought\n")
    text = write(complete.path, tmp_path / "performance.md").read_text()
    row = next(line for line in text.splitlines() if line.startswith("| longest trainable"))
    assert "at least 2.20 | 2.00 (1.88 to 2.06) | **missed** | `memory`" in row
    assert "one rank, over TRL at its best: TRL pads less than was thought" in text
    assert "| not measured |" in text


def test_tables_and_plots_follow_the_results(complete: Folder, tmp_path: Path) -> None:
    text = write(complete.path, tmp_path / "performance.md").read_text()
    assert "| 8,192 | 1.50 (1.00 to 2.00) | 2.85 (1.90 to 3.80) | 3.00 (2.00 to 4.00) |  |" in text
    assert "| 65,536 | does not fit | 37.125 | 0.073 |" in text
    assert "| 262,144, full recompute | 1 | 2 |" in text
    assert "| TRL at its best | one rank | 16,384 | 17,408 |" in text
    for name in ("step-seconds", "step-peak", "head-peak", "context-peak", "context-seconds"):
        assert (complete.path / f"{name}.png").is_file()
        assert (complete.path / f"{name}-dark.png").is_file()
        assert f"results/{name}.png" in text


def test_without_results_every_goal_is_open_and_gpu_rows_are_blank(tmp_path: Path) -> None:
    text = write(tmp_path, tmp_path / "performance.md").read_text()
    assert "\n*Not run.*\n" in text
    assert text.count("not measured") == len(GOALS) + len(read_suite(SUITE)["cpu"])
    assert text.count("|  |  |  |  |") == len(read_suite(SUITE)["gpu"])
    assert "**missed**" not in text
    (tmp_path / "gpu").mkdir()
    (tmp_path / "gpu/check.md").write_text("Measured on a GPU.\n\n| a |\n|---|\n| 1 |\n")
    text = write(tmp_path, tmp_path / "performance.md").read_text()
    assert "\nMeasured on a GPU.\n\n| a |\n|---|\n| 1 |\n\n" in text and "*Not run.*" not in text


def test_every_goal_has_its_measurements_in_the_suite() -> None:
    sources = {source for goal in GOALS for source in goal.sources}
    assert sources - read_suite(SUITE)["cpu"].keys() == {"planner"}  # measured by the planner's own check


@pytest.mark.parametrize("text", ["- a", "tpu: {a: step}", "cpu: step"])
def test_a_suite_of_something_else_is_one_clear_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "suite.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"suite\.yaml: must"):
        read_suite(path)
