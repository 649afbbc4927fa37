"""Starts recipes as a user does, in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import psutil
from zygote import TORCHRUN, forking

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
HERE = Path(__file__).parent
SECRETS = {
    name: f"secret-of-{name}" for name in ("WANDB_API_KEY", "HF_TOKEN", "OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY")
}
ENVIRONMENT = os.environ | {"PYTHONPATH": f"{ROOT}:{HERE}", "OMP_NUM_THREADS": "1"} | SECRETS
DEADLINE = 300.0
"""Seconds after which something that was waited for does not come any more."""


def command(output: Path, *overrides: str, script: str = "recipes/solo_dpo.py", torchrun: bool = False) -> list[str]:
    launcher = [*TORCHRUN, "--standalone", "--nproc-per-node=2"] if torchrun else []
    return [sys.executable, *launcher, script, f"output_dir={output}", *SMALL, *overrides]


def start(words: list[str], **options: Any) -> subprocess.Popen[str]:
    """Start a program in a session of its own, with pipes from it unless the options say otherwise."""
    with forking():
        return subprocess.Popen(
            words, cwd=ROOT, env=ENVIRONMENT, text=True, start_new_session=True,
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options,
        )  # fmt: skip


def run(
    output: Path,
    *overrides: str,
    script: str = "recipes/solo_dpo.py",
    torchrun: bool = False,
    expect: int = 0,
    orders: Sequence[dict[str, object]] = (),
    real: bool = False,
    **environment: str,
) -> subprocess.CompletedProcess[str]:
    """Run to the end; the finished process with its output.

    Args:
        output: of the run.
        *overrides: over ``SMALL``.
        script: recipe or tool.
        torchrun: start two ranks with ``torchrun``.
        expect: exit code.
        orders: for the plugin ``injected``.
        real: start a process as a user does, not a fork of one that has imported NeMo (``zygote``).
        **environment: more variables.
    """
    with nullcontext() if real else forking():
        done = subprocess.run(
            command(output, *overrides, script=script, torchrun=torchrun), cwd=ROOT, env=ENVIRONMENT | {"INJECT": json.dumps(list(orders))} | environment,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == expect, done.stdout[-2000:] + done.stderr[-4000:]
    return done


def inject(what: str, *, rank: int, step: int) -> dict[str, object]:
    """An order for the plugin ``injected``."""
    return {"what": what, "rank": rank, "step": step}


def started(finished: Path, output: Path) -> Path:
    """An output folder that has the imported weights already: importing them is not what is tested here."""
    output.mkdir()
    (output / "initial").symlink_to(finished / "initial")
    return output


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


def ranks(parent: subprocess.Popen[Any]) -> list[psutil.Process]:
    """The ranks that a launcher started, by rank."""
    numbers: dict[psutil.Process, int] = {}
    for child in psutil.Process(parent.pid).children():
        with suppress(psutil.NoSuchProcess):  # a zombie too: a helper that ended while it was looked at
            if (name := child.name()).startswith("rank "):  # a forked one
                numbers[child] = int(name.split()[1])
            elif "RANK" in (variables := child.environ()):
                numbers[child] = int(variables["RANK"])
    return sorted(numbers, key=lambda child: numbers[child])
