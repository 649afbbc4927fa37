"""The runs of the study: starting model, pairs, measurements and map. Finished parts are reused."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from solopo_nemo.training.report.rows import read_metrics
from studies.collapse.cells import FIRST, FREE, GAPS, HIGHER, QUESTIONS, RATES, SHORT, Cell, Outcome, cells
from studies.collapse.start import measure_start, replay
from studies.pool import Done, Job, Pool
from studies.reproduction.pairs import PairPlan
from studies.reproduction.runs import LENGTHS, run_method
from studies.reproduction.schedule import Ground
from studies.reproduction.scoring import score_model
from studies.reproduction.start import Start
from studies.results import Results, Run

CURVES = ("logps/chosen", "logps/chosen_long", "align/gap", "rewards/margin")
REPLAYS = (
    ("dpo", FREE, 8), ("dpo", SHORT, 8), ("orpo", FREE, 8),
    ("dpo", FREE, 2), ("dpo", SHORT, 2), ("dpo", HIGHER, 2),
)  # fmt: skip
"""Objectives, forms and gaps of the replays with decomposed gradients."""
_MEASURED_SECONDS = 30.0


def outcome_file(cell: Cell, work: Path) -> Path:
    """The results file of a cell."""
    return work / "collapse" / f"{cell.name}.json"


def missing_cells(planned: Sequence[Cell], work: Path) -> list[Cell]:
    """The cells without a results file."""
    return [cell for cell in planned if not outcome_file(cell, work).is_file()]


def run_study(
    kept: Path, work: Path, seeds: int, workers: int, rates: Sequence[float] = RATES, seconds: float = math.inf
) -> None:
    """Run the missing cells, and write the results of all finished cells.

    Args:
        kept: results file.
        work: folder of the starting model, the pairs and the runs.
        seeds: number of seeds of the map.
        workers: number of processes with one thread each.
        rates: learning rates of the map.
        seconds: time limit after which no new cell starts.

    Raises:
        RunFault: a job failed. The other jobs are finished; the same call resumes from there.
    """
    until, planned = time.monotonic() + seconds, list(cells(seeds, tuple(rates)))
    ground = Ground(work, list(dict.fromkeys(cell.pairs for cell in planned)))
    missing = missing_cells(planned, work)
    finished = len(planned) - len(missing)

    def tell(name: str, done: Done) -> str:
        nonlocal finished
        finished += 1
        asked = done.value.questions
        found = f"short {100 * done.value.short / asked:.0f}, long {100 * done.value.long / asked:.0f}"
        return f"{finished}/{len(planned)} {name}: {found} ({done.seconds:.0f} s)"

    pool = Pool(workers, work / "logs")
    ground.prepare(pool)
    about = {"seeds": seeds, "planned": len(planned), **_measure(pool, ground, seeds)}
    jobs = [
        Job(cell.name, run_cell, (cell, ground.start, ground.pairs(cell.pairs), work), cell.seconds) for cell in missing
    ]
    pool.run("runs", jobs, tell, until)
    files = [outcome_file(cell, work) for cell in planned]
    Results(kept, about, [run for file in files if file.is_file() for run in Results.read(file).runs]).save()


def run_cell(cell: Cell, start: Start, pairs: Path, work: Path) -> Outcome:
    """Train and score a cell, and write its outcome to its file.

    Args:
        cell: cell to run.
        start: starting model.
        pairs: triplets of the cell's gap and seed.
        work: folder of the study.
    """
    own = outcome_file(cell, work).with_suffix("")
    shutil.rmtree(own, ignore_errors=True)
    result = run_method(cell.run(), start, pairs, own, keep=True)
    rows = read_metrics(own / "run" / "metrics.jsonl")
    alpha = cell.alpha
    if isinstance(alpha, str):
        alpha = json.loads((own / "run" / "alpha.json").read_text(encoding="utf-8"))["alpha"]
    short, long = (int(result.score(length).outcomes().sum()) for length in (1, cell.gap))
    curves = {name: [float(f"{row[name]:.4g}") for row in rows] for name in CURVES if name in rows[0]}
    outcome = Outcome(cell, float(alpha), cell.run().questions, short, long, curves)
    Results(outcome_file(cell, work), {}, [asdict(outcome)]).save()
    shutil.rmtree(own)
    return outcome


def _measure(pool: Pool, ground: Ground, seeds: int) -> dict[str, Any]:
    """Measurements of the starting model. Each measurement is stored in a file and reused."""
    folder, start = ground.folder / "collapse" / "start", ground.start.hf
    pairs = {gap: ground.pairs(PairPlan("short", FIRST, long=gap)) for gap in GAPS}
    stages: dict[str, dict[str, tuple[Any, ...]]] = {
        "facts": {f"facts-{gap}x": (measure_start, start, pairs[gap], gap) for gap in GAPS},
        "replays": {f"replay-{n}-{form}-{gap}x": (replay, start, pairs[gap], n, form, gap) for n, form, gap in REPLAYS},
        "base": {f"base-{seed}": (_score_base, start, seed) for seed in range(FIRST, FIRST + seeds)},
    }
    jobs = [
        Job(name, _keep, (folder / f"{name}.json", *call), _MEASURED_SECONDS)
        for calls in stages.values()
        for name, call in calls.items()
        if not (folder / f"{name}.json").is_file()
    ]
    pool.run("measuring the starting model", jobs)
    found = {
        stage: [Results.read(folder / f"{name}.json").runs[0] for name in calls] for stage, calls in stages.items()
    }
    right = {str(length): sum(run["right"][i] for run in found["base"]) for i, length in enumerate(LENGTHS)}
    base = {length: (count, QUESTIONS * seeds) for length, count in right.items()}
    return {"base": base, "facts": found["facts"], "replays": found["replays"]}


def _score_base(start: Path, seed: int) -> Run:
    """Number of right answers of the starting model for each length."""
    return {"right": [int(score.outcomes().sum()) for score in score_model(start, LENGTHS, QUESTIONS, seed)]}


def _keep(file: Path, measure: Callable[..., Any], *arguments: Any) -> None:
    value = measure(*arguments)
    Results(file, {}, [asdict(value) if is_dataclass(value) and not isinstance(value, type) else value]).save()
