"""Handles an earlier run in the output folder: resumes it, refuses it, or moves it aside."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

from solopo_nemo.config.schema import RunConfig, read_config
from solopo_nemo.families.hf import is_checkpoint
from solopo_nemo.runtime import environment
from solopo_nemo.runtime.errors import UserError
from solopo_nemo.training.checkpoints.files import (
    PREFIX,
    check_origin,
    put_damaged_aside,
    remove_leftovers,
    saved_checkpoints,
    step_of,
)
from solopo_nemo.training.paths import Paths

CHANGEABLE = (
    *("parallel", "logger", "evaluation", "dry_run", "hub"),
    *("output_dir", "model.trust_checkpoint", "data.train", "model.init", "model.adapter", "peft.merge"),
)
"""Keys and groups that may differ when a run is resumed. Data and weights are compared by their contents instead."""
CHANGEABLE_TRAINER = (
    *("micro_batch", "checkpoint_every", "keep_checkpoints", "select_best"),
    *("resume", "nonfinite", "timeout_minutes"),
)
"""Keys of ``trainer`` that may differ when a run is resumed."""

logger = logging.getLogger("solopo_nemo")


def to_resume_from(resume: str, saved: Sequence[Path]) -> Path | None:
    """The checkpoint that a run resumes from, after :func:`settle_earlier_run` has settled the folder.

    With ``auto`` it is the newest one. A named checkpoint is taken until the run has saved a later one.

    Args:
        resume: value of ``trainer.resume``.
        saved: checkpoints of the run, oldest first.

    Returns:
        The checkpoint, or None for a new run.
    """
    newest = next(iter(reversed(saved)), None)
    if resume in ("auto", "never"):
        return newest
    path = Path(resume)
    return newest if newest is not None and step_of(newest) > step_of(path) else path


def settle_earlier_run(config: RunConfig, paths: Paths, only_look: bool = False) -> list[Path]:
    """Makes the output folder ready for this start. One process calls it, before any other change in the folder.

    The large files of the checkpoint are not compared with its manifest here, as the ranks do so just before they load
    them (:meth:`~solopo_nemo.training.checkpoints.saving.Checkpoints.verified`). With ``only_look`` all files are
    compared.

    Args:
        config: configuration of the run.
        paths: paths of its files.
        only_look: whether to change nothing.

    Returns:
        The checkpoints that this start may resume from, oldest first.

    Raises:
        UserError: the folder has a run with other settings, ``trainer.resume`` names no checkpoint, or all checkpoints
            are damaged.
    """
    resume, own = config.trainer.resume, saved_checkpoints(paths.checkpoints)
    earlier = _settings(own[-1], paths) if own else None
    again = earlier is not None and Path(earlier.trainer.resume).resolve() == Path(resume).resolve()
    named = None if resume in ("auto", "never") else _named_checkpoint(resume)
    if own and resume == "never" and not (again and environment.restarted()):
        parts = [paths.report, paths.hf, paths.hf_adapter, paths.accuracy, paths.alpha, paths.selection, paths.metrics]
        # checkpoints and configuration last, so that a start after a kill in between moves the others
        parts += [paths.tensorboard, paths.record, paths.checkpoints, paths.config]
        if not only_look:
            _put_aside(paths, parts)
        return []
    if earlier is not None and (changed := changes(earlier, config)):
        raise other_run(paths.output, paths, changed)
    later = [checkpoint for checkpoint in own if named is not None and step_of(checkpoint) > step_of(named)]
    if named is not None and not (again and later):
        _check_named(named, config, paths, rank=0 if only_look else None)
        own = [checkpoint for checkpoint in own if checkpoint not in later]
        if later and not only_look:
            _put_aside(paths, later)
    if not only_look:
        remove_leftovers(paths.checkpoints)
    return put_damaged_aside(own, only_look, rank=0 if only_look else None)


def _settings(newest: Path, paths: Paths) -> RunConfig:
    """The configuration of a run, from its folder or from its newest checkpoint.

    Raises:
        UserError: both lack ``config.yaml``.
    """
    for file in (paths.config, newest / paths.config.name):
        if file.is_file():
            return read_config(file)
    raise UserError(
        f"{paths.config}: missing, so that nothing says which run the checkpoints there belong to: bring it back, "
        "choose another output_dir, or trainer.resume=never to put them aside"
    )


def _named_checkpoint(resume: str) -> Path:
    path = Path(resume)
    if not path.name.removeprefix(PREFIX).isdigit():
        raise UserError(
            f"trainer.resume={resume}: not a checkpoint's name; give auto, never or a folder like {PREFIX}000100"
        )
    return path


def _check_named(path: Path, config: RunConfig, paths: Paths, rank: int | None) -> None:
    if not is_checkpoint(path):
        raise UserError(f"trainer.resume={path}: no checkpoint there; give auto, never or a folder of one")
    check_origin(path, "trainer.resume", config.model.trust_checkpoint, rank=rank)
    settings = path / paths.config.name
    if settings.is_file():
        if changed := changes(read_config(settings), config):
            raise other_run(path, paths, changed)
    elif path.resolve().parent != paths.checkpoints.resolve():
        logger.warning("trainer.resume=%s: of version 0.1: whether its settings are this run's is not checked", path)


def other_run(place: Path, paths: Paths, changed: Sequence[str]) -> UserError:
    """The error for a checkpoint or an output folder that belongs to another run.

    Args:
        place: the checkpoint or folder.
        paths: paths of the run that starts.
        changed: the differences, in words.
    """
    way = "choose another output_dir, or trainer.resume=never to put that run aside"
    if not place.resolve().is_relative_to(paths.output.resolve()):
        way = f"model.init={place} starts a new run from its weights"
    return UserError(f"{place}: holds a run with other settings ({'; '.join(changed)}): {way}")


def _put_aside(paths: Paths, parts: Iterable[Path]) -> None:
    aside = paths.output / "previous"
    aside = aside / str(1 + sum(1 for _ in aside.glob("*")))
    aside.mkdir(parents=True)
    for path in parts:
        if path.exists():
            path.rename(aside / path.name)
    logger.info("what the earlier run left is now in %s", aside)


def changes(old: RunConfig, new: RunConfig) -> list[str]:
    """The differences of two configurations that change the result of a run, in words."""

    def flat(value: object, prefix: str = "") -> dict[str, object]:
        if not isinstance(value, dict):
            return {prefix: value}
        return {k: v for key, item in value.items() for k, v in flat(item, f"{prefix}.{key}".strip(".")).items()}

    before, after = flat(dataclasses.asdict(old)), flat(dataclasses.asdict(new))
    skipped = (*CHANGEABLE, *(f"trainer.{key}" for key in CHANGEABLE_TRAINER))
    return [
        f"{key}: {before.get(key)} there, {after.get(key)} here"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and not any(key == s or key.startswith(f"{s}.") for s in skipped)
    ]
