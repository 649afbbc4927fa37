"""Every kind of bad input ends with exit code 2 and one line that names the culprit, before any work has begun.

What a run refuses once its configuration is read, a check finds too, and leaves the output folder as it is.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from bad_input import Case, cases, make_material
from studies_commands import STUDIES

from solopo_nemo.commands import main as command
from solopo_nemo.config.schema import RunConfig, load_config
from solopo_nemo.runtime import cli
from solopo_nemo.runtime.errors import UserError
from solopo_nemo.runtime.paths import EMBEDDED_MODEL
from solopo_nemo.training import checks, launch, ranks
from solopo_nemo.training.check import Findings, check_config
from solopo_nemo.training.launch import run_recipe

ROOT = Path(__file__).parents[1]
CASES = {case.name: case for case in cases()}
CONTEXTS = (
    "--source {bad}/questions.jsonl --tokenizer {model} --short-tokens 100 --long-tokens 200 --out {tmp}/out.jsonl"
)
QUESTIONS = "--source {bad}/text.txt --tokenizer {model} --backend hf --model {model} --out {tmp}/out.jsonl"
PAIRS = "--contexts {bad}/contexts.jsonl --backend hf --model {model} --out {tmp}/out.jsonl"
EVALUATE = "--model {model} --suite builtin --out {tmp}/out"
RECIPE = "output_dir={tmp}/out data.builtin.samples=2"


@pytest.fixture(scope="session")
def bad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad")
    make_material(folder, EMBEDDED_MODEL)
    return folder


@pytest.fixture
def words_of(bad: Path, tmp_path: Path) -> Callable[[Case], list[str]]:
    places = {"bad": bad, "tmp": tmp_path, "model": EMBEDDED_MODEL, "ok": bad / "ok.jsonl"}

    def fill(text: str) -> str:
        for name, path in places.items():
            text = text.replace(f"{{{name}}}", str(path))
        return text

    def words(case: Case) -> list[str]:
        groups = {
            "{contexts}": CONTEXTS,
            "{pairs}": PAIRS,
            "{questions}": QUESTIONS,
            "{evaluate}": EVALUATE,
            "{recipe}": RECIPE,
        }
        given = [part for word in case.arguments for part in groups.get(word, word).split()]
        if case.command == "solo_dpo":
            own = any(word.startswith("output_dir=") for word in given)
            given = [*([] if own else ["output_dir={tmp}/out"]), "data.builtin.samples=2", *given]
        return [fill(word) for word in given]

    return words


def check(case: Case, code: object, stderr: str) -> None:
    assert code == cli.EXIT_USER_ERROR, stderr
    assert stderr.startswith("error: "), stderr
    assert stderr.count("\n") == 1, stderr
    assert all(culprit in stderr for culprit in case.culprits), stderr


def test_there_are_more_than_a_hundred_kinds() -> None:
    assert len(CASES) == len(cases()) > 100


@pytest.mark.parametrize("name", CASES)
def test_bad_input(
    name: str,
    words_of: Callable[[Case], list[str]],
    bad: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def begun(*_: object) -> None:
        raise AssertionError("work had begun")

    def load(*words: Any) -> RunConfig:
        loaded.append(load_config(*words))
        return loaded[-1]

    monkeypatch.setattr(checks, "import_weights", begun)
    monkeypatch.setattr(ranks, "start_ranks", lambda *_: nullcontext(begun))
    monkeypatch.setattr(launch, "load_config", load)
    loaded: list[RunConfig] = []
    case = CASES[name]
    words = words_of(case)
    for key, value in case.environment.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr(sys, "argv", [f"{case.command}.py", *words])
    with pytest.raises(SystemExit) as stop:
        command(STUDIES.get(case.command, case.command))
    check(case, stop.value.code, capsys.readouterr().err)
    for config in loaded:
        before, found = set((tmp_path / "out").rglob("*")), Findings()
        with found.listing():
            check_config(config, tmp_path / "scratch", found)
        assert any(all(culprit in line for culprit in case.culprits) for line in found.problems), found.problems
        assert not found.summary
        assert set((tmp_path / "out").rglob("*")) == before, "a check wrote into the output folder"
    assert not list(tmp_path.glob("out.*")), "a result was written"
    assert not (tmp_path / "out" / "initial").exists()
    assert not (bad / "exploded").exists(), "a foreign file was unpickled"


def test_rope_scaling_extends_the_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def begun(*_: object) -> None:
        raise AssertionError("work had begun")

    monkeypatch.setattr(checks, "import_weights", begun)
    overrides = ["data.builtin.samples=2", "data.max_tokens=131072", "model.rope_scaling={type: yarn, factor: 4.0}"]
    with pytest.raises(AssertionError, match="had begun"):
        run_recipe("solo_dpo", [f"output_dir={tmp_path}", *overrides], start=begun)
    with pytest.raises(UserError, match="131072"):
        run_recipe("solo_dpo", [f"output_dir={tmp_path}", *overrides, "data.max_tokens=131073"], start=begun)


@pytest.mark.parametrize("name", ["unknown key", "contexts, order"])
def test_as_a_process_of_its_own(name: str, words_of: Callable[[Case], list[str]]) -> None:
    case = CASES[name]
    script = f"recipes/{case.command}.py" if case.command == "solo_dpo" else f"tools/{case.command}.py"
    done = subprocess.run(
        [sys.executable, script, *words_of(case)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    check(case, done.returncode, done.stderr)
