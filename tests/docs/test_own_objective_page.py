"""The worked example of an own objective: its commands, taken from the page, do what the page says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from shown import DOCS, ROOT, Command, commands
from zygote import forking

PAGE = DOCS / "variant.md"
SMALL = ("trainer.max_steps=3", "trainer.global_batch=4", "trainer.micro_batch=2", "data.builtin.samples=12",
         "evaluation=none")  # fmt: skip


def shown(program: str) -> Command:
    """The page's first command that runs a program."""
    return next(c for c in commands(PAGE) if c.words[0] == ".venv/bin/python" and program in c.words)


def run(command: Command, *more: str) -> str:
    environment = os.environ | command.environment | {"OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = f"{ROOT}:{environment['PYTHONPATH']}"
    done = subprocess.run(
        [sys.executable, *command.words[1:], *more], cwd=ROOT, env=environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_the_page_shows_the_file_itself() -> None:
    assert '--8<-- "docs/examples/my_po.py"' in PAGE.read_text()


def test_it_passes_the_bound_test() -> None:
    printed = run(shown("pytest"), "-k", "ln_dpo", "-v", "-p", "no:cacheprovider")
    assert "3 passed" in printed
    assert "test_bound_holds_for_the_losses_that_are_trained[ln_dpo] PASSED" in printed


@pytest.mark.slow
def test_it_trains(tmp_path: Path) -> None:
    with forking():
        run(shown("recipes/solo_dpo.py"), *SMALL, f"output_dir={tmp_path / 'out'}")
    rows = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 3
    assert rows[0]["rewards/margin"] == pytest.approx(0.0, abs=1e-4)  # the policy is the reference still
    assert rows[0]["loss/po"] == pytest.approx(0.6931, abs=1e-3)
    assert all(row["align/gap"] > 0 for row in rows)
    assert (tmp_path / "out" / "hf" / "config.json").is_file()
