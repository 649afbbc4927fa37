"""Results on disk: one JSON file a benchmark, a run a line; what is there is not measured again."""

from __future__ import annotations

import json
import statistics
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from solopo_nemo.runtime.errors import UserError
from solopo_nemo.runtime.output import atomic_text
from studies.benchmarks.spec import GIB

Run = dict[str, Any]
"""One run of a specification: ``key``, ``spec``, ``round``, ``command``, ``revision`` and what was measured."""


class Spec(Protocol):
    """What can be measured."""

    def as_json(self) -> dict[str, Any]:
        """Plain data."""

    def key(self) -> str:
        """A short name that is the same for the same measurement."""

    def label(self) -> str:
        """The same in a few words, for messages."""


@dataclass
class Results:
    """The runs of one benchmark.

    Attributes:
        path: the file.
        benchmark: subcommand of ``tools/benchmark.py``.
        runs: what has been measured.
    """

    path: Path
    benchmark: str
    runs: list[Run] = field(default_factory=list)

    @classmethod
    def open(cls, path: Path, benchmark: str) -> Results:
        """What a file holds; nothing where there is none.

        Raises:
            UserError: the file is something else.
        """
        if not path.is_file():
            return cls(path, benchmark)
        found = cls.read(path)
        if found.benchmark != benchmark:
            raise UserError(f"{path}: holds results of {found.benchmark!r}, not {benchmark!r}: give another --out")
        return found

    @classmethod
    def read(cls, path: Path) -> Results:
        """What a file holds.

        Raises:
            UserError: it is no file of results.
        """
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            return cls(path, values["benchmark"], values["runs"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path}: not a result of tools/benchmark.py ({type(error).__name__}: {error}): move it away"
            ) from None

    def find(self, spec: Spec, number: int) -> Run | None:
        """The run of a specification in a round, if it has been measured."""
        key = spec.key()
        return next((run for run in self.runs if run["key"] == key and run["round"] == number), None)

    def add(self, spec: Spec, number: int, command: str, measured: dict[str, Any]) -> Run:
        """Keep a run, on disk too; it replaces the one of the same specification and round."""
        run = {"key": spec.key(), "round": number, "command": command, "revision": revision(), **measured}
        self.runs = [r for r in self.runs if (r["key"], r["round"]) != (run["key"], number)]
        self.runs.append(run)
        self.save()
        return run

    def save(self) -> None:
        """Write the file, one run a line."""
        lines = ",\n".join(json.dumps(run) for run in self.runs)
        with atomic_text(self.path) as stream:
            stream.write(f'{{"benchmark": {json.dumps(self.benchmark)}, "runs": [\n{lines}\n]}}\n')


def revision() -> str | None:
    """The commit that is measured, with a plus sign where files differ from it; None outside a git checkout."""
    root = Path(__file__).resolve().parents[2]

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "solopo_nemo", "conf", "recipes")
        return git("rev-parse", "--short=10", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


@dataclass(frozen=True)
class Spread:
    """Median and extremes of repeated values."""

    median: float
    low: float
    high: float
    count: int

    def over(self, divisor: float) -> Spread:
        """Every value divided by a number."""
        return Spread(self.median / divisor, self.low / divisor, self.high / divisor, self.count)

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Of at least one value."""
        found = list(values)
        return cls(statistics.median(found), min(found), max(found), len(found))


def step_seconds(run: Run) -> float:
    """Seconds of a step: the median over the steps after the first, which allocates and warms up."""
    return statistics.median(run["seconds"][1:] or run["seconds"])


def peak_gib(run: Run) -> float:
    """Peak memory of the rank that needs most, GiB above the loaded model."""
    return float(max(run["peak_bytes"])) / GIB


def ratio(above: Iterable[Run], below: Iterable[Run], value: Callable[[Run], float]) -> Spread | None:
    """A value of one specification over another's, round by round; None where no round has both."""
    first, second = ({run["round"]: value(run) for run in runs} for runs in (above, below))
    shared = sorted(first.keys() & second.keys())
    return Spread.of(first[number] / second[number] for number in shared) if shared else None
