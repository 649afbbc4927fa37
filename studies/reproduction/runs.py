"""Training of one method with its recipe in a separate process, and scoring. Finished results are read from disk."""

from __future__ import annotations

import os
import resource
import shutil
import socket
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from solopo_nemo.runtime.errors import RunFault
from solopo_nemo.runtime.isolated import Progress, run_isolated
from studies.reproduction.ground import MINIATURE, Ground
from studies.reproduction.methods import LEARNING_RATE, SHARED, Method
from studies.reproduction.scoring import Score, score_model
from studies.reproduction.start import Start
from studies.reproduction.world import LONG
from studies.results import Results

LENGTHS = (1, 2, 4, 8, 16)
QUESTIONS = 512
STEPS = 150
BASE = "base"
"""Name of the starting model among the methods."""
CURVES = ("loss", "rewards/margin", "logps/chosen", "logps/rejected", "align/gap", "grad_norm")
"""Metrics that a result stores if the run has them."""
CURVE_EVERY = 5


@dataclass(frozen=True)
class Run:
    """One training and its scoring.

    Attributes:
        method: the method.
        seed: seed of the pairs, of the order of the samples and of the evaluation questions.
        overrides: overrides of the recipe, after those of the method.
        long: length of the long prompts as a multiple of the short ones.
        steps: optimizer steps.
        lengths: context lengths to score, as multiples of the short one.
        questions: questions per length.
        ground: what it is trained and scored on.
    """

    method: Method
    seed: int
    overrides: tuple[str, ...] = ()
    long: int = LONG
    steps: int = STEPS
    lengths: tuple[int, ...] = LENGTHS
    questions: int = QUESTIONS
    ground: Ground = MINIATURE

    def arguments(self, start: Path, pairs: Path, output: Path) -> list[str]:
        """The arguments of the recipe.

        Args:
            start: value of `model.init`, a NeMo checkpoint or a Hugging Face folder.
            pairs: value of `data.train`.
            output: value of `output_dir`.
        """
        return [
            *SHARED,
            f"model.init={start}",
            f"data.train={pairs}",
            f"output_dir={output}",
            f"optim.lr={LEARNING_RATE:g}",
            f"trainer.max_steps={self.steps}",
            f"trainer.seed={1000 + self.seed}",
            *self.method.overrides,
            *self.overrides,
        ]


@dataclass(frozen=True)
class Result:
    """The result of a run.

    Attributes:
        method: name of the method.
        seed: seed; see :class:`Run`.
        recipe: name of the recipe; empty for the starting model.
        arguments: arguments of the recipe, without paths.
        scores: one score per length.
        steps: number of training steps.
        seconds: training time: mean step time without the first (warm-up) step, times the number of steps.
        tokens: tokens of the policy over all steps.
        tokens_long: tokens of sequences with long prompts, over all steps.
        peak_gib: peak memory of the process above its memory before the run, in GiB.
        flops: FLOPs of a sample, forward and backward, by the cost model of ``solopo_nemo.planning``.
        wall: seconds of preparation, training, export and scoring.
        curves: name -> metric at every fifth step, including ``step``.
    """

    method: str
    seed: int
    recipe: str
    arguments: list[str]
    scores: list[Score]
    steps: int = 0
    seconds: float = 0.0
    tokens: int = 0
    tokens_long: int = 0
    peak_gib: float = 0.0
    flops: float = 0.0
    wall: float = 0.0
    curves: dict[str, list[float]] = field(default_factory=dict)

    def accuracy(self, length: int) -> float:
        """Share of right answers at a length."""
        return float(self.score(length).outcomes().mean())

    def score(self, length: int) -> Score:
        """The score at a length."""
        return next(score for score in self.scores if score.length == length)

    def save(self, path: Path) -> None:
        """Write the result to a file."""
        Results(path, {}, [asdict(self)]).save()

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Result:
        """Create a result from plain JSON values."""
        return cls(**{**values, "scores": [Score(**score) for score in values["scores"]]})

    @classmethod
    def read(cls, path: Path) -> Result:
        """Read a file that :meth:`save` wrote.

        Raises:
            UserError: the file has another format.
        """
        return Results.read(path).parse(lambda results: cls.from_json(results.runs[0]))


