"""All checks before a run begins, in one list for the run itself and for ``solopo check``.

A run stops at the first problem, before any weight is read. ``solopo check`` makes all checks.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from solopo_nemo.config.schema import RunConfig
from solopo_nemo.config.world import check_context, check_experts, check_pipeline, check_tensor, check_world, layers_of
from solopo_nemo.data.prepared import PreparedDataset, TooLong, prepare_dataset, prepared_date
from solopo_nemo.data.template_date import KEY as DATE_KEY
from solopo_nemo.data.tokenizer_files import load_tokenizer
from solopo_nemo.data.triplets import Needs
from solopo_nemo.families import hf
from solopo_nemo.families.description import ModelDescription
from solopo_nemo.families.hf import is_checkpoint
from solopo_nemo.families.weights import find_weights
from solopo_nemo.nemo_model.adapters import initial_adapter
from solopo_nemo.nemo_model.end_tokens import RUN_RECORD
from solopo_nemo.runtime import device
from solopo_nemo.runtime.errors import UserError
from solopo_nemo.runtime.output import check_writable
from solopo_nemo.training.checkpoints.files import check_origin, put_damaged_aside, saved_checkpoints, step_of
from solopo_nemo.training.checkpoints.record import RunRecord, check_record, write_record
from solopo_nemo.training.checkpoints.resume import settle_earlier_run, to_resume_from
from solopo_nemo.training.checkpoints.selection import check_selection, check_suite
from solopo_nemo.training.checkpoints.space import check_space
from solopo_nemo.training.failures.memory_advice import own_machine, shortage
from solopo_nemo.training.once import once
from solopo_nemo.training.paths import Paths
from solopo_nemo.training.prepare import (
    file_states,
    find_model,
    hash_weights,
    import_weights,
    keep_date,
    length_in_words,
    seen_samples,
    source_states,
    total_steps,
    training_file,
    weight_files,
)
from solopo_nemo.training.publish import check_publishing
from solopo_nemo.training.reference_cache import ReferenceCache, cache_key

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger("solopo_nemo")


@dataclass
class Start:
    """A start of a run and its inputs, each of which is read once.

    Attributes:
        config: configuration of the run.
        world: number of ranks.
        on_gpu: whether the run computes on GPUs.
        scratch: folder for the files of ``solopo check``, which does not change the output folder; None in a run.
        only_reference: whether the run only completes the reference log-probabilities.
        refused: the errors of inputs that could not be read, by the name of the property.
    """

    config: RunConfig
    world: int
    on_gpu: bool = field(default_factory=device.cuda)
    scratch: Path | None = None
    only_reference: bool = False
    refused: dict[str, UserError] = field(default_factory=dict)

    @property
    def paths(self) -> Paths:
        """The paths of the run's files."""
        return Paths(self.config.output)

    @property
    def written(self) -> Paths:
        """The paths of the files that this start writes: in the output folder, or in ``scratch``."""
        return self.paths if self.scratch is None else Paths(self.scratch)

    @property
    def bf16(self) -> bool:
        """Whether the weights are bf16."""
        return (self.config.trainer.precision or device.default_precision(self.on_gpu)) == "bf16"

    @once
    def settled(self) -> list[Path]:
        """The checkpoints that this start may resume from. Reading it makes the output folder ready for the start."""
        return settle_earlier_run(self.config, self.paths, only_look=self.scratch is not None)

    @property
    def saved(self) -> list[Path]:
        """:attr:`settled`, or an empty list if the output folder was refused."""
        return [] if "settled" in self.refused else self.settled

    @once
    def described(self) -> Path:
        """The local folder of ``model.init``; of a model on the hub without weights, as it may be refused."""
        return find_model(self.config.model.init, weights=False)

    @once
    def source(self) -> Path:
        """:attr:`described`, in a run with weights."""
        return self.described if self.scratch else find_model(self.config.model.init)

    @property
    def template(self) -> Path:
        """The Hugging Face folder of :attr:`described`; in a NeMo checkpoint it has no weights."""
        return self.described / "hf" if is_checkpoint(self.described) else self.described

    @contextmanager
    def _of_model(self) -> Iterator[None]:
        try:
            yield
        except UserError as error:
            raise UserError(f"model.init={self.config.model.init}: {error}") from None

    @once
    def model(self) -> ModelDescription:
        """The description of the model."""
        folder, scaling = self.template, self.config.model.rope_scaling
        with self._of_model():
            return hf.read_config(folder, rope_scaling=scaling, rope_key="model.rope_scaling")

    @once
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer. Its chat template prints the date of the tokenized data or the resumed checkpoint."""
        folder = self.template
        with self._of_model():  # an unreadable config.json is reported as such, and not as a bad tokenizer
            hf.read_json(folder / "config.json")
        resumed = to_resume_from(self.config.trainer.resume, saved_checkpoints(self.paths.checkpoints))
        file = resumed / "hf" / "tokenizer_config.json" if resumed else None
        kept = hf.read_json(file).get(DATE_KEY) if file and file.is_file() else None
        return load_tokenizer(folder, day=prepared_date(self.paths.tokenized) or kept)

    @once
    def sources(self) -> dict[str, Any]:
        """The states of the files of data and weights, taken before the files are read."""
        return source_states(self.config)

    @once
    def train(self) -> Path:
        """The file or folder of the samples."""
        return training_file(self.config, self.written)

    @property
    def needs(self) -> Needs:
        """The sequences that the objective and the reference policy score."""
        objective = self.config.build_objective()
        return Needs(tuple(dict.fromkeys((*objective.sequences, *objective.reference_sequences))))

    @once
    def prepared(self) -> PreparedDataset:
        """The tokenized data."""
        config, window = self.config, self.model.window
        max_tokens = config.data.max_tokens or window
        if max_tokens > window:
            raise UserError(
                f"data.max_tokens={max_tokens} is more than the model's window of {window} tokens; model.rope_scaling "
                "extends it: 'model.rope_scaling={type: yarn, factor: 4.0}'"
            )
        return prepare_dataset(
            self.train,
            self.tokenizer,
            self.needs,
            max_tokens,
            cast(TooLong, config.data.too_long),
            self.written.tokenized,
            config.model.init,
            vocab_size=self.model.vocab_size,
            template_kwargs=config.data.chat_template_kwargs,
            score=config.data.score,
            template_mismatch=config.data.template_mismatch,
            trained=self.trained,
            known=self.paths.tokenized,
            states=self.sources["data"] if isinstance(self.sources["data"], list) else None,
        )

    @property
    def trained(self) -> str | None:
        """Fingerprint of the data of the run in the output folder; empty if unknown, None without a checkpoint."""
        record = RunRecord.read(self.saved[-1] / RUN_RECORD) if self.saved else None
        return record.data if record else "" if self.saved else None

    @property
    def steps(self) -> int:
        """The number of optimizer steps of the whole run."""
        return total_steps(self.config, len(self.prepared.dataset))

    @property
    def imported(self) -> dict[str, Any]:
        """The :attr:`origin` at the import of the initial weights; empty before it, or if the file is damaged."""
        with suppress(UserError):
            return hf.read_json(self.paths.initial / "source.json")
        return {}

    @once
    def same_run(self) -> None:
        """Checks that weights, data and program are those of the checkpoint to resume."""
        _check_same_weights(self)
        check_record(self)

    @once
    def origin(self) -> dict[str, Any]:
        """Hash of the source's weights, and the states of its files. Unchanged files are not hashed again."""
        known = self.imported
        same = known.get("files") == self.source_files
        return {
            "weights": known["weights"] if same else hash_weights(self.source, self.model),
            "files": self.source_files,
            "template": file_states(self.template, hf.template_files(self.template)),
        }

    @once
    def source_files(self) -> list[Any]:
        """``model.rope_scaling`` and the states of the weight files."""
        return [self.config.model.rope_scaling, *file_states(self.source, weight_files(self.source))]


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


