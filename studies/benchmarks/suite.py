"""The benchmark suite of ``docs/performance.md``: its entries, and their execution."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from solopo_nemo.runtime.errors import UserError
from studies.paths import DOCS
from studies.results import read_yaml

SUITE = Path(__file__).with_name("performance.yaml")
RESULTS = DOCS / "performance"
DOCUMENT = DOCS / "performance.md"


def read_suite(path: Path) -> dict[str, dict[str, str]]:
    """Read a suite: device (``cpu``, ``gpu``) -> name of the entry -> its arguments.

    Raises:
        UserError: the file is missing or is not a suite.
    """
    values = read_yaml(path)
    devices = {"cpu", "gpu"}
    if not set(values) <= devices or not all(isinstance(entries, dict) for entries in values.values()):
        raise UserError(f"{path}: must map cpu and gpu to entries, each a name and the arguments of tools/benchmark.py")
    return {device: dict(values.get(device) or {}) for device in devices}


def run_suite(
    path: Path, results: Path, only: Sequence[str] | None, measure: Callable[[Sequence[str], Path], int]
) -> None:
    """Run the entries for the device of this machine, one after the other. Finished runs are not repeated.

    Args:
        path: file of the suite.
        results: folder of the JSON files, one for each entry.
        only: names of entries; None for all.
        measure: runs the arguments of an entry, writes the results to a file, and returns the exit code.

    Raises:
        UserError: a name is unknown, or an entry failed (the other entries have run).
    """
    import torch

    entries = read_suite(path)["gpu" if torch.cuda.is_available() else "cpu"]
    unknown = sorted(set(only or ()) - set(entries))
    if unknown:
        raise UserError(f"--only {','.join(unknown)}: {path} has {', '.join(entries)}")
    console, failed = Console(stderr=True), []
    for name in only or entries:
        console.print(f"[bold]{name}[/bold]: {entries[name]}", highlight=False)
        if measure(shlex.split(entries[name]), results / f"{name}.json"):
            failed.append(name)
    if failed:
        raise UserError(f"{path}: failed: {', '.join(failed)} (messages above); the same command goes on from here")
