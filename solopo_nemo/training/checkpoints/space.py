"""Checks before a run that the disk has room for its files."""

from __future__ import annotations

import os
import shutil

from solopo_nemo.config.schema import RunConfig
from solopo_nemo.families.description import ModelDescription
from solopo_nemo.planning.parameters import StageParameters, adapter_parameters
from solopo_nemo.runtime.errors import UserError
from solopo_nemo.runtime.output import nearest_existing
from solopo_nemo.training.checkpoints.files import saved_checkpoints
from solopo_nemo.training.paths import Paths

GIB = 2**30
OPTIMIZER = 12
"""Bytes a parameter in fp32: the optimizer's own copy and AdamW's two moments."""


def check_space(
    config: RunConfig, model: ModelDescription, bf16: bool, steps: int | None = None, saved: int | None = None
) -> None:
    """Compare the free space with the checkpoints that will lie beside each other, one being written included.

    A checkpoint has the weights, and in fp32 AdamW's copy of them and its two moments. The initial weights and the
    exported policy come on top, once each, and the export of a checkpoint that is scored.

    Args:
        config: of the run.
        model: what its folder says.
        bf16: the weights are in bf16.
        steps: of the whole run, once they are known.
        saved: checkpoints that are there already; by default they are counted.

    Raises:
        UserError: they will not fit.
    """
    paths, trainer = Paths(config.output), config.trainer
    parameters = StageParameters.of(model).total
    weights = parameters * (2 if bf16 else 4)
    checkpoint = weights + parameters * OPTIMIZER
    if config.peft.on:
        trained = adapter_parameters(model, config.peft.rank or 1, config.peft.modules) * model.num_hidden_layers
        checkpoint = trained * (weights // parameters + OPTIMIZER)
    there = len(saved_checkpoints(paths.checkpoints)) if saved is None else saved
    steps, scored = steps or trainer.max_steps, trainer.select_best is not None
    saves = trainer.keep_checkpoints + scored + 1
    if steps is not None:
        saves = min(saves, -(-steps // trainer.checkpoint_every))
    best = ", the best one" if scored else ""
    why = f"trainer.keep_checkpoints={trainer.keep_checkpoints}{best}, and one that is being written"
    more = max(saves - there, 1)
    exports = 2 - os.path.lexists(paths.initial) + scored
    needed = more * checkpoint + weights * exports
    free = shutil.disk_usage(nearest_existing(config.output)).free
    if needed > free:
        raise UserError(
            f"output_dir={config.output}: {free / GIB:.3g} GiB are free and {needed / GIB:.3g} GiB will be written, "
            f"{more} checkpoints of {checkpoint / GIB:.3g} GiB among them ({why}): make room or choose another "
            "output_dir"
        )
