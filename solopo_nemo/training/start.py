"""A start of a run: its inputs, each read once, at its first use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from solopo_nemo.config.schema import RunConfig
from solopo_nemo.data.prepared import PreparedDataset, TooLong, prepare_dataset, prepared_date
from solopo_nemo.data.template_date import KEY as DATE_KEY
from solopo_nemo.data.tokenizer_files import load_tokenizer
from solopo_nemo.data.triplets import Needs
from solopo_nemo.families import hf
from solopo_nemo.families.description import ModelDescription
from solopo_nemo.families.hf import is_checkpoint
from solopo_nemo.nemo_model.end_tokens import RUN_RECORD
from solopo_nemo.runtime import device
from solopo_nemo.runtime.errors import UserError
from solopo_nemo.training.checkpoints.files import saved_checkpoints
from solopo_nemo.training.checkpoints.record import RunRecord, check_record
from solopo_nemo.training.checkpoints.resume import settle_earlier_run, to_resume_from
from solopo_nemo.training.once import once
from solopo_nemo.training.paths import Paths
from solopo_nemo.training.prepare import (
    file_states,
    find_model,
    hash_weights,
    source_states,
    total_steps,
    training_file,
    weight_files,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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

    @property
    def on_hub(self) -> bool:
        """Whether ``model.init`` names a model on the hub."""
        return self.config.model.init != "builtin" and not Path(self.config.model.init).exists()

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

    def check_same_weights(self) -> None:
        """Checks that the weights are those that the run to resume started from.

        Raises:
            UserError: they are others.
        """
        if self.imported and self.saved and self.origin["weights"] != self.imported.get("weights"):
            raise UserError(
                f"{self.paths.output} holds a run that started from other weights (or config.json, rope_scaling) than "
                f"model.init={self.source} has now: choose another output_dir, or trainer.resume=never to put that run "
                "aside"
            )

    @once
    def same_run(self) -> None:
        """Checks that weights, data and program are those of the checkpoint to resume."""
        self.check_same_weights()
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
