"""Paths of a run's files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from solopo_nemo.nemo_model.end_tokens import RUN_RECORD


@dataclass(frozen=True)
class Paths:
    """Paths of a run's files below its output folder."""

    output: Path

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.output / "config.yaml"

    @property
    def record(self) -> Path:
        """What the run depends on beyond its configuration; see :mod:`solopo_nemo.training.checkpoints.record`."""
        return self.output / RUN_RECORD

    @property
    def metrics(self) -> Path:
        """One line a step."""
        return self.output / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Megatron checkpoints."""
        return self.output / "checkpoints"

    @property
    def hf(self) -> Path:
        """The final policy as a Hugging Face folder."""
        return self.output / "hf"

    @property
    def report(self) -> Path:
        """Plots and tables."""
        return self.output / "report"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard's events."""
        return self.output / "logs" / "tensorboard"

    @property
    def alpha(self) -> Path:
        """What ``objective.alpha=auto`` chose."""
        return self.output / "alpha.json"

    @property
    def accuracy(self) -> Path:
        """Answer accuracy before and after."""
        return self.output / "accuracy.json"

    @property
    def selection(self) -> Path:
        """Scores of the checkpoints, where the best one is chosen."""
        return self.output / "selection"

    @property
    def tokenized(self) -> Path:
        """The tokenized training samples."""
        return self.output / "data" / "tokenized"

    @property
    def builtin(self) -> Path:
        """The generated built-in triplets."""
        return self.output / "data" / "builtin.jsonl"

    @property
    def initial(self) -> Path:
        """The initial weights as a NeMo checkpoint."""
        return self.output / "initial"

    @property
    def reference(self) -> Path:
        """Reference log-probabilities."""
        return self.output / "reference"
