"""Parts of a run's preparation before its ranks start: model, weights, number of steps, built-in data."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from solopo_nemo.config.schema import RunConfig
from solopo_nemo.data.rows import data_files
from solopo_nemo.data.template_date import KEY as DATE_KEY
from solopo_nemo.families import hf
from solopo_nemo.families.description import ModelDescription
from solopo_nemo.families.hf import is_checkpoint
from solopo_nemo.nemo_model.adapters import run_of
from solopo_nemo.runtime.errors import UserError, reason_of
from solopo_nemo.runtime.output import atomic_text, write_json_line
from solopo_nemo.runtime.paths import EMBEDDED_MODEL, refuse_run_folder
from solopo_nemo.training.paths import Paths

if TYPE_CHECKING:
    from solopo_nemo.training.start import Start

logger = logging.getLogger("solopo_nemo")


def find_model(init: str, weights: bool = True, option: str = "model.init=") -> Path:
    """The local folder of ``model.init``: a Hugging Face folder or a NeMo checkpoint.

    Args:
        init: a folder, ``builtin``, or a name on the hub, which is downloaded.
        weights: whether to download the weights.
        option: the option in messages, such as ``model.init=``.

    Raises:
        UserError: the folder does not exist or has no model, or the hub does not provide it.
    """
    named = f"{option}{init}"
    if init == "builtin":
        return EMBEDDED_MODEL
    path = Path(init)
    if is_checkpoint(path):
        if not (path / "hf" / "config.json").is_file():
            raise UserError(
                f"{named}: a NeMo checkpoint without an hf/ folder (config.json and tokenizer): "
                "copy the model's configuration and tokenizer there"
            )
        if run_of(path):
            raise UserError(
                f"{named}: this checkpoint holds adapters alone: give the run's own model.init, and its "
                "hf_adapter folder as peft=lora model.adapter=FOLDER"
            )
        return path
    if path.is_dir():
        refuse_run_folder(path, named)
        if not (path / "config.json").is_file():
            adapter = (path / "adapter_config.json").is_file()
            what = "a LoRA adapter: give its model here and the adapter as peft=lora model.adapter=FOLDER"
            what = what if adapter else "neither a Hugging Face folder (no config.json) nor a NeMo checkpoint"
            raise UserError(f"{named}: {what}")
        return path
    if path.is_absolute() or init.startswith(".") or init.count("/") != 1:
        url = re.match(r"https?://huggingface\.co/([^/]+/[^/]+)", init)
        way = f"; on the hub this is {option}{url[1]}" if url else ""
        raise UserError(f"{named}: no such folder{way}")
    from huggingface_hub import snapshot_download

    try:
        wanted = ["*.json", "*.model", "*.txt", "*.jinja", *(["*.safetensors"] if weights else [])]
        return Path(snapshot_download(init, allow_patterns=wanted, ignore_patterns=["consolidated*", "original/*"]))
    except Exception as error:  # the hub client raises many types: offline, unknown name, gated model
        reason = reason_of(error)
        raise UserError(
            f"{named}: no such folder here, and the Hugging Face hub did not give it ({reason}); give a local folder"
        ) from None


def find_tokenizer(name: str) -> Path:
    """The local folder of ``--tokenizer``: a folder with a tokenizer, or a value of ``model.init``.

    Raises:
        UserError: see :func:`find_model`.
    """
    return Path(name) if Path(name).is_dir() else find_model(name, weights=False, option="--tokenizer ")


def weight_files(folder: Path) -> list[Path]:
    """The weight files and the configuration of a model folder, sorted."""
    return sorted(p for p in folder.rglob("*") if p.suffix in (".safetensors", ".distcp") or p.name == "config.json")


def file_states(folder: Path, files: Iterable[Path]) -> list[Any]:
    """Names, sizes, modification times and inodes of files, as a cheap substitute for their contents.

    A file may change within two seconds without a new modification time. If a file is younger, the result contains the
    present time, so that it equals no other result.
    """
    states = [(str(p.relative_to(folder)), p.stat()) for p in files]
    young = [time.time_ns() for _, state in states if time.time_ns() - state.st_mtime_ns < 2_000_000_000]
    return [*([name, s.st_size, s.st_mtime_ns, s.st_ino] for name, s in states), *young]


def source_states(config: RunConfig) -> dict[str, Any]:
    """The :func:`file_states` of ``data.train``, ``model.init`` and ``model.adapter``; a name that is no path stays."""
    adapter = config.model.adapter
    found: dict[str, Any] = {"data": config.data.train, "weights": config.model.init, "adapter": adapter}
    if adapter and Path(adapter).is_dir():
        found["adapter"] = file_states(Path(adapter), sorted(Path(adapter).glob("adapter_*")))
    data, model = Path(config.data.train), Path(config.model.init)
    if data.exists():
        found["data"] = file_states(data.parent, data_files(data))
    if model.is_dir():
        found["weights"] = file_states(model, weight_files(model))
    return found


def hash_weights(folder: Path, model: ModelDescription) -> str:
    """The SHA-256 of a model folder: its weight files, and the values of its configuration that affect the model."""
    digest = hashlib.sha256(model.computation().encode())
    for file in (file for file in weight_files(folder) if file.name != "config.json"):
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def read_weights_hash(paths: Paths) -> str:
    """The :func:`hash_weights` of the folder that the initial checkpoint was imported from."""
    return str(json.loads((paths.initial / "source.json").read_text())["weights"])


def total_steps(config: RunConfig, samples: int) -> int:
    """The number of optimizer steps of a run over a data set of ``samples`` samples.

    If the epochs do not fill the last global batch, samples of the next shuffle fill it, so that no sample is dropped
    and all steps have the same number of samples.
    """
    if config.trainer.max_steps is not None:
        return config.trainer.max_steps
    return -(-samples * config.trainer.epochs // config.trainer.global_batch)


def shuffled(seed: int, epoch: int, samples: int) -> np.ndarray:
    """The order of the samples in an epoch, int64 ``[samples]``."""
    return np.random.default_rng((seed, epoch)).permutation(samples)


def seen_samples(config: RunConfig, samples: int) -> np.ndarray:
    """The sorted indices of the samples that the run trains on, int64 ``[seen]``.

    These are all samples, unless ``trainer.max_steps`` ends the run within the first epoch.
    """
    seen = total_steps(config, samples) * config.trainer.global_batch
    return np.sort(shuffled(config.trainer.seed, 0, samples)[:seen])


def length_in_words(config: RunConfig, samples: int) -> str:
    """One sentence for the log: the number of steps and epochs of a run, and samples that are repeated or left out."""
    trainer, steps = config.trainer, total_steps(config, samples)
    batch, seen = trainer.global_batch, steps * trainer.global_batch
    passes = "1 epoch" if seen == samples else f"{seen / samples:.4g} epochs"
    text = f"{steps} steps of trainer.global_batch={batch} see {passes} of {samples} samples"
    if seen < samples:
        text += f": {samples - seen} samples are never seen (trainer.max_steps={steps})"
    elif trainer.max_steps is None and (more := seen - samples * trainer.epochs):
        text += f": trainer.epochs={trainer.epochs}, and {more} samples again, which fill the last batch"
    if batch > samples:
        text += (
            f"; the batch is larger than the data, so that one step sees a sample {batch / samples:.3g} times: give a "
            f"trainer.global_batch of at most {samples}"
        )
    return text


def training_file(config: RunConfig, paths: Paths) -> Path:
    """The file or folder of ``data.train``. The built-in triplets are generated below ``paths``."""
    if config.data.train != "builtin":
        return Path(config.data.train)
    from solopo_nemo.embedded import generate_triplets

    builtin = config.data.builtin
    paths.builtin.parent.mkdir(parents=True, exist_ok=True)
    with atomic_text(paths.builtin) as stream:
        for row in generate_triplets(builtin.samples, builtin.long_paragraphs):
            write_json_line(stream, row)
    return paths.builtin


def import_weights(start: Start) -> None:
    """Writes initial weights, configuration and tokenizer to ``output_dir/initial``, unless they are there already."""
    from solopo_nemo.nemo_model.convert import import_hf

    source, initial, known = start.source, start.paths.initial, start.imported
    if known == start.origin:
        return
    if known.get("weights") != start.origin["weights"]:
        shutil.rmtree(initial, ignore_errors=True)
        if is_checkpoint(source):
            initial.mkdir(parents=True)
            for part in ("weights", "context", "hf"):
                (initial / part).symlink_to((source / part).resolve())
        else:
            logger.info("importing %s as a Megatron checkpoint", source)
            import_hf(source, initial, rope_scaling=start.config.model.rope_scaling)
    template, changes = initial / "hf", start.model.changes()
    if template.is_symlink() and changes:
        template.unlink()
    if not template.is_symlink():  # tokenizer and end tokens may have changed while the weights did not
        shutil.rmtree(template, ignore_errors=True)
        hf.copy_template(start.template, template, changes)
    with atomic_text(initial / "source.json") as stream:
        write_json_line(stream, start.origin)


def keep_date(start: Start) -> None:
    """Stores the date of the run's prompts with the initial weights, from which checkpoints and the export copy it."""
    day, folder = start.prepared.summary.get("date"), start.paths.initial / "hf"
    if day is None:
        return
    if folder.is_symlink():  # a link to the user's checkpoint, which must not change
        folder.unlink()
        hf.copy_template(start.template, folder, {})
    file = folder / "tokenizer_config.json"
    settings = hf.read_json(file) if file.is_file() else {}
    if settings.get(DATE_KEY) != day:
        with atomic_text(file) as stream:
            stream.write(json.dumps(settings | {DATE_KEY: day}, indent=2, ensure_ascii=False) + "\n")
