"""The results file of the studies (common values, then one run per line), and provenance of results."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from solopo_nemo.runtime.errors import UserError
from solopo_nemo.runtime.output import atomic_text
from studies.paths import ROOT

LIBRARIES = ("torch", "megatron-core", "nemo-toolkit", "lightning", "transformers")

T = TypeVar("T")
Run = dict[str, Any]
"""The result of one run, as plain JSON values."""


@dataclass
class Results:
    """A results file.

    Attributes:
        path: path of the file.
        about: values that all runs share.
        runs: results of the runs.
    """

    path: Path
    about: dict[str, Any]
    runs: list[Run] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> Results:
        """Read a file that :meth:`save` wrote.

        Raises:
            UserError: the file is missing or is not a results file.
        """

        def load() -> Results:
            about = json.loads(path.read_text(encoding="utf-8"))
            return cls(path, about, about.pop("runs"))

        return _read_as(path, load)

    def parse(self, make: Callable[[Results], T]) -> T:
        """Convert these results with ``make``.

        Raises:
            UserError: ``make`` fails because the results have another format.
        """
        return _read_as(self.path, lambda: make(self))

    @classmethod
    def open(cls, path: Path, **about: Any) -> Results:
        """Open a file to add runs to it. A missing file yields empty results.

        Raises:
            UserError: the file has other values of ``about``.
        """
        if not path.is_file():
            return cls(path, about)
        found = cls.read(path)
        for key, value in about.items():
            if (there := found.about.get(key)) != value:
                raise UserError(f"{path}: holds results of {key} {there!r}, not {value!r}: give another --out")
        return found

    def save(self) -> None:
        """Write the file atomically."""
        head = json.dumps(self.about)[:-1] + (", " if self.about else "")
        lines = ",\n".join(json.dumps(run) for run in self.runs)
        with atomic_text(self.path) as stream:
            stream.write(f'{head}"runs": [\n{lines}\n]}}\n')


def _read_as(path: Path, read: Callable[[], T]) -> T:
    try:
        return read()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(f"{path}: no file of such results ({type(error).__name__}: {error}): move it away") from None


def read_yaml(path: Path, missing: dict[str, Any] | None = None) -> dict[str, Any]:
    """Read a mapping from a YAML file.

    Args:
        path: path of the file.
        missing: default for a missing file; None makes a missing file an error.

    Raises:
        UserError: the file is missing, cannot be read, or is not a mapping.
    """
    import yaml  # not installed on every machine that measures

    if missing is not None and not path.is_file():
        return missing
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read ({' '.join(str(error).split())})") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: must be a mapping")
    return values


def machine() -> dict[str, Any]:
    """Processor, cores, memory and GPU of this machine."""
    import torch

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    found = {"processor": _processor(), "cores": os.cpu_count(), "memory_gib": round(memory / 2**30, 1)}
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name(0)
    return found


def versions() -> dict[str, str]:
    """Versions of the main libraries and of Python."""
    return {name: version(name) for name in LIBRARIES} | {"python": platform.python_version()}


def revision() -> str | None:
    """The current commit, with a plus sign if files are modified; None outside a git checkout."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "solopo_nemo", "conf", "recipes")
        return git("rev-parse", "--short=10", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.is_file() else ():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
