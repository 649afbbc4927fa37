"""Selects the checkpoint that is exported: the last one, or the best one by a suite (paper, appendix D)."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from solopo_nemo.config.schema import RunConfig
from solopo_nemo.runtime.errors import require
from solopo_nemo.runtime.json_files import write_json
from solopo_nemo.training.checkpoints.files import remove_checkpoints, saved_checkpoints, step_of
from solopo_nemo.training.paths import Paths

if TYPE_CHECKING:
    from solopo_nemo.evaluation.models import ModelSettings
    from solopo_nemo.evaluation.settings import SuiteSettings
    from solopo_nemo.runtime.isolated import Progress

RECORD = "selection.json"

logger = logging.getLogger("solopo_nemo")


@dataclass(frozen=True)
class ScoredCheckpoint:
    """The score of a checkpoint: the suite's headline figure, 0 to 1, and its 95 % interval.

    Attributes:
        step: optimizer step of the checkpoint.
        value: the score.
        low, high: bounds of the interval.
    """

    step: int
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Selection:
    """The scores of a run's checkpoints so far.

    Attributes:
        suite: name of the suite.
        scores: scores, ordered by step.
    """

    suite: str
    scores: Sequence[ScoredCheckpoint]

    @property
    def best(self) -> int:
        """The step of the highest score; of equal scores the earliest step."""
        return max(self.scores, key=lambda scored: (scored.value, -scored.step)).step

    @classmethod
    def read(cls, paths: Paths) -> Selection | None:
        """Reads the scores of an output folder; None if no checkpoint was scored."""
        path = paths.selection / RECORD
        if not path.is_file():
            return None
        found = json.loads(path.read_text(encoding="utf-8"))
        return cls(found["suite"], [ScoredCheckpoint(**scored) for scored in found["scores"]])

    def write(self, paths: Paths) -> None:
        """Writes the scores to the output folder."""
        write_json(paths.selection / RECORD, asdict(self), indent=1)


def check_suite(config: RunConfig) -> None:
    """Checks ``trainer.select_best``.

    Raises:
        UserError: there is no such suite, or several are named.
    """
    if config.trainer.select_best is not None:
        from solopo_nemo.evaluation.suites import find_suites

        suites = find_suites(config.trainer.select_best, "trainer.select_best=")
        require(len(suites) == 1, f"trainer.select_best={config.trainer.select_best}: name one suite")


def check_selection(config: RunConfig, model: Path) -> None:
    """Reads the data of the suite and builds its prompts, so that problems show before training.

    Args:
        config: configuration of the run.
        model: Hugging Face folder of the initial model.

    Raises:
        UserError: data are missing or wrong, or longer than the model's window.
    """
    if config.trainer.select_best is None:
        return
    from solopo_nemo.evaluation.models import EvaluatedModel
    from solopo_nemo.evaluation.suites import SUITES

    opened = EvaluatedModel(_model(model, config), Paths(config.output).selection)
    for _ in SUITES[config.trainer.select_best].cells(opened, _settings(config)):
        pass


def unscored_checkpoints(config: RunConfig, suite: str) -> list[Path]:
    """The saved checkpoints that the suite has not scored, oldest first."""
    paths = Paths(config.output)
    known = {scored.step for scored in _known(paths, suite)}
    return [checkpoint for checkpoint in saved_checkpoints(paths.checkpoints) if step_of(checkpoint) not in known]


def keep_score(config: RunConfig, suite: str, scored: ScoredCheckpoint) -> None:
    """Writes a score of :func:`score_checkpoint` to the output folder."""
    paths = Paths(config.output)
    scores = [*_known(paths, suite), scored]
    Selection(suite, sorted(scores, key=lambda one: one.step)).write(paths)
    logger.info("step %d by %s: %.1f", scored.step, suite, 100 * scored.value)


def best_checkpoint(config: RunConfig, suite: str) -> Path:
    """The best of the saved checkpoints. All of them must have been scored."""
    paths = Paths(config.output)
    saved = {step_of(checkpoint): checkpoint for checkpoint in saved_checkpoints(paths.checkpoints)}
    return saved[Selection(suite, [one for one in _known(paths, suite) if one.step in saved]).best]


def choose_checkpoint(config: RunConfig) -> Path:
    """The checkpoint to export. It scores checkpoints that have no score; one process calls it after the last step.

    Raises:
        UserError: a checkpoint cannot be evaluated.
    """
    suite = config.trainer.select_best
    if suite is None:
        return saved_checkpoints(Paths(config.output).checkpoints)[-1]
    from solopo_nemo.runtime.isolated import run_isolated

    for checkpoint in unscored_checkpoints(config, suite):
        logger.info("scoring step %d by %s", step_of(checkpoint), suite)
        keep_score(config, suite, run_isolated(f"scoring {checkpoint}", score_checkpoint, checkpoint, config, suite))
    return best_checkpoint(config, suite)


def remove_others(config: RunConfig, chosen: Path) -> None:
    """Removes the checkpoints that are neither the chosen one nor among the newest ``trainer.keep_checkpoints``."""
    saved = saved_checkpoints(Paths(config.output).checkpoints)
    remove_checkpoints([one for one in saved[: -config.trainer.keep_checkpoints] if one != chosen])


def _known(paths: Paths, suite: str) -> Sequence[ScoredCheckpoint]:
    found = Selection.read(paths)
    return found.scores if found and found.suite == suite else ()


def _settings(config: RunConfig) -> SuiteSettings:
    from solopo_nemo.evaluation.settings import SuiteSettings

    return SuiteSettings(Path(config.evaluation.data), limit=config.evaluation.limit)


def _model(path: Path, config: RunConfig) -> ModelSettings:
    from solopo_nemo.evaluation.models import ModelSettings

    return ModelSettings(str(path), chat_template_kwargs=config.data.chat_template_kwargs)


def score_checkpoint(progress: Progress, checkpoint: Path, config: RunConfig, suite: str) -> ScoredCheckpoint:
    """Exports and evaluates a checkpoint, in a process of its own. Existing answers are not computed again.

    Args:
        progress: shows the progress.
        checkpoint: the checkpoint.
        config: configuration of the run.
        suite: name of the suite.

    Raises:
        UserError: the checkpoint cannot be evaluated.
    """
    from solopo_nemo.evaluation.measured import figures
    from solopo_nemo.evaluation.run import WORK, evaluate
    from solopo_nemo.evaluation.suites import SUITES

    folder = Paths(config.output).selection / suite / checkpoint.name
    measured = evaluate(_model(checkpoint, config), [SUITES[suite]], _settings(config), folder, progress)
    shutil.rmtree(folder / WORK)  # the chosen checkpoint is exported again
    (headline,) = [view for view in figures(SUITES[suite], [measured]) if view.view.title == SUITES[suite].headline]
    mean = headline.means[0]
    assert mean is not None
    return ScoredCheckpoint(step_of(checkpoint), mean.value, mean.low, mean.high)
