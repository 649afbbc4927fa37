"""The subcommands of ``tools/benchmark.py``, given their specifications."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from solopo_nemo.pages.tables import Table
from studies.benchmarks.agreement import check_agreement
from studies.benchmarks.head import HeadSpec, measure_head
from studies.benchmarks.longest import find_longest
from studies.benchmarks.peer import make_peer
from studies.benchmarks.results import Spread, peak_gib, step_seconds
from studies.benchmarks.session import Session
from studies.benchmarks.spec import PEERS, Spec, StepSpec
from studies.benchmarks.startup import measure_start, start_specs
from studies.benchmarks.step import check, measure_step
from studies.results import Results

_LOG_WIDTH = 120


@dataclass(frozen=True)
class Places:
    """The paths of a benchmark.

    Attributes:
        out: JSON file of the results.
        work: folder of models, samples and scratch files.
        peer: virtual environment of the peer.
        again: True to repeat the runs that the file contains.
    """

    out: Path
    work: Path
    peer: Path
    again: bool = False

    def session(self, benchmark: str, command: str, measure: Callable[[Any], dict[str, Any]]) -> Session:
        """A session that stores its runs in the file."""
        return Session(Results.open(self.out, benchmark=benchmark), command, measure, self.again)

    def steps(self, benchmark: str, command: str, specs: Iterable[StepSpec]) -> Session:
        """A session of training steps. All specifications are checked first.

        Raises:
            UserError: a specification is invalid, or the peer's environment cannot be created.
        """
        systems = set()
        for spec in specs:
            check(spec)
            systems.add(spec.system)
        session = self.session(benchmark, command, lambda spec: measure_step(spec, self.work, python))
        python = make_peer(self.peer) if systems & set(PEERS) else None
        return session


def measure_steps(
    benchmark: str, groups: Sequence[Sequence[StepSpec]], repeats: int, places: Places, command: str
) -> list[dict[str, Any]]:
    """Measure training steps. The specifications of a group alternate.

    Raises:
        Disagreement: a peer computes different values.
    """
    specs = [spec for group in groups for spec in group]
    session = places.steps(benchmark, command, specs)
    session.run_rounds(groups, repeats)
    worst = check_agreement(session.results.runs)
    if not math.isnan(worst):
        _say(f"loss and log-probabilities of TRL and of long_po differ by at most {worst:.1e} at the first step")
    return _summary(session, specs, repeats)


def search_longest(
    specs: Sequence[StepSpec], budget: float, unit: int, places: Places, command: str
) -> list[dict[str, Any]]:
    """Search for the longest prompt within a memory budget, for each specification.

    Args:
        specs: specifications; ``long`` is the first length to try.
        budget: GiB per rank above the loaded model.
        unit: lengths are multiples of this number.
        places: see :class:`Places`.
        command: see :class:`Session`.
    """
    session = places.steps("memory", command, specs)
    found = []
    for spec in specs:

        def peak_of(long: int, spec: StepSpec = spec) -> float:
            at = dataclasses.replace(spec, long=long)
            _say(f"{at.label()} ...")
            peak = peak_gib(session.run(at))
            _say(f"{at.label()}: {peak:.3f} GiB of {budget:g}")
            return peak

        longest = find_longest(peak_of, budget, spec.long, unit)
        found.append({"what": dataclasses.replace(spec, long=longest.fits).label(), **dataclasses.asdict(longest)})
        _say(f"{spec.system}: {longest.fits:,} tokens fit, {longest.exceeds:,} do not")
    return found


def measure_heads(specs: Sequence[HeadSpec], repeats: int, places: Places, command: str) -> list[dict[str, Any]]:
    """Measure the heads without a model."""
    session = places.session("head", command, lambda spec: measure_head(spec, places.work))
    session.run_rounds([[spec] for spec in specs], repeats)
    return _summary(session, specs, repeats)


def measure_starts(repeats: int, places: Places, command: str) -> list[dict[str, Any]]:
    """Measure the starts of all commands."""
    session, specs = places.session("startup", command, measure_start), start_specs()
    session.run_rounds([specs], repeats)
    found = {spec.label(): Spread.of(step_seconds(session.run(spec, n)) for n in range(repeats)) for spec in specs}
    return [{"what": label, "seconds": dataclasses.asdict(seconds)} for label, seconds in found.items()]


def _summary(session: Session, specs: Sequence[Spec], repeats: int) -> list[dict[str, Any]]:
    """Print medians and extremes over the rounds as a table, and return them as JSON data."""
    rows, summary = [], []
    for spec in dict.fromkeys(specs):
        runs = [run for n in range(repeats) if (run := session.find(spec, n)) and "skipped" not in run]
        if not runs:
            continue
        seconds, peak = Spread.of(map(step_seconds, runs)), Spread.of(map(peak_gib, runs))
        numbers = [f"{value:.3f}" for spread in (seconds, peak) for value in (spread.median, spread.low, spread.high)]
        rows.append((spec.label(), str(len(runs)), *numbers))
        spreads = {"seconds": dataclasses.asdict(seconds), "peak_gib": dataclasses.asdict(peak)}
        summary.append({"what": spec.label(), **spreads})
    console = Console(stderr=True)
    if not console.is_terminal:
        console.width = _LOG_WIDTH
    console.print(Table(("", "rounds", "seconds a step", "min", "max", "peak (GiB)", "min", "max"), rows).terminal())
    return summary


def _say(message: str) -> None:
    Console(stderr=True).print(message, highlight=False, soft_wrap=True)
