"""Paths of a run's files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

from solopo_nemo.nemo_model.end_tokens import RUN_RECORD


def _below(name: str) -> Path:
    """A property of :class:`Paths`: a path below the output folder."""
    return cast(Path, property(lambda paths: paths.output / name))


@dataclass(frozen=True)
class Paths:
    """Paths of a run's files below its output folder."""

    output: Path

    config = _below("config.yaml")
    """The resolved configuration."""
    record = _below(RUN_RECORD)
    """What the run depends on beyond its configuration; see :mod:`solopo_nemo.training.checkpoints.record`."""
    metrics = _below("metrics.jsonl")
    """One line a step."""
    checkpoints = _below("checkpoints")
    """Megatron checkpoints."""
    hf = _below("hf")
    """The final policy as a Hugging Face folder."""
    hf_adapter = _below("hf_adapter")
    """The adapters of a run with ``peft=lora``, as peft reads them."""
    report = _below("report")
    """Plots and tables."""
    tensorboard = _below("logs/tensorboard")
    """TensorBoard's events."""
    dry_run = _below("dry_run.json")
    """What ``dry_run=true`` found."""
    alpha = _below("alpha.json")
    """What ``objective.alpha=auto`` chose."""
    accuracy = _below("accuracy.json")
    """Answer accuracy before and after."""
    selection = _below("selection")
    """Scores of the checkpoints, where the best one is chosen."""
    tokenized = _below("data/tokenized")
    """The tokenized training samples."""
    builtin = _below("data/builtin.jsonl")
    """The generated built-in triplets."""
    initial = _below("initial")
    """The initial weights as a NeMo checkpoint."""
    reference = _below("reference")
    """Reference log-probabilities."""
