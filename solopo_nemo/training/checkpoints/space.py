"""Checks before a run that the disk has room for its files."""

from __future__ import annotations

import math
import os
import shutil

from solopo_nemo.config.schema import RunConfig
from solopo_nemo.families.adapter import adapter_tensors
from solopo_nemo.families.description import ModelDescription
from solopo_nemo.planning.parameters import StageParameters
from solopo_nemo.runtime.errors import UserError
from solopo_nemo.runtime.output import nearest_existing
from solopo_nemo.training.paths import Paths

GIB = 2**30
OPTIMIZER = 12
"""Bytes of the optimizer's state for each parameter: an fp32 copy and AdamW's two fp32 moments."""


def check_space(
    config: RunConfig, model: ModelDescription, bf16: bool, steps: int | None = None, saved: int = 0
) -> None:
    """Compares the free space of the disk with the files that the run will write.

    With P parameters and b bytes of a weight (2 in bf16, 4 in fp32), a checkpoint takes ``P * (b + 12)`` bytes. The run
    needs ``trainer.keep_checkpoints`` of them, one that is being written, and one for ``trainer.select_best``. The
    initial weights, the exported policy and the export for scoring take ``P * b`` each. With LoRA, P of a checkpoint is
    the number of the adapters' parameters.

    Args:
        config: configuration of the run.
        model: description of the model.
        bf16: whether the weights are bf16.
        steps: optimizer steps of the whole run, if they are known.
        saved: number of existing checkpoints.

    Raises:
        UserError: the free space is too small.
    """
    paths, trainer = Paths(config.output), config.trainer
    parameters = StageParameters.of(model).total
    weights = parameters * (2 if bf16 else 4)
    checkpoint = weights + parameters * OPTIMIZER
    if config.peft.on:
        shapes = adapter_tensors(model, config.peft.rank or 1).values()
        trained = sum(math.prod(shape) for module, shape in shapes if module in config.peft.modules)
        checkpoint = trained * (weights // parameters + OPTIMIZER)
    steps, scored = steps or trainer.max_steps, trainer.select_best is not None
    saves = trainer.keep_checkpoints + scored + 1
    if steps is not None:
        saves = min(saves, -(-steps // trainer.checkpoint_every))
    best = ", the best one" if scored else ""
    why = f"trainer.keep_checkpoints={trainer.keep_checkpoints}{best}, and one that is being written"
    more = max(saves - saved, 1)
    exports = 2 - os.path.lexists(paths.initial) + scored
    needed = more * checkpoint + weights * exports
    free = shutil.disk_usage(nearest_existing(config.output)).free
    if needed > free:
        raise UserError(
            f"output_dir={config.output}: {free / GIB:.3g} GiB are free and {needed / GIB:.3g} GiB will be written, "
            f"{more} checkpoints of {checkpoint / GIB:.3g} GiB among them ({why}): make room or choose another "
            "output_dir"
        )
