"""Prepares a run once, before its ranks start: model found, layout checked, data tokenized, weights imported."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from pathlib import Path
from typing import Any, cast

from solopo_nemo.config.schema import RunConfig
from solopo_nemo.config.world import check_model
from solopo_nemo.data.prepared import TooLong, prepare_dataset
from solopo_nemo.data.tokenizer_files import load_tokenizer
from solopo_nemo.data.triplets import Needs
from solopo_nemo.families import hf
from solopo_nemo.families.hf import is_checkpoint
from solopo_nemo.families.weights import find_weights
from solopo_nemo.runtime import device
from solopo_nemo.runtime.errors import UserError
from solopo_nemo.runtime.output import atomic_text, write_json_line
from solopo_nemo.runtime.paths import EMBEDDED_MODEL
from solopo_nemo.training.checkpoints.files import check_origin, saved_checkpoints
from solopo_nemo.training.checkpoints.selection import check_selection
from solopo_nemo.training.checkpoints.space import check_space
from solopo_nemo.training.paths import Paths

logger = logging.getLogger("solopo_nemo")


def find_model(init: str) -> Path:
    """The local folder that ``model.init`` means: Hugging Face or NeMo.

    Raises:
        UserError: there is none and the hub does not give it.
    """
    if init == "builtin":
        return EMBEDDED_MODEL
    path = Path(init)
    if is_checkpoint(path):
        if not (path / "hf" / "config.json").is_file():
            raise UserError(
                f"model.init={init}: a NeMo checkpoint without an hf/ folder (config.json and tokenizer): "
                "copy the model's configuration and tokenizer there"
            )
        return path
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(f"model.init={init}: neither a Hugging Face folder (no config.json) nor a NeMo checkpoint")
        return path
    if path.is_absolute() or init.startswith(".") or init.count("/") != 1:
        raise UserError(f"model.init={init}: no such folder")
    from huggingface_hub import snapshot_download

    try:
        wanted = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
        return Path(snapshot_download(init, allow_patterns=wanted, ignore_patterns=["consolidated*", "original/*"]))
    except Exception as error:  # whatever the hub client raises: offline, unknown, gated
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"model.init={init}: no such folder here, and the Hugging Face hub did not give it ({reason}); "
            "give a local folder"
        ) from None


def _weight_files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix in (".safetensors", ".distcp") or p.name == "config.json")


def _file_states(folder: Path, rope_scaling: dict[str, Any] | None) -> list[Any]:
    """Names, sizes, times and inodes of the files behind :func:`hash_weights`: unchanged, they need no new hash.

    Empty where a file is younger than two seconds, in which it may change without another time.
    """
    states = [(str(p.relative_to(folder)), p.stat()) for p in _weight_files(folder)]
    if any(time.time_ns() - state.st_mtime_ns < 2_000_000_000 for _, state in states):
        return []
    return [rope_scaling, *([name, s.st_size, s.st_mtime_ns, s.st_ino] for name, s in states)]


def hash_weights(folder: Path, rope_scaling: dict[str, Any] | None) -> str:
    """Hash of what a model folder computes: its weight files and configuration, and other rope scaling."""
    digest = hashlib.sha256(json.dumps(rope_scaling, sort_keys=True).encode())
    for file in _weight_files(folder):
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def read_weights_hash(paths: Paths) -> str:
    """Hash of the source that the initial checkpoint was made from."""
    return str(json.loads((paths.initial / "source.json").read_text())["weights"])


def total_steps(config: RunConfig, samples: int) -> int:
    """Optimizer steps of a run over a data set of ``samples``.

    A last global batch that the epochs do not fill is filled from the next shuffle: no sample is dropped
    and every step has the same weight.
    """
    if config.trainer.max_steps is not None:
        return config.trainer.max_steps
    return -(-samples * config.trainer.epochs // config.trainer.global_batch)


def prepare(config: RunConfig) -> dict[str, Any]:
    """Check and make everything that the ranks share. Idempotent; nothing is done twice.

    Returns:
        The summary of the tokenized data.

    Raises:
        UserError: model, layout or data that cannot be used; before any weight is read.
    """
    paths, source = Paths(config.output), find_model(config.model.init)
    if is_checkpoint(source):
        check_origin(source, "model.init", config.model.trust_checkpoint)
    template = source / "hf" if is_checkpoint(source) else source
    rope_scaling = config.model.rope_scaling
    try:
        hf_config = hf.read_config(template, rope_scaling=rope_scaling, rope_key="model.rope_scaling")
    except UserError as error:
        raise UserError(f"model.init={config.model.init}: {error}") from None
    check_model(config, hf_config)
    check_space(config, hf_config, bf16=_in_bf16(config))
    if template is source:
        find_weights(source, hf_config)
    tokenizer = load_tokenizer(template)
    objective = config.build_objective()
    train = _training_file(config, paths)
    window = hf_config.window
    max_tokens = config.data.max_tokens or window
    if max_tokens > window:
        raise UserError(
            f"data.max_tokens={max_tokens} is more than the model's window of {window} tokens; model.rope_scaling "
            "extends it: 'model.rope_scaling={type: yarn, factor: 4.0}'"
        )
    needs = Needs(tuple(dict.fromkeys((*objective.sequences, *objective.reference_sequences))))
    prepared = prepare_dataset(
        train,
        tokenizer,
        needs,
        max_tokens,
        cast(TooLong, config.data.too_long),
        paths.tokenized,
        config.model.init,
        vocab_size=hf_config.vocab_size,
        template_kwargs=config.data.chat_template_kwargs,
        in_progress=bool(saved_checkpoints(paths.checkpoints)),
    )
    if config.trainer.select_best:
        steps = total_steps(config, len(prepared.dataset))
        check_space(config, hf_config, bf16=_in_bf16(config), steps=steps)
    _import_weights(source, paths, hf_config, rope_scaling)
    check_selection(config, paths.initial / "hf")
    return prepared.summary


def _in_bf16(config: RunConfig) -> bool:
    return (config.trainer.precision or device.default_precision()) == "bf16"


def _training_file(config: RunConfig, paths: Paths) -> Path:
    if config.data.train != "builtin":
        return Path(config.data.train)
    from solopo_nemo.embedded import generate_triplets

    builtin = config.data.builtin
    paths.builtin.parent.mkdir(parents=True, exist_ok=True)
    with atomic_text(paths.builtin) as stream:
        for row in generate_triplets(builtin.samples, builtin.long_paragraphs):
            write_json_line(stream, row)
    return paths.builtin


def _import_weights(source: Path, paths: Paths, hf_config: Any, rope_scaling: dict[str, Any] | None) -> None:
    """Bring the initial weights into ``output_dir/initial``, unless that is what is there."""
    from solopo_nemo.nemo_model.convert import import_hf

    marker = paths.initial / "source.json"
    known = json.loads(marker.read_text()) if marker.is_file() else {}
    files = _file_states(source, rope_scaling)
    if files and known.get("files") == files:
        return
    origin = {"weights": hash_weights(source, rope_scaling), "files": files}
    if known.get("weights") == origin["weights"]:
        with atomic_text(marker) as stream:
            write_json_line(stream, origin)
        return
    if known and saved_checkpoints(paths.checkpoints):
        raise UserError(
            f"{paths.output} holds a run that started from other weights or another rope_scaling than "
            f"model.init={source} has now: choose another output_dir, or trainer.resume=never to put that run aside"
        )
    shutil.rmtree(paths.initial, ignore_errors=True)
    if is_checkpoint(source):
        _link_checkpoint(source, paths.initial)
        if changes := hf_config.changes():
            (paths.initial / "hf").unlink()
            hf.copy_template(source / "hf", paths.initial / "hf", changes)
    else:
        logger.info("importing %s as a Megatron checkpoint", source)
        import_hf(source, paths.initial, rope_scaling=rope_scaling)
    with atomic_text(marker) as stream:
        write_json_line(stream, origin)


def _link_checkpoint(source: Path, destination: Path) -> None:
    """Link to a NeMo checkpoint in place; only the marker is a file of our own."""
    destination.mkdir(parents=True)
    for part in ("weights", "context", "hf"):
        (destination / part).symlink_to((source / part).resolve())