def run_method(run: Run, start: Start, pairs: Path, folder: Path, keep: bool = False) -> Result:
    """Train with the recipe as on its command line, and score the exported policy.

    The rank and the conversions are separate processes, which :func:`studies.pool.prepare_worker` makes start fast.

    Args:
        run: the training.
        start: the starting model.
        pairs: triplets, sampled on the side of the method.
        folder: folder of the run. If it contains `result.json`, that result is returned.
        keep: keep the checkpoints and the policy in the folder.

    Raises:
        RunFault: the recipe failed.
    """
    found = folder / "result.json"
    if found.is_file():
        return Result.read(found)
    from solopo_nemo.training.launch import run_recipe
    from solopo_nemo.training.report.rows import read_metrics

    began = time.monotonic()
    output = folder / "run"
    shutil.rmtree(output, ignore_errors=True)
    arguments = run.arguments(start.nemo, pairs, output)
    started_with = 0.0

    def one_rank(count: int, _: Path) -> int:
        nonlocal started_with
        what = f"{run.method.name}, seed {run.seed}"
        code, started_with = run_isolated(what, _rank, run.method.recipe, arguments, output)
        return code

    if code := run_recipe(run.method.recipe, arguments, start=one_rank):
        raise RunFault(f"{run.method.name}, seed {run.seed}: the recipe ended with code {code} ({output / 'logs'})")
    rows = read_metrics(output / "metrics.jsonl")
    scores = run.ground.score(output / "hf", run.lengths, run.questions, run.seed)
    later = rows[1:] or rows
    result = Result(
        method=run.method.name,
        seed=run.seed,
        recipe=run.method.recipe,
        arguments=[word for word in arguments if not word.startswith(("model.init=", "data.train=", "output_dir="))],
        scores=scores,
        steps=len(rows),
        seconds=sum(row["seconds"] for row in later) / len(later) * len(rows),
        tokens=sum(row["tokens"] for row in rows),
        tokens_long=sum(row["tokens_long"] for row in rows),
        peak_gib=rows[-1]["peak_memory_gib"] - started_with,
        flops=sample_flops(run, start),
        wall=time.monotonic() - began,
        curves=_curves(rows),
    )
    result.save(found)
    if not keep:
        shutil.rmtree(output, ignore_errors=True)
    return result


def score_start(start: Start, seed: int, questions: int, folder: Path) -> Result:
    """Score the starting model on the questions of a seed. A stored result is reused."""
    found = folder / "result.json"
    if not found.is_file():
        began = time.monotonic()
        scores = score_model(start.hf, LENGTHS, questions, seed)
        Result(BASE, seed, "", [], scores, wall=time.monotonic() - began).save(found)
    return Result.read(found)


def sample_flops(run: Run, start: Start) -> float:
    """FLOPs of a sample, forward and backward, by the cost model of ``solopo_nemo.planning``."""
    from solopo_nemo.config.schema import load_config
    from solopo_nemo.planning import Lengths, Workload, load_shape, model_flops

    arguments = run.arguments(start.nemo, Path("pairs.jsonl"), Path("run"))
    objective = load_config(run.method.recipe, arguments).build_objective()
    tokens = run.ground.prompt_tokens
    lengths = Lengths(long=tokens(run.long), short=tokens(1), response=run.ground.response_tokens)
    return model_flops(load_shape(str(start.hf)), Workload.of(objective, lengths).policy).total


def _rank(_: Progress, recipe: str, arguments: Sequence[str], output: Path) -> tuple[int, float]:
    """Run the only rank of a prepared run. Return its exit code, and the GiB of the process before the run."""
    import torch

    from solopo_nemo.runtime import environment
    from solopo_nemo.training.launch import run_recipe
    from solopo_nemo.training.preparation import SharedPreparation

    torch.set_num_threads(1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    environment.start_here(f"rank-{os.getpid()}")
    SharedPreparation(output).prepare(lambda: None)  # the run is prepared already
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return run_recipe(recipe, arguments), before


def _curves(rows: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    kept = [row for row in rows if row["step"] % CURVE_EVERY == 0 or row["step"] == 1]
    curves: dict[str, list[float]] = {"step": [row["step"] for row in kept]}
    return curves | {name: [float(f"{row[name]:.4g}") for row in kept] for name in CURVES if name in rows[0]}
