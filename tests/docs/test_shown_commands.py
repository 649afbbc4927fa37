"""Commands in README.md and in the pages name programs, options and keys that exist."""

from __future__ import annotations

from pathlib import Path

import pytest
from programs import Wrong, check
from shown import PAGES, ROOT, Command, commands

from solopo_nemo.runtime.errors import UserError

SHOWN = [command for page in PAGES for command in commands(page)]


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("command", SHOWN, ids=str)
def test_it_would_run(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in filter(None, command.environment.get("PYTHONPATH", "").split(":")):
        monkeypatch.syspath_prepend(ROOT / folder)
    check(command)


def test_every_kind_of_program_is_shown() -> None:
    programs = {command.words[0] for command in SHOWN if command.words}
    assert {"python", ".venv/bin/python", "torchrun", "tools/launch.sh", "tools/setup.sh", "docker"} <= programs


@pytest.mark.parametrize(
    ("text", "culprit"),
    [
        ("python recipes/solo_dpo.py objective.bta=1", "objective.bta"),
        ("python recipes/solo_dpp.py", "recipes/solo_dpp.py"),
        ("python tools/no_such.py", "tools/no_such.py"),
        ("python tools/inspect_triplets.py triplets.jsonl --model folder", "--model"),
        ("python tools/plan.py model=qwen2_5_7b --gpus 8 --vram 80", "--vram"),
        ("python tools/plan.py solo_dpo parallel.tensor=3 --gpus 8", "parallel.tensor=3"),
        ("python tools/benchmark.py steps", "steps"),
        ("python tools/check_versions.py --cpu", "--cpu"),
        ("torchrun --nproc-per-node 8 recipes/solo_dpo.py parallel.context=3", "parallel.tensor=1 x context=3"),
        ("torchrun --nproc-per-node 2 tools/cache_reference.py solo_dpo optim.rate=1", "optim.rate"),
        ("tools/launch.sh --node 2 recipes/solo_dpo.py", "--node"),
        ("tools/launch.sh --nodes 2 --gpus-per-node 8 recipes/solo_dpo.py parallel.tensor=32", "parallel.tensor=32"),
        ("tools/setup.sh --all", "--all"),
        ("python -m pytest -m quick", "quick"),
        ("python -m pytest tests/no_such.py", "tests/no_such.py"),
        ("docker build --target gpus .", "gpus"),
        ("tools/setup.sh && make all", "make"),
    ],
)
def test_one_that_would_not_run_is_caught(text: str, culprit: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"```bash\nA=1 {text}  # as shown\n```\n")
    with pytest.raises((UserError, Wrong, SystemExit)) as caught:
        for command in commands(page):
            check(command)
    assert culprit in str(caught.value) or isinstance(caught.value, SystemExit)


def test_commands_are_found_in_blocks_and_in_lines(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "Run `python tools/plan.py --gpus\n8`, not `python tools/...`:\n\n"
        "```bash\nA=b python recipes/sft.py \\\n    'data.train=a b' && ls  # it\n```\n\n```python\nimport torch\n```\n"
    )
    found = [(command.environment, command.words) for command in commands(page)]
    assert found == [
        ({"A": "b"}, ("python", "recipes/sft.py", "data.train=a b")),
        ({}, ("ls",)),
        ({}, ("python", "tools/plan.py", "--gpus", "8")),
    ]
