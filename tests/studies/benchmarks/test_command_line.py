"""tools/benchmark.py: arguments, one-line errors, the command that goes into the results, the suite."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from made_up import MACHINE, step_run

from solopo_nemo.runtime import cli
from solopo_nemo.runtime.errors import UserError
from studies.benchmarks import cli as TOOL
from studies.benchmarks import suite
from studies.benchmarks.goals import GOALS
from studies.benchmarks.peer import make_peer
from studies.benchmarks.results import Collected
from studies.benchmarks.spec import StepSpec
from studies.benchmarks.startup import StartSpec
from studies.pool import MeasurementError

ROOT = Path(__file__).parents[3]


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[StepSpec]:
    """Specifications that would have been measured."""
    asked: list[StepSpec] = []

    def measure(spec: StepSpec, work: Path, python: Path | None) -> dict[str, Any]:
        asked.append(spec)
        return step_run(spec)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("studies.benchmarks.commands.measure_step", measure)
    monkeypatch.setattr("studies.benchmarks.commands.make_peer", lambda environment: Path("python"))
    return asked


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("step --systems solo_dp", "--systems solo_dp: must be one of long_po, longpo"),
        ("step --long 0", "--long 0: must be at least 1"),
        ("step --long eight", "argument --long: invalid"),
        ("step --repeats 0", "--repeats 0: must be at least 1"),
        ("step --context 3 --context-mode a2a", "parallel.context=3 does not divide"),
        ("step --context-mode ring", "parallel.cp_comm_type"),
        ("step --override model.nothing=1", "model.nothing"),
        ("step --systems trl_best --context 2 --recompute selective", "TRL runs on one rank here"),
        ("memory --budget 0", "--budget 0"),
        ("memory --unit 0", "--unit 0"),
        ("head --heads half", "--heads half: must be one of full"),
        ("scaling --tensor 3", "parallel.tensor=3 does not divide"),
        ("all --only nothing", "--only nothing"),
        ("all --suite nowhere.yaml", "nowhere.yaml: cannot be read"),
        ("fly", "invalid choice: 'fly'"),
    ],
)
def test_bad_arguments_are_one_line(arguments: str, message: str, measured: list[StepSpec]) -> None:
    with pytest.raises(UserError) as error:
        TOOL.main(arguments.split())
    assert message in str(error.value)
    assert not measured


def test_a_bad_argument_ends_the_process_with_code_2_and_one_line(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tools" / "benchmark.py"), "step", "--long", "eight"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: argument --long")
    assert len(done.stderr.splitlines()) == 1


def test_peers_run_beside_any_layout_and_the_result_names_the_command(measured: list[StepSpec]) -> None:
    out = Path("deep/peer.json")
    words = (
        f"peer --long 4K --systems long_po,trl_best --override model.logits_chunk_size=64 --out {out} --work w --again"
    )
    assert TOOL.main(words.split()) == 0
    assert [(s.system, s.long, s.overrides) for s in measured] == [
        ("long_po", 4096, ("model.logits_chunk_size=64",)),
        ("trl_best", 4096, ()),
    ]
    (command,) = {run["command"] for run in json.loads(out.read_text())["runs"]}
    assert command == (
        "python tools/benchmark.py peer --long 4K --systems long_po,trl_best --override model.logits_chunk_size=64"
    )


def test_scaling_measures_every_layout(measured: list[StepSpec], capsys: pytest.CaptureFixture[str]) -> None:
    assert TOOL.main(["scaling", "--long", "8K", "--context", "1,2", "--tensor", "1,2", "--sequence", "--json"]) == 0
    layouts = [(s.tensor, s.context, s.sequence, s.threads) for s in measured]
    assert layouts == [(1, 1, False, 1), (1, 2, False, 1), (2, 1, True, 1), (2, 2, True, 1)]
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["peak_gib"]["count"] for row in summary] == [1] * 4


def test_memory_ends_between_two_measured_lengths(measured: list[StepSpec], capsys: pytest.CaptureFixture[str]) -> None:
    words = "memory --systems solo_dpo,trl_best --budget 1.5 --json"
    assert TOOL.main(words.split()) == 0
    solo, peer = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert solo["fits"] == 32768
    assert peer["fits"] == 16384
    assert {s.steps for s in measured} == {2}
    count = len(measured)
    TOOL.main(words.split())
    assert len(measured) == count


def test_a_failed_measurement_is_a_message_and_code_1(
    measured: list[StepSpec], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(spec: StepSpec, work: Path, python: Path | None) -> dict[str, Any]:
        raise MeasurementError("solo_dpo at 4096 tokens ended with code 1")

    monkeypatch.setattr("studies.benchmarks.commands.measure_step", fail)
    with pytest.raises(SystemExit, match="1"):
        cli.run(lambda: TOOL.main(["step"]))
    assert capsys.readouterr().err.splitlines()[-1] == "error: solo_dpo at 4096 tokens ended with code 1"


def test_the_suite_runs_its_entries_and_writes_the_document(
    measured: list[StepSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("studies.benchmarks.document.draw_all", lambda results, folder: [])
    path = tmp_path / "suite.yaml"
    path.write_text("cpu:\n  speed: step --long 8K\n  growth: step --systems solo_dpo --long 16K\ngpu: {}\n")
    places = f"--suite {path} --results docs/performance --document docs/performance.md"
    assert TOOL.main(f"all --only growth {places}".split()) == 0
    assert [s.long for s in measured] == [16384]
    assert TOOL.main(f"all {places}".split()) == 0
    assert len(measured) == 3
    assert "| 16,384 | 2.00 |" in Path("docs/performance.md").read_text()


def test_a_suite_names_what_failed_and_runs_the_rest(tmp_path: Path) -> None:
    path, ran = tmp_path / "suite.yaml", []
    path.write_text("cpu: {a: step, b: head}\n")

    def measure(words: Any, out: Path) -> int:
        ran.append(out.name)
        return int(out.name == "a.json")

    with pytest.raises(UserError, match="failed: a "):
        suite.run_suite(path, tmp_path, None, measure)
    assert ran == ["a.json", "b.json"]


def test_a_folder_that_is_no_environment_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("")
    with pytest.raises(UserError, match="is no virtual environment"):
        make_peer(tmp_path)


def test_startup_goals_are_the_slowest_help_and_the_first_step(
    measured: list[StepSpec], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def measure(spec: StartSpec) -> dict[str, Any]:
        seconds = 20.0 if spec.first_step else 0.5 if spec.command == "tools/evaluate.py" else 0.2
        return {"spec": spec.as_json(), "seconds": [9 * seconds, seconds], "machine": MACHINE, "versions": {}}

    monkeypatch.setattr("studies.benchmarks.commands.measure_start", measure)
    assert TOOL.main(["startup", "--out", str(tmp_path / "startup.json")]) == 0
    goals = {goal.name: goal.measure(Collected.read(tmp_path)) for goal in GOALS if goal.sources == ("startup",)}
    assert {name: value and value.median for name, value in goals.items()} == {"help": 0.5, "first_step": 20.0}
