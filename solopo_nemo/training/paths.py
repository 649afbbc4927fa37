"""Paths of a run's files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

from solopo_nemo.nemo_model.end_tokens import RUN_RECORD


def _below(name: str) -> Path:
    """Declares a property of :class:`Paths`: a path below the output folder."""
    return cast(Path, property(lambda paths: paths.output / name))


@dataclass(frozen=True)
class Paths:
    """Paths of a run's files below its output folder."""

    output: Path

    config = _below("config.yaml")
    """The resolved configuration."""
    record = _below(RUN_RECORD)
    """Hashes of data and weights, and other facts; see :mod:`solopo_nemo.training.checkpoints.record`."""
    metrics = _below("metrics.jsonl")
    """One line of JSON for each step."""
    checkpoints = _below("checkpoints")
    """Megatron checkpoints."""
    hf = _below("hf")
    """The final policy as a Hugging Face folder."""
    hf_adapter = _below("hf_adapter")
    """The adapters of a run with ``peft=lora``, in peft's format."""
    report = _below("report")
    """Plots and tables."""
    tensorboard = _below("logs/tensorboard")
    """Event files of TensorBoard."""
    dry_run = _below("dry_run.json")
    """Result of ``dry_run=true``."""
    alpha = _below("alpha.json")
    """The alpha that ``objective.alpha=auto`` chose, with the gradient norms."""
    accuracy = _below("accuracy.json")
    """Answer accuracy before and after training."""
    selection = _below("selection")
    """Scores of the checkpoints with ``trainer.select_best``."""
    tokenized = _below("data/tokenized")
    """The tokenized training samples."""
    builtin = _below("data/builtin.jsonl")
    """The generated built-in triplets."""
    initial = _below("initial")
    """NeMo checkpoint of the initial weights."""
    reference = _below("reference")
    """Reference log-probabilities."""
