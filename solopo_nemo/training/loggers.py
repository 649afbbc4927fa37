"""Lightning's loggers of a run; a resumed run goes on in the same ones."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from solopo_nemo.config.schema import LoggerConfig, RunConfig
from solopo_nemo.runtime import environment
from solopo_nemo.training.checkpoints.files import step_of
from solopo_nemo.training.checkpoints.record import RunRecord
from solopo_nemo.training.paths import Paths


def build_loggers(config: RunConfig, resumed: Path | None) -> list[Logger]:
    """The loggers that the configuration names.

    Weights & Biases, MLflow, Trackio and SwanLab's cloud go on in the run of ``run.json``'s id, where ``WANDB_RUN_ID``
    names no other. Offline a start of Weights & Biases or SwanLab is a folder, which ``wandb sync`` joins to that run.
    TensorBoard hides what lies past the restored step, as ``metrics.jsonl`` cuts it.

    Args:
        config: of a run that is prepared.
        resumed: checkpoint that the run goes on from.
    """
    paths, loggers = Paths(config.output), list[Logger]()
    if config.logger.tensorboard:
        purge = step_of(resumed) + 1 if resumed else 0
        loggers.append(
            TensorBoardLogger(paths.tensorboard.parent, name=paths.tensorboard.name, version="", purge_step=purge)
        )
    if config.logger.wandb:
        record = None if "WANDB_RUN_ID" in os.environ else RunRecord.read(paths.record)
        loggers.append(
            WandbLogger(
                project=config.logger.wandb,
                save_dir=paths.output / "logs",
                id=record.id if record else None,
                resume="allow",
                offline=os.environ.get("WANDB_MODE", "offline") != "online",
            )
        )
    if environment.rank() == 0:  # Lightning's loggers do nothing on other ranks
        loggers += _optional_loggers(config.logger, paths)
    return loggers


def _optional_loggers(config: LoggerConfig, paths: Paths) -> list[Logger]:
    record, logs = RunRecord.read(paths.record), paths.output / "logs"
    name = record.id if record else paths.output.name
    loggers = list[Logger]()
    if config.mlflow:
        uri = os.environ.get("MLFLOW_TRACKING_URI", f"file:{logs / 'mlflow'}")
        run = _mlflow_run(uri, config.mlflow, name)
        loggers.append(MLFlowLogger(config.mlflow, name, tracking_uri=uri, run_id=run))
    if config.trackio:
        os.environ.setdefault("TRACKIO_DIR", str(logs / "trackio"))  # read when trackio is imported
        loggers.append(TrackioLogger(config.trackio, name))
    if config.swanlab:
        from swanlab.integration.pytorch_lightning import SwanLabLogger

        mode = os.environ.get("SWANLAB_MODE", "offline")
        same_run = {"id": name, "resume": "allow"} if mode == "cloud" else {}
        loggers.append(
            SwanLabLogger(config.swanlab, experiment_name=name, logdir=str(logs / "swanlab"), mode=mode, **same_run)
        )
    return loggers


def _mlflow_run(uri: str, experiment: str, name: str) -> str | None:
    """The id of the run with a name; None before the first start."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    if (found := client.get_experiment_by_name(experiment)) is None:
        return None
    runs = client.search_runs([found.experiment_id], f"tags.mlflow.runName = '{name}'")
    return str(runs[0].info.run_id) if runs else None


class TrackioLogger(Logger):
    """Logs to Trackio, which has no Lightning logger of its own.

    Args:
        project: of Trackio.
        name: of the run; a run of that name goes on.
    """

    def __init__(self, project: str, name: str) -> None:
        import trackio

        self._trackio, self._project, self._run = trackio, project, name
        trackio.init(project=project, name=name, resume="allow")

    @property
    def name(self) -> str:
        """The project."""
        return self._project

    @property
    def version(self) -> str:
        """The run."""
        return self._run

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log numbers of a step."""
        self._trackio.log(dict(metrics), step=step)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: the configuration lies beside the metrics."""

    def finalize(self, status: str) -> None:
        """End the run."""
        self._trackio.finish()
