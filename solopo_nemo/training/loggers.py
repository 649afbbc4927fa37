"""Lightning's loggers of a run; a resumed run goes on in the same ones."""

from __future__ import annotations

import os
from pathlib import Path

from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger

from solopo_nemo.config.schema import RunConfig
from solopo_nemo.training.checkpoints.files import step_of
from solopo_nemo.training.checkpoints.record import RunRecord
from solopo_nemo.training.paths import Paths


def build_loggers(config: RunConfig, resumed: Path | None) -> list[Logger]:
    """The loggers that the configuration names.

    Weights & Biases goes on in the run of ``run.json``'s id, where ``WANDB_RUN_ID`` names no other. Offline a start is
    a folder, which ``wandb sync`` joins to that run. TensorBoard hides what lies past the restored step, as
    ``metrics.jsonl`` cuts it.

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
    return loggers
