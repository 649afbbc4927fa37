"""Results of all studies with chosen accuracies, without training."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from studies.reproduction.collected import Collected
from studies.reproduction.runs import Result
from studies.reproduction.scoring import DEPTHS, Score
from studies.reproduction.study import Size, all_cells

Accuracy = Callable[[str, int], float]
"""Of a method (its family: `solo`, `solo-both`, `long`, ...) at a length."""
QUESTIONS = 512
ABOUT = {
    "machine": {"processor": "a processor", "cores": 2, "memory_gib": 24},
    "versions": {"torch": "2"},
    "revision": "abc",
    "size": {"seeds": 3, "steps": 10, "questions": QUESTIONS, "pairs": 8},
    "seconds": {"start": 60.0},
    "cores": 2,
}


def score(length: int, accuracy: float, random: np.random.Generator) -> Score:
    right = random.random(QUESTIONS) < accuracy
    depths = [[int(part.sum()), len(part)] for part in np.array_split(right, DEPTHS)]
    return Score(length, 64 * length, QUESTIONS, np.packbits(right).tobytes().hex(), depths)


def collected(accuracy: Accuracy, seconds: Callable[[str], float] = lambda family: 10.0) -> Collected:
    """Three seeds of every cell; seconds of a training by its family."""
    runs: dict[str, dict[str, list[Result]]] = {}
    for cell in all_cells(Size()):
        random = np.random.default_rng([cell.seed, *cell.name.encode()])
        family = "-".join(word for word in cell.name.split("-") if word not in ("dpo", "simpo", "orpo"))
        lengths = cell.run.lengths if cell.run else (1, 2, 4, 8, 16)
        margin = 2.0 if "both" in family else 5.0
        result = Result(
            method=cell.run.method.name if cell.run else "base",
            seed=cell.seed,
            recipe=cell.run.method.recipe if cell.run else "",
            arguments=[],
            scores=[score(length, accuracy(family, length), random) for length in lengths],
            steps=10,
            seconds=seconds(family) + 0.1 * cell.seed,
            tokens=1000,
            tokens_long=500,
            peak_gib=0.2,
            flops=6e8 if family.startswith("solo") else 1e9,
            wall=20.0,
            curves={"step": [1, 10], "rewards/margin": [0.0, margin + 0.1 * cell.seed], "logps/rejected": [-5.0, -9.0]},
        )
        runs.setdefault(cell.study, {}).setdefault(cell.name, []).append(result)
    return Collected(runs, ABOUT)
