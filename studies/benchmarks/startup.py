"""Measure startup times: ``--help`` of every command, and the embedded default until its first step.

    python studies/benchmarks/startup.py

Every measurement starts a new process. Each command runs once before its measurement, so that its files are in the page
cache. The training is killed as soon as the metrics of its first step are written. Its output up to that time is stored
with timestamps.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console

from solopo_nemo.commands.dispatch import TOOLS, recipes
from solopo_nemo.runtime import cli, environment
from studies.benchmarks.suite import RESULTS
from studies.paths import ROOT
from studies.pool import MeasurementError
from studies.results import Results, machine, revision, versions

STUDIES = ("benchmark", "collapse", "reproduce")
PATIENCE = 600.0
"""Timeout for the first step in seconds."""


def main() -> None:
    """Measure and write the results."""
    given = _arguments()
    about = {"revision": revision(), "machine": machine(), "versions": versions(), "repeats": given.repeats}
    results, console = Results(given.out, about), Console(highlight=False)
    for name, command in _commands().items():
        seconds = [_seconds([*command, "--help"]) for _ in range(given.repeats + 1)][1:]
        results.runs.append({"name": name, "help_seconds": seconds})
        console.print(f"{name:<18} --help {median(seconds):5.2f} s, at most {max(seconds):.2f} s")
    for number in range(given.starts + 1):
        start = first_step()
        if number:
            results.runs.append({"name": "solo_dpo", **start})
            console.print(f"first step of the embedded default after {start['first_step_seconds']:.1f} s")
            for second, line in start["lines"]:
                console.print(f"  {second:6.1f} s  {line}", soft_wrap=True, markup=False)
    results.save()


def _commands() -> dict[str, list[str]]:
    files = {name: f"recipes/{name}.py" for name in recipes()}
    files |= {name: f"tools/{name}.py" for name in (*TOOLS, *STUDIES) if name != "launch"}
    python = {name: [sys.executable, str(ROOT / file)] for name, file in files.items()}
    solopo = [sys.executable, "-m", "solopo_nemo"]
    return {"solopo": solopo, "solopo launch": [*solopo, "launch"]} | python


def _seconds(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began


def first_step() -> dict[str, Any]:
    """Start the embedded default in a new folder, and kill it after its first step.

    Raises:
        MeasurementError: the command ends before its first step, or the timeout expires.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        command = [sys.executable, str(ROOT / "recipes" / "solo_dpo.py"), f"output_dir={folder}/run"]
        began = time.perf_counter()
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment.without_ranks(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        lines: list[tuple[float, str]] = []
        reader = threading.Thread(target=_read, args=(process, began, lines), daemon=True)
        reader.start()
        metrics = Path(folder, "run", "metrics.jsonl")
        try:
            while not (metrics.is_file() and metrics.read_text().count("\n")):
                if process.poll() is not None or time.perf_counter() - began > PATIENCE:
                    raise MeasurementError(f"no first step: {lines[-1][1] if lines else 'no output'}")
                time.sleep(0.02)
            seconds = time.perf_counter() - began
        finally:
            _kill(process)
        reader.join()
    return {"first_step_seconds": round(seconds, 2), "lines": lines}


def _read(process: subprocess.Popen[str], began: float, lines: list[tuple[float, str]]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        lines.append((round(time.perf_counter() - began, 2), line.rstrip()))


def _kill(process: subprocess.Popen[str]) -> None:
    """Kill the command and its ranks, which have their own process groups."""
    import psutil

    children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    for child in children:
        child.kill()
    process.kill()
    process.wait()


def _arguments() -> argparse.Namespace:
    parser = cli.ArgumentParser(__doc__)
    option = parser.options()
    option("--repeats N", "of each --help", 5, type=cli.positive_count)
    option("--starts N", "of the training, after one that is not measured", 2, type=cli.positive_count)
    option("--out FILE", "results", RESULTS / "startup.json")
    return parser.parse_args()


if __name__ == "__main__":
    cli.run(main)
