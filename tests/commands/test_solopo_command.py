"""The thin files, ``solopo`` and their common start: names, help, and what an unfit Python is told."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from studies_commands import STUDIES

from solopo_nemo.commands import main
from solopo_nemo.commands.dispatch import TOOLS, dispatch, recipes, split_recipe
from solopo_nemo.runtime.errors import UserError

ROOT = Path(__file__).parents[2]
FILES = [path.relative_to(ROOT) for folder in ("recipes", "tools") for path in sorted((ROOT / folder).glob("*.py"))]
THIN = [path for path in FILES if path.stem != "check_versions"]  # which runs before anything is installed
MODULES = {**STUDIES, "make_tiny_model": "studies.make_tiny_model"}
HEAVY = {"torch", "nemo", "megatron", "lightning", "transformers", "datasets", "pandas", "scipy", "matplotlib"}


def test_every_command_has_its_file() -> None:
    assert {path.stem for path in THIN} == {*recipes(), *TOOLS, *MODULES} - {"launch"}
    assert (ROOT / "tools" / "launch.sh").is_file()


@pytest.mark.parametrize("path", THIN, ids=str)
def test_the_files_are_thin_and_start_their_own_command(path: Path) -> None:
    text = (ROOT / path).read_text()
    assert len(text.splitlines()) <= 12
    assert f'main("{MODULES.get(path.stem, path.stem)}")' in text


@pytest.mark.parametrize("path", [*THIN, "solopo_nemo/__init__.py", "solopo_nemo/commands/__init__.py"], ids=str)
def test_an_old_python_can_read_what_comes_before_the_check(path: str) -> None:
    tree = ast.parse((ROOT / path).read_text(), feature_version=(3, 6))
    assert not [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module == "__future__"]


def test_an_old_python_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 9, 18, "final", 0))
    with pytest.raises(SystemExit) as stop:
        main("solo_dpo")
    said = capsys.readouterr().err
    assert (stop.value.code, said.count("\n")) == (2, 1)
    assert said.startswith(f"error: Python 3.9 in {sys.executable} is too old") and "tools/setup.sh" in said


@pytest.mark.parametrize("path", THIN, ids=str)
def test_without_the_requirements_every_command_ends_with_one_line(path: Path, tmp_path: Path) -> None:
    """``-S`` leaves the site-packages out: a Python with nothing installed."""
    arguments = {
        "convert": ["import", "model", "checkpoint"],
        "convert_pairs": ["a.jsonl", "b.jsonl", "--to", "trl"],
        "merge_adapter": ["model", "adapter", "merged"],
        "inspect_triplets": ["file.jsonl"],
        "evaluate": ["--model", "model", "--suite", "builtin"],
        "build_contexts": [
            "--source",
            "a",
            "--tokenizer",
            "b",
            "--short-tokens",
            "1",
            "--long-tokens",
            "2",
            "--out",
            "c.jsonl",
        ],
        "build_questions": ["--source", "a", "--tokenizer", "b", "--backend", "hf", "--model", "c", "--out", "d.jsonl"],
        "sample_pairs": ["--contexts", "a", "--backend", "hf", "--model", "b", "--out", "c.jsonl"],
        "benchmark": ["step"],
    }
    command = [sys.executable, "-S", "-E", str(ROOT / path), *arguments.get(path.stem, [])]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert f"is not installed in {sys.executable}: run tools/setup.sh" in done.stderr
    assert "pip install 'solopo-nemo[cpu]'" in done.stderr


@pytest.mark.parametrize("command", [*recipes(), *TOOLS, *MODULES, ""])
def test_help_imports_nothing_heavy(command: str) -> None:
    program = (
        "import atexit, sys\n"
        f"atexit.register(lambda: print('imported:', *sorted({HEAVY} & set(sys.modules))))\n"
        "from solopo_nemo.commands import main\n"
        f"sys.argv = ['solopo', '--help']\nmain({MODULES.get(command, command)!r})\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "usage: " in done.stdout
    if command != "launch":  # bash takes the place of the process
        assert done.stdout.splitlines()[-1] == "imported:"


def test_versions_are_not_compared_without_packaging(tmp_path: Path) -> None:
    command = [sys.executable, "-S", "-E", str(ROOT / "tools" / "check_versions.py")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr


def test_solopo_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch([]) == 0
    shown = capsys.readouterr().out
    listed = {line.split()[0] for line in shown.splitlines() if line.startswith("  ")}
    assert {*recipes(), *TOOLS} <= listed
    assert all(name in shown for name in STUDIES)


def test_an_unknown_command_or_recipe_is_refused() -> None:
    with pytest.raises(UserError, match="solo_dop: no such command"):
        dispatch(["solo_dop"])
    with pytest.raises(UserError, match="solo_dop: no such recipe, there are long_po"):
        split_recipe(["solo_dop", "a=1"])
    assert split_recipe(["sft", "a=1"]) == ("sft", ["a=1"])
    assert split_recipe(["a=1"]) == ("solo_dpo", ["a=1"])


def test_a_missing_module_of_the_package_is_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["plan.py"])
    with pytest.raises(ModuleNotFoundError, match=r"solopo_nemo\.no_such_module"):
        main("solopo_nemo.no_such_module")