def _check_weights(start: Start) -> None:
    if is_checkpoint(start.described):
        return
    if start.scratch and not Path(start.config.model.init).is_dir() and not list(start.source.glob("*.safetensors")):
        logger.warning("model.init=%s: the run downloads the weights; they are not checked", start.config.model.init)
    else:
        find_weights(start.source, start.model)


def _check_same_weights(start: Start) -> None:
    if start.imported and start.saved and start.origin["weights"] != start.imported.get("weights"):
        raise UserError(
            f"{start.paths.output} holds a run that started from other weights (or config.json, rope_scaling) than "
            f"model.init={start.source} has now: choose another output_dir, or trainer.resume=never to put that run "
            "aside"
        )


def _say_length(start: Start) -> None:
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
    _check_origin,
    lambda start: check_tensor(start.config.parallel, start.model),
    lambda start: check_experts(start.config, start.model, start.on_gpu),
    lambda start: check_pipeline(start.config.parallel, start.model),
    _check_context,
    lambda start: check_space(start.config, start.model, start.bf16, saved=len(start.saved)),
    _check_weights,
    lambda start: initial_adapter(start.config, start.model),
    _check_same_weights,
    lambda start: start.tokenizer,
    lambda start: start.prepared,
    _say_length,
    _check_last_step,
    lambda start: start.same_run,
    _check_reference,
    lambda start: check_space(start.config, start.model, start.bf16, start.steps, len(start.saved)),
    _check_selection,
)
"""The further checks of the owner of the output folder, in this order, before any weight is read."""


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
