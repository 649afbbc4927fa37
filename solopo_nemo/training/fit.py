"""Training on one rank: builds the NeMo model, the trainer and its callbacks, and trains."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress

import lightning.pytorch as pl
import nemo.lightning as nl
import torch
import torch.distributed as dist
from lightning.pytorch.utilities.exceptions import SIGTERMException
from nemo.lightning.pytorch.optim import CosineAnnealingScheduler, MegatronOptimizerModule

from solopo_nemo.config.schema import RunConfig
from solopo_nemo.core.device import prepare_process
from solopo_nemo.data.prepared import load_prepared
from solopo_nemo.families.hf import read_config
from solopo_nemo.nemo_model.policy import LOSS_SCALE, build_model, optimizer_config, parallel_sizes, precision_of
from solopo_nemo.nemo_model.strategy import SoLoPOStrategy
from solopo_nemo.planning import load_shape
from solopo_nemo.runtime import device, environment
from solopo_nemo.runtime.signals import StopRequest
from solopo_nemo.training.callbacks.auto_alpha import AutoAlpha
from solopo_nemo.training.callbacks.finite import NonFinite
from solopo_nemo.training.callbacks.metrics import Metrics, StepValues
from solopo_nemo.training.callbacks.ownership import Ownership
from solopo_nemo.training.callbacks.progress import ProgressLine
from solopo_nemo.training.callbacks.reference import OnlineScores, ScoredReference
from solopo_nemo.training.callbacks.validation import Validation
from solopo_nemo.training.checkpoints.saving import Checkpoints
from solopo_nemo.training.datamodule import TripletDataModule
from solopo_nemo.training.loggers import build_loggers
from solopo_nemo.training.paths import Paths
from solopo_nemo.training.prepare import read_weights_hash
from solopo_nemo.training.reference_cache import ReferenceCache, cache_key

logger = logging.getLogger("solopo_nemo")


def build_optimizer(config: RunConfig, steps: int) -> MegatronOptimizerModule:
    """Megatron's distributed AdamW with NeMo's cosine schedule."""
    optim = config.optim
    return MegatronOptimizerModule(
        optimizer_config(config),
        CosineAnnealingScheduler(
            max_steps=steps,
            warmup_steps=round(optim.warmup_ratio * steps),
            constant_steps=0,
            min_lr=optim.min_lr,
        ),
    )


def mixed_precision(config: RunConfig) -> nl.MegatronMixedPrecision | None:
    """NeMo's plugin for bf16, ``None`` in fp32. On a GPU the parameters are built in bf16, without it in fp32."""
    if precision_of(config) != "bf16":
        return None
    built_in = torch.bfloat16 if device.cuda() else None
    return nl.MegatronMixedPrecision("bf16-mixed", params_dtype=built_in, fp16_loss_scale=LOSS_SCALE)


def fit(
    config: RunConfig, stop: StopRequest, only_reference: bool = False, callbacks: Sequence[pl.Callback] = ()
) -> None:
    """Trains, or only completes the reference cache.

    Every rank calls it after :func:`solopo_nemo.training.checks.prepare` has run once. It saves and returns early after
    a request to stop.

    Args:
        config: configuration of the run.
        stop: request to stop, on which all ranks agree after each step.
        only_reference: return before the first step.
        callbacks: further Lightning callbacks, which are called last.
    """
    prepare_process()
    paths, objective = Paths(config.output), config.build_objective()
    prepared, shape = load_prepared(paths.tokenized), load_shape(str(paths.initial / "hf"))
    data = TripletDataModule(config, objective, prepared.dataset, shape)
    reference: OnlineScores | ScoredReference | None = None
    if objective.reference_sequences and config.reference in ("online", "adapter_off"):
        reference = OnlineScores(None if config.reference == "adapter_off" else paths.initial, data)
    elif objective.reference_sequences:
        key = cache_key(
            read_weights_hash(paths), prepared.fingerprint, objective.reference_sequences, precision_of(config)
        )
        reference = ScoredReference(ReferenceCache(paths.reference, key), data, stop, only_reference)
    # hf/config.json, and not NeMo's context, says what the model is: other rope scaling is written there
    model = build_model(config, read_config(paths.initial / "hf"), objective, reference)
    build_optimizer(config, data.steps).connect(model)

    trainer_callbacks: list[pl.Callback] = [Ownership(config.output), *([reference] if reference else [])]
    if config.auto_alpha and not only_reference:
        trainer_callbacks.append(AutoAlpha(data, paths.alpha, stop))
    values, skip = StepValues(), config.trainer.nonfinite == "skip"
    samples, batch = len(prepared.dataset), config.trainer.global_batch
    trainer_callbacks += [
        values,
        NonFinite(skip, values, paths.checkpoints),
        Metrics(paths.metrics, values, skip, samples, batch, ProgressLine(data.steps)),
    ]
    suite, every = config.trainer.select_best, config.trainer.checkpoint_every
    keep = None if suite else config.trainer.keep_checkpoints  # Validation removes checkpoints after it has scored them
    # with only_reference nothing is resumed, as the reference policy has the initial weights
    checkpoints = Checkpoints(paths, every, keep, None if only_reference else config.trainer.resume, stop)
    trainer_callbacks.append(checkpoints)
    if suite:
        trainer_callbacks.append(Validation(config, suite, stop, checkpoints))
    trainer_callbacks += callbacks
    local = environment.local_world_size()
    # not nl.Trainer, which deep-copies its arguments, callbacks and data included
    trainer = pl.Trainer(
        accelerator="gpu" if device.cuda() else "cpu",
        devices=local,
        num_nodes=environment.world_size() // local,
        max_steps=data.steps,
        strategy=SoLoPOStrategy(
            seed=config.trainer.seed,
            **parallel_sizes(config),
            restore_config=nl.RestoreConfig(path=str(paths.initial)),  # used if no checkpoint is resumed
            verified=checkpoints.verified,
        ),
        plugins=mixed_precision(config),
        callbacks=trainer_callbacks,
        logger=[] if only_reference else build_loggers(config, checkpoints.resumed),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        log_every_n_steps=1,
        default_root_dir=config.output,
    )
    with suppress(SIGTERMException):
        trainer.fit(model, data, ckpt_path=checkpoints.resumed)
    dist.barrier()  # a launcher ends the other ranks after the first one exits
    if stop.agreed:
        logger.info("stopped after step %d; the same command goes on from here", trainer.global_step)
