"""Startup times: ``--help`` of every command, and the embedded default until its first step.

Every measurement starts a new process. A command runs once before it is measured, so that its files are in the page
cache. The training is killed as soon as the metrics of its first step are written.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from solopo_nemo.commands.dispatch import TOOLS, recipes
from solopo_nemo.runtime import environment
from studies.benchmarks.spec import Spec
from studies.paths import ROOT
from studies.pool import MeasurementError
from studies.results import machine, versions

STUDIES = ("benchmark", "collapse", "gpu_check", "reproduce")
PATIENCE = 600.0
"""Timeout for the first step in seconds."""


@dataclass(frozen=True)
class StartSpec(Spec):
    """The start of a command.

    Attributes:
        command: words after ``python``, in the root of the repository.
        first_step: True to measure the time until the first step of a recipe, False for the time of ``--help``.
    """

    command: str
    first_step: bool = False

    def label(self) -> str:
        """A short description for messages."""
        return f"python {self.command}{', first step' if self.first_step else ' --help'}"


def start_specs() -> list[StartSpec]:
    """All commands with ``--help``, and the embedded default until its first step."""
    files = [f"recipes/{name}.py" for name in recipes()]
    files += [f"tools/{name}.py" for name in (*TOOLS, *STUDIES) if name != "launch"]
    helps = [StartSpec(command) for command in ("-m solopo_nemo", "-m solopo_nemo launch", *files)]
    return [*helps, StartSpec("recipes/solo_dpo.py", first_step=True)]


def measure_start(spec: StartSpec) -> dict[str, Any]:
    """Measure a start twice. The first time fills the page cache, and is not evaluated.

    Raises:
        MeasurementError: the command fails, or its first step does not come in time.
    """
    measure: Callable[[list[str]], float] = _first_step if spec.first_step else _help
    seconds = [measure([sys.executable, *spec.command.split()]) for _ in range(2)]
    return {"spec": spec.as_json(), "seconds": seconds, "machine": machine(), "versions": versions()}


def _help(command: list[str]) -> float:
    began = time.perf_counter()
    done = subprocess.run([*command, "--help"], cwd=ROOT, stdout=subprocess.DEVNULL)
    if done.returncode:
        raise MeasurementError(f"{' '.join(command)} --help: exit code {done.returncode}")
    return time.perf_counter() - began


def _first_step(command: list[str]) -> float:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        log, metrics = Path(folder, "log"), Path(folder, "run", "metrics.jsonl")
        began = time.perf_counter()
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*command, f"output_dir={folder}/run"],
                cwd=ROOT,
                env=environment.without_ranks(),
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        try:
            while not (metrics.is_file() and metrics.read_bytes().count(b"\n")):
                if process.poll() is not None or time.perf_counter() - began > PATIENCE:
                    raise MeasurementError(f"no first step: {log.read_text().strip().splitlines()[-1:]}")
                time.sleep(0.02)
            return time.perf_counter() - began
        finally:
            _kill(process)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill the command and its ranks, which have their own process groups."""
    import psutil

    children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    for child in children:
        child.kill()
    process.kill()
    process.wait()
