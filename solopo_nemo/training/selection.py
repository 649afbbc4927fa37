"""Which checkpoint becomes the policy of a run: the last one, or the best by a suite (paper, Appendix D)."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from solopo_nemo.data.output import atomic_text
from solopo_nemo.training.checkpoints import remove_checkpoints, saved_checkpoints, step_of
from solopo_nemo.training.config import RunConfig
from solopo_nemo.training.paths import Paths

if TYPE_CHECKING:
    from solopo_nemo.evaluation.settings import SuiteSettings
    from solopo_nemo.model.apart import Progress

RECORD = "selection.json"

logger = logging.getLogger("solopo_nemo")


@dataclass(frozen=True)
class ScoredCheckpoint:
    """A checkpoint's score: the suite's headline, 0 to 1, with its 95 % interval."""

    step: int
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Selection:
    """What was measured so far.

    Attributes:
        suite: by which checkpoints are compared.
        scores: in the order of their steps.
    """

    suite: str
    scores: Sequence[ScoredCheckpoint]

    @property
    def best(self) -> int:
        """The step of the highest score; the earliest one of several."""
        return max(self.scores, key=lambda scored: (scored.value, -scored.step)).step

    @classmethod
    def read(cls, paths: Paths) -> Selection | None:
        """What an output folder holds; None where no checkpoint was scored."""
        path = paths.selection / RECORD
        if not path.is_file():
            return None
        found = json.loads(path.read_text(encoding="utf-8"))
        return cls(found["suite"], [ScoredCheckpoint(**scored) for scored in found["scores"]])

    def write(self, paths: Paths) -> None:
        """Keep it in the output folder."""
        with atomic_text(paths.selection / RECORD) as stream:
            json.dump({"suite": self.suite, "scores": [vars(scored) for scored in self.scores]}, stream, indent=1)
            stream.write("\n")


def checkpoints_to_keep(config: RunConfig) -> int | None:
    """How many checkpoints lie on the disk during the run; None for all, until the best one is chosen."""
    return None if config.trainer.select_best else config.trainer.keep_checkpoints


def check_selection(config: RunConfig, model: Path) -> None:
    """Read the suite's data and build its prompts, so that what is wrong with them shows before training.

    Args:
        config: of the run.
        model: Hugging Face folder of the initial model.

    Raises:
        UserError: data are missing or wrong, or beyond the model's window.
    """
    if config.trainer.select_best is None:
        return
    from solopo_nemo.evaluation.models import EvaluatedModel, ModelSettings
    from solopo_nemo.evaluation.suites import SUITES

    opened = EvaluatedModel(ModelSettings(str(model)), Paths(config.output).selection)
    for _ in SUITES[config.trainer.select_best].cells(opened, _settings(config)):
        pass


def choose_checkpoint(config: RunConfig) -> Path:
    """The checkpoint to export: in one process, after the last step. What was scored before is not scored again.

    Raises:
        UserError: a checkpoint cannot be evaluated.
    """
    paths, suite = Paths(config.output), config.trainer.select_best
    saved = saved_checkpoints(paths.checkpoints)
    if suite is None:
        return saved[-1]
    from solopo_nemo.evaluation.run import WORK
    from solopo_nemo.model.apart import run_apart

    known = Selection.read(paths)
    scores = {scored.step: scored for scored in known.scores} if known and known.suite == suite else {}
    for checkpoint in saved:
        step = step_of(checkpoint)
        if step in scores:
            continue
        folder = paths.selection / suite / checkpoint.name
        logger.info("scoring step %d by %s", step, suite)
        scores[step] = run_apart(_score, checkpoint, folder, suite, _settings(config))
        Selection(suite, [scores[number] for number in sorted(scores)]).write(paths)
        shutil.rmtree(folder / WORK)  # the chosen one is exported again
    best = Selection(suite, list(scores.values())).best
    logger.info("step %d is the best by %s: %.1f", best, suite, 100 * scores[best].value)
    return next(checkpoint for checkpoint in saved if step_of(checkpoint) == best)


def remove_others(config: RunConfig, chosen: Path) -> None:
    """Remove the checkpoints that were kept for the choice alone."""
    saved = saved_checkpoints(Paths(config.output).checkpoints)
    remove_checkpoints([one for one in saved[: -config.trainer.keep_checkpoints] if one != chosen])


def _settings(config: RunConfig) -> SuiteSettings:
    from solopo_nemo.evaluation.settings import SuiteSettings

    return SuiteSettings(Path(config.evaluation.data), limit=config.evaluation.limit)


def _score(progress: Progress, checkpoint: Path, folder: Path, suite: str, settings: Any) -> ScoredCheckpoint:
    from solopo_nemo.evaluation.measured import figures
    from solopo_nemo.evaluation.models import ModelSettings
    from solopo_nemo.evaluation.run import evaluate
    from solopo_nemo.evaluation.suites import SUITES

    measured = evaluate(ModelSettings(str(checkpoint)), [SUITES[suite]], settings, folder, progress)
    (headline,) = [view for view in figures(SUITES[suite], [measured]) if view.view.title == SUITES[suite].headline]
    mean = headline.means[0]
    assert mean is not None
    return ScoredCheckpoint(step_of(checkpoint), mean.value, mean.low, mean.high)
