"""``run.json``: what a run depends on beside its configuration. It is in every checkpoint, and compared on resume.

It has hashes of data and weights instead of their paths. So the same file at another path is the same run, and another
file at the same path is not.
"""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from solopo_nemo.config.schema import RunConfig
from solopo_nemo.data.turns import end_tokens
from solopo_nemo.families.description import ModelDescription
from solopo_nemo.families.hf import is_checkpoint, read_config
from solopo_nemo.nemo_model.adapters import initial_adapter
from solopo_nemo.nemo_model.end_tokens import RUN_RECORD
from solopo_nemo.runtime.errors import UserError
from solopo_nemo.runtime.json_files import write_json
from solopo_nemo.training.checkpoints.files import saved_checkpoints
from solopo_nemo.training.checkpoints.resume import other_run, to_resume_from
from solopo_nemo.training.paths import Paths
from solopo_nemo.training.prepare import source_states

if TYPE_CHECKING:
    from solopo_nemo.training.start import Start

COMPUTATION = 1
"""Version of the computation of a step. Increase it with a change of the code that gives another loss, gradient, update
or order of samples for the same configuration, data and weights. Runs of earlier versions are then refused instead of
continued. Changes of names, messages, speed or rounding do not count. ``data.prepared.FORMAT`` is the version of the
token ids."""
_COMPARED = {
    "computation": "what this program computes in a step",
    "steps": "optimizer steps",
    "precision": "precision",
    "data": "token ids of the samples",
    "weights": "initial weights",
    "adapter": "initial adapters (model.adapter)",
}

logger = logging.getLogger("solopo_nemo")


@dataclass(frozen=True)
class RunRecord:
    """The content of ``run.json``.

    Attributes:
        id: id of the run, which loggers continue.
        computation: :data:`COMPUTATION` of the program.
        steps: optimizer steps of the whole run, at which the learning-rate schedule ends.
        precision: ``fp32`` or ``bf16``.
        data: hash of the token ids of the samples.
        weights: hash of the initial weights and their configuration.
        end_tokens: ids of the tokens that end the training answers.
        sources: see :func:`~solopo_nemo.training.prepare.source_states`.
        adapter: hash of the file of the initial adapters; empty without ``model.adapter``.
    """

    id: str
    computation: int
    steps: int
    precision: str
    data: str
    weights: str
    end_tokens: list[int]
    sources: dict[str, object]
    adapter: str = ""

    @classmethod
    def of(cls, start: Start) -> RunRecord:
        """The record of a start whose data are prepared, with a new id."""
        samples = start.prepared.dataset
        ends = end_tokens(samples.data.column("chosen")) if "chosen" in samples.column_names else set[int]()
        return cls(
            id=uuid.uuid4().hex[:16],
            computation=COMPUTATION,
            steps=start.steps,
            precision="bf16" if start.bf16 else "fp32",
            data=start.prepared.fingerprint,
            weights=start.origin["weights"],
            end_tokens=sorted(ends),
            sources=start.sources,
            adapter=initial_adapter(start.config, start.model),
        )

    @classmethod
    def read(cls, path: Path) -> RunRecord | None:
        """Reads the file; None if it does not exist, as in runs of version 0.1.

        Raises:
            UserError: the file is damaged, or of a later version.
        """
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None
        except (ValueError, TypeError) as error:
            raise UserError(f"{path}: not readable by this version ({error}); choose another output_dir") from None

    def changes(self, new: RunRecord) -> Iterable[str]:
        """Yields the differences between this record of a run and that of a new start, in words."""
        for key, words in _COMPARED.items():
            before, after = str(getattr(self, key)), str(getattr(new, key))
            if before != after:
                yield f"{words}: {before[:12]} there, {after[:12]} here"


def check_record(start: Start) -> None:
    """Compares a start with the record of the checkpoint that it resumes from.

    Raises:
        UserError: data, weights, precision, number of steps or program differ.
    """
    source, checkpoint = start.source, to_resume_from(start.config.trainer.resume, start.saved)
    if is_checkpoint(source) and (misread := _misread_rope(source)):
        logger.warning("model.init=%s: %s; weights that were trained so do not fit", source, misread)
    if checkpoint is None:
        return
    old = RunRecord.read(checkpoint / RUN_RECORD)
    changed = [*old.changes(RunRecord.of(start))] if old else []
    if changed := [*changed, *filter(None, [_misread_rope(checkpoint)])]:
        raise other_run(checkpoint, start.paths, changed)


def write_record(start: Start) -> None:
    """Writes the record of a checked start. A run with a checkpoint keeps its id."""
    new, former = RunRecord.of(start), RunRecord.read(start.paths.record) if start.saved else None
    write_json(start.paths.record, asdict(replace(new, id=former.id) if former else new), indent=1)


def same_sources(paths: Paths, earlier: RunConfig, config: RunConfig) -> bool:
    """Whether data and weights are those of a finished run, by the states of their files, which are not read.

    Args:
        paths: paths of the finished run.
        earlier: its configuration.
        config: configuration of the new start.
    """
    record = RunRecord.read(paths.record)
    names = [
        {"data": one.data.train, "weights": one.model.init, "adapter": one.model.adapter} for one in (earlier, config)
    ]
    if record is None or not saved_checkpoints(paths.checkpoints):
        return names[0] == names[1]
    now = source_states(config)
    return all(
        now[key] == (name if isinstance(now[key], str) else record.sources.get(key)) for key, name in names[0].items()
    )


def _misread_rope(checkpoint: Path) -> str | None:
    """What version 0.1 misread of the rotary embeddings of a checkpoint's model, in words; None if it read all.

    Version 0.1 ignored ``rope_parameters``, which transformers 5 writes. Later versions write both spellings.
    """
    if not (checkpoint / "hf" / "config.json").is_file():
        return None
    now = read_config(checkpoint / "hf")
    then = ModelDescription.from_hf({key: value for key, value in now.source.items() if key != "rope_parameters"})
    before, after = ({"rope_theta": m.rope_theta} | (m.rope_scaling or {}) for m in (then, now))
    return None if before == after else f"rotary embeddings, misread by version 0.1: {before} there, {after} here"
