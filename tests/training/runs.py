"""Starts recipes as a user does, in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SMALL = [
    "trainer.max_steps=4",
    "trainer.global_batch=4",
    "trainer.micro_batch=2",
    "trainer.checkpoint_every=2",
    "data.builtin.samples=10",
    "data.builtin.long_paragraphs=16",
    "evaluation.questions=4",
]
NOT_EXACT = ("seconds", "peak_memory_gib")
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
DEADLINE = 300.0
"""Seconds after which something that was waited for does not come any more."""


def command(output: Path, *overrides: str, script: str = "recipes/solo_dpo.py") -> list[str]:
    return [sys.executable, script, f"output_dir={output}", *SMALL, *overrides]


def run(output: Path, *overrides: str, script: str = "recipes/solo_dpo.py", expect: int = 0) -> Any:
    """Run to the end; the finished process with its output."""
    done = subprocess.run(
        command(output, *overrides, script=script),
        cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == expect, done.stdout[-2000:] + done.stderr[-4000:]
    return done


def rows(output: Path) -> list[dict[str, Any]]:
    """What metrics.jsonl has, without what differs from run to run."""
    read = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in NOT_EXACT} for row in read]


def until(condition: Callable[[], Any], process: subprocess.Popen[Any] | None = None) -> Any:
    """Wait for a condition and return what it gave; fail when its time, or the process it depends on, is over."""
    deadline = time.monotonic() + DEADLINE
    while not (value := condition()):
        assert process is None or process.poll() is None, f"the run ended with {process.returncode}"
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)
    return value
