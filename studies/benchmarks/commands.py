"""What the subcommands of ``tools/benchmark.py`` do, once their specifications are made."""

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
from studies.benchmarks.step import check, measure_step
from studies.results import Results

_LOG_WIDTH = 120


@dataclass(frozen=True)
class Places:
    """Where a benchmark reads and writes.

    Attributes:
        out: its JSON file.
        work: models, samples and scratch files.
        peer: the peer's virtual environment.
        again: measure what the file has, too.
    """

    out: Path
    work: Path
    peer: Path
    again: bool = False

    def session(self, benchmark: str, command: str, measure: Callable[[Any], dict[str, Any]]) -> Session:
        """A session whose runs go into the file."""
        return Session(Results.open(self.out, benchmark=benchmark), command, measure, self.again)

    def steps(self, benchmark: str, command: str, specs: Iterable[StepSpec]) -> Session:
        """A session of training steps, once everything that can be checked is checked.

        Raises:
            UserError: a specification that cannot be run, or no peer.
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
    """Training steps, each group of specifications alternating.

    Raises:
        Disagreement: a peer computes something else.
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
    """The longest prompt within a budget, for each specification (whose ``long`` is the first length tried).

    Args:
        specs: what to search for.
        budget: GiB a rank above the loaded model.
        unit: lengths are multiples of this.
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
    """The heads alone."""
    session = places.session("head", command, lambda spec: measure_head(spec, places.work))
    session.run_rounds([[spec] for spec in specs], repeats)
    return _summary(session, specs, repeats)


def _summary(session: Session, specs: Sequence[Spec], repeats: int) -> list[dict[str, Any]]:
    """Medians and extremes over the rounds, as a table and as JSON data."""
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
