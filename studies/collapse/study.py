"""The whole study: starting model, pairs, measurements, map; each finished part is found again by the next start."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from solopo_nemo.runtime.errors import UserError
from solopo_nemo.runtime.output import atomic_text
from studies.collapse.cells import FIRST, FREE, GAPS, HIGHER, QUESTIONS, RATES, SHORT, Cell, cells
from studies.collapse.measured import Replay, StartFacts, measure_start, replay
from studies.collapse.outcome import Outcome, outcome_file, read_outcome, run_cell
from studies.reproduction.pairs import PairPlan
from studies.reproduction.pool import Done, Job, Pool, open_pool
from studies.reproduction.runs import LENGTHS
from studies.reproduction.schedule import Ground
from studies.reproduction.scoring import score_model

REPLAYS = (
    ("dpo", FREE, 8), ("dpo", SHORT, 8), ("orpo", FREE, 8),
    ("dpo", FREE, 2), ("dpo", SHORT, 2), ("dpo", HIGHER, 2),
)  # fmt: skip
"""Objectives, forms and gaps whose gradients are taken apart."""

_MEASURED_SECONDS = 30.0


@dataclass(frozen=True)
class Study:
    """Everything that the page is made of.

    Attributes:
        seeds: of the map.
        planned: cells of the whole map.
        base: right answers and questions of the starting model by context length, over the seeds.
        facts: of the starting model, by gap.
        replays: gradients taken apart.
        outcomes: of the map, as far as it has been run.
    """

    seeds: int
    planned: int
    base: dict[int, tuple[int, int]]
    facts: dict[int, StartFacts]
    replays: list[Replay]
    outcomes: list[Outcome]

    def save(self, path: Path) -> None:
        """Write it as JSON, a line an outcome."""
        head = {
            "seeds": self.seeds,
            "planned": self.planned,
            "base": self.base,
            "facts": [asdict(facts) for facts in self.facts.values()],
            "replays": [replay.as_json() for replay in self.replays],
        }
        lines = ",\n".join(json.dumps(outcome.as_json()) for outcome in self.outcomes)
        with atomic_text(path) as stream:
            stream.write(f"{json.dumps(head)[:-1]},\n" + f'"outcomes": [\n{lines}\n]}}\n')

    @classmethod
    def read(cls, path: Path) -> Study:
        """Read what :meth:`save` wrote.

        Raises:
            UserError: there is no such file, or it is something else.
        """
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            facts = [StartFacts(**row) for row in values["facts"]]
            return cls(
                seeds=values["seeds"],
                planned=values["planned"],
                base={int(length): (right, asked) for length, (right, asked) in values["base"].items()},
                facts={row.gap: row for row in facts},
                replays=[Replay.from_json(row) for row in values["replays"]],
                outcomes=[Outcome.from_json(row) for row in values["outcomes"]],
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: not the results of this study ({error})") from None


def missing_cells(planned: Sequence[Cell], work: Path) -> list[Cell]:
    """The cells that have not been run."""
    return [cell for cell in planned if not outcome_file(cell, work / "collapse").is_file()]


def run_study(work: Path, seeds: int, workers: int, rates: Sequence[float] = RATES, seconds: float = math.inf) -> Study:
    """Run what has not been run yet.

    Args:
        work: folder of everything that is made on the way.
        seeds: of the map.
        workers: processes, of one thread each.
        rates: learning rates of the map.
        seconds: begin no cell after so long.

    Returns:
        The study, of all cells that are there.

    Raises:
        RunFault: something failed; the rest has been done, and the same call goes on from there.
    """
    until, folder = time.monotonic() + seconds, work / "collapse"
    planned = list(cells(seeds, tuple(rates)))
    ground = Ground(work, list(dict.fromkeys(cell.pairs for cell in planned)))
    missing = missing_cells(planned, work)
    finished = len(planned) - len(missing)

    def tell(name: str, done: Done) -> str:
        nonlocal finished
        finished += 1
        asked = done.value.questions
        found = f"short {100 * done.value.short / asked:.0f}, long {100 * done.value.long / asked:.0f}"
        return f"{finished}/{len(planned)} {name}: {found} ({done.seconds:.0f} s)"

    with open_pool(workers, work / "logs") as pool:
        ground.prepare(pool)
        facts, replays, base = _measure(pool, ground, seeds)
        jobs = [
            Job(cell.name, run_cell, (cell, ground.start, ground.pairs(cell.pairs), folder), cell.seconds)
            for cell in missing
        ]
        pool.run("runs", jobs, tell, until)
    files = [outcome_file(cell, folder) for cell in planned]
    return Study(seeds, len(planned), base, facts, replays, [read_outcome(file) for file in files if file.is_file()])


def _measure(
    pool: Pool, ground: Ground, seeds: int
) -> tuple[dict[int, StartFacts], list[Replay], dict[int, tuple[int, int]]]:
    """What is known of the starting model before any run; each measurement is kept as a file of JSON."""
    folder, start = ground.folder / "collapse" / "start", ground.start.hf
    pairs = {gap: ground.pairs(PairPlan("short", FIRST, long=gap)) for gap in GAPS}
    measured = {f"facts-{gap}x": (measure_start, start, pairs[gap], gap) for gap in GAPS}
    taken = {
        f"replay-{name}-{form}-{gap}x": (replay, start, pairs[gap], name, form, gap) for name, form, gap in REPLAYS
    }
    scored = {f"base-{seed}": (_score_base, start, seed) for seed in range(FIRST, FIRST + seeds)}
    files = {name: folder / f"{name}.json" for name in (*measured, *taken, *scored)}
    jobs = [
        Job(name, _keep, (files[name], *call), _MEASURED_SECONDS)
        for name, call in (measured | taken | scored).items()
        if not files[name].is_file()
    ]
    pool.run("measuring the starting model", jobs)
    kept = {name: json.loads(file.read_text(encoding="utf-8")) for name, file in files.items()}
    facts = [StartFacts(**kept[name]) for name in measured]
    base = {
        length: (sum(kept[name]["right"][i] for name in scored), QUESTIONS * seeds) for i, length in enumerate(LENGTHS)
    }
    return {row.gap: row for row in facts}, [Replay.from_json(kept[name]) for name in taken], base


@dataclass(frozen=True)
class _Base:
    """Right answers of the starting model, by length."""

    right: list[int]


def _score_base(start: Path, seed: int) -> _Base:
    return _Base([int(score.outcomes().sum()) for score in score_model(start, LENGTHS, QUESTIONS, seed)])


def _keep(file: Path, measure: Callable[..., Any], *arguments: Any) -> None:
    with atomic_text(file) as stream:
        stream.write(json.dumps(asdict(measure(*arguments))) + "\n")
