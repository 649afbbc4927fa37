"""All checks before a run begins, in one list for the run itself and for ``solopo check``.

A run stops at the first problem, before any weight is read. ``solopo check`` makes all checks.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from solopo_nemo.config.world import check_context, check_experts, check_pipeline, check_tensor, check_world, layers_of
from solopo_nemo.data.triplets import read_triplets
from solopo_nemo.families import hf
from solopo_nemo.families.hf import is_checkpoint
from solopo_nemo.families.weights import find_weights
from solopo_nemo.nemo_model.adapters import initial_adapter
from solopo_nemo.runtime.errors import UserError
from solopo_nemo.runtime.output import check_writable
from solopo_nemo.training.checkpoints.files import check_origin, put_damaged_aside, step_of
from solopo_nemo.training.checkpoints.record import write_record
from solopo_nemo.training.checkpoints.resume import to_resume_from
from solopo_nemo.training.checkpoints.selection import check_selection, check_suite
from solopo_nemo.training.checkpoints.space import check_space
from solopo_nemo.training.failures.memory_advice import own_machine, shortage
from solopo_nemo.training.prepare import import_weights, keep_date, length_in_words, seen_samples
from solopo_nemo.training.publish import check_publishing
from solopo_nemo.training.reference_cache import ReferenceCache, cache_key
from solopo_nemo.training.start import Start

logger = logging.getLogger("solopo_nemo")


def _check_origin(start: Start) -> None:
    source = start.described
    if source.resolve() == start.paths.hf.resolve():
        raise UserError(
            f"model.init={source}: is where this run exports its policy, which would replace the initial "
            "weights: choose another output_dir"
        )
    if is_checkpoint(source):
        rank = None if start.imported.get("files") == start.source_files else 0  # unchanged files are not read again
        check_origin(source, "model.init", start.config.model.trust_checkpoint, rank=rank)


def _check_last_step(start: Start) -> None:
    """Verifies all files of the checkpoint of the last step. It is exported without ranks that would verify it."""
    if start.saved and step_of(start.saved[-1]) >= start.steps:
        start.settled = put_damaged_aside(start.saved, only_look=start.scratch is not None)


def _check_context(start: Start) -> None:
    layers = check_context(start.config, start.model, start.on_gpu)
    if start.on_gpu:
        logger.info("layers: %s (%s)", layers.name, layers.why)


def _check_first_sample(start: Start) -> None:
    if start.config.data.train != "builtin":
        next(read_triplets(start.train, start.needs))


def _check_weights(start: Start, on_hub: bool) -> None:
    if on_hub != start.on_hub or is_checkpoint(start.described):
        return
    if start.scratch and on_hub and not list(start.source.glob("*.safetensors")):
        logger.warning("model.init=%s: the run downloads the weights; they are not checked", start.config.model.init)
    else:
        find_weights(start.source, start.model)


def _say_length(start: Start) -> None:
    if start.config.data.train == "builtin" and start.config.model.init != "builtin":
        logger.warning(
            "data.train=builtin: the run trains on the built-in questions, made for the embedded model; "
            "data.train=FILE takes your data"
        )
    samples = len(start.prepared.dataset)
    level = logging.WARNING if samples < start.config.trainer.global_batch else logging.INFO
    logger.log(level, length_in_words(start.config, samples))


def _check_reference(start: Start) -> None:
    sequences = start.config.build_objective().reference_sequences
    resumed = to_resume_from(start.config.trainer.resume, start.saved)
    if start.only_reference or start.config.reference != "cached" or not sequences or resumed is None:
        return
    start.same_run  # noqa: B018  # reports other data or weights as such, and not as missing scores
    precision = "bf16" if start.bf16 else "fp32"
    key = cache_key(start.origin["weights"], start.prepared.fingerprint, sequences, precision)
    cache = ReferenceCache(start.paths.reference, key)
    dataset = start.prepared.dataset
    if missing := len(set(dataset[seen_samples(start.config, len(dataset))]["id"]) - cache.read().keys()):
        raise cache.incomplete(missing)


def _check_selection(start: Start) -> None:
    check_suite(start.config)
    with tempfile.TemporaryDirectory() as folder:
        template = Path(folder)
        hf.copy_template(start.template, template, start.model.changes())
        check_selection(start.config, template)


Check = Callable[[Start], object]
"""Raises a ``UserError`` if the start has to be refused; may log a warning."""

EVERYWHERE: tuple[Check, ...] = (
    lambda start: check_suite(start.config),
    lambda start: check_world(start.config, start.world),
    lambda start: layers_of(start.config, None, start.on_gpu),
)
"""The checks of every rank, and of the launcher that submits a job. They need neither the model nor the data."""

CHECKS: tuple[Check, ...] = (
    lambda start: start.settled,
    lambda start: check_publishing(start.config),
    lambda start: check_writable(start.config.output, "output_dir", make=start.scratch is None),
    _check_first_sample,
    _check_origin,
    lambda start: check_tensor(start.config.parallel, start.model),
    lambda start: check_experts(start.config, start.model, start.on_gpu),
    lambda start: check_pipeline(start.config.parallel, start.model),
    _check_context,
    lambda start: check_space(start.config, start.model, start.bf16, saved=len(start.saved)),
    lambda start: _check_weights(start, on_hub=False),
    lambda start: initial_adapter(start.config, start.model),
    lambda start: start.check_same_weights(),
    lambda start: start.tokenizer,
    lambda start: start.prepared,
    _say_length,
    _check_last_step,
    lambda start: start.same_run,
    _check_reference,
    lambda start: check_space(start.config, start.model, start.bf16, start.steps, len(start.saved)),
    _check_selection,
    lambda start: _check_weights(start, on_hub=True),
)
"""The further checks of the owner of the output folder, in this order, before any weight is read. The first sample is
read before a model on the hub is asked for, and its weights are downloaded after all other checks;
a resume hashes them before, to see that they are the same."""


def check_all(start: Start, checks: Iterable[Check]) -> None:
    """Makes some checks of a start.

    Raises:
        UserError: the first problem.
    """
    for check in checks:
        check(start)


def prepare(start: Start) -> None:
    """Checks a start, and writes all files that the ranks share. Files that exist already are not written again.

    Raises:
        UserError: see :func:`check_all`.
    """
    check_all(start, CHECKS)
    if short := shortage(start.config, start.model, start.prepared.summary, *own_machine(start.world)):
        logger.warning(short)
    import_weights(start)
    keep_date(start)
    write_record(start)
