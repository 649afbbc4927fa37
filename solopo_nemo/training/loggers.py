"""Lightning loggers of a run. A resumed run continues in the same experiments."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from solopo_nemo.config.schema import LoggerConfig, RunConfig
from solopo_nemo.runtime import environment
from solopo_nemo.runtime.credentials import masked, sign_in_of_mlflow
from solopo_nemo.training.checkpoints.files import step_of
from solopo_nemo.training.checkpoints.record import RunRecord
from solopo_nemo.training.paths import Paths


def build_loggers(config: RunConfig, resumed: Path | None) -> list[Logger]:
    """The loggers of the configuration.

    Weights & Biases, MLflow, Trackio and SwanLab's cloud continue the run with the id in ``run.json``, or in
    ``WANDB_RUN_ID``. Offline, each start of Weights & Biases or SwanLab writes a folder of its own, which
    ``wandb sync`` joins to that run. TensorBoard hides the steps after the restored one.

    Args:
        config: configuration of a prepared run.
        resumed: checkpoint that the run resumes from, or None.
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
        uri = _mlflow_uri(f"file:{logs / 'mlflow'}")
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


def _mlflow_uri(default: str) -> str:
    """The address of the MLflow server; its user and password go to MLflow's variables, as MLflow logs addresses."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", default)
    if sign_in := sign_in_of_mlflow(uri):
        os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"] = sign_in
        uri = os.environ["MLFLOW_TRACKING_URI"] = masked(uri)
    return uri


def _mlflow_run(uri: str, experiment: str, name: str) -> str | None:
    """The id of the MLflow run with a name; None before the first start."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    if (found := client.get_experiment_by_name(experiment)) is None:
        return None
    runs = client.search_runs([found.experiment_id], f"tags.mlflow.runName = '{name}'")
    return str(runs[0].info.run_id) if runs else None


class TrackioLogger(Logger):
    """Logs to Trackio, which has no Lightning logger.

    Args:
        project: name of the Trackio project.
        name: name of the run; an existing run of this name is continued.
    """

    def __init__(self, project: str, name: str) -> None:
        import trackio

        self._trackio, self._project, self._run = trackio, project, name
        trackio.init(project=project, name=name, resume="allow")

    @property
    def name(self) -> str:
        """The name of the project."""
        return self._project

    @property
    def version(self) -> str:
        """The name of the run."""
        return self._run

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Logs the metrics of a step."""
        self._trackio.log(dict(metrics), step=step)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Does nothing: ``config.yaml`` has the configuration."""

    def finalize(self, status: str) -> None:
        """Ends the run."""
        self._trackio.finish()
