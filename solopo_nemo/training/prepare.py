"""What happens once before the ranks start: model found, layout checked, data tokenized, weights imported."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, cast

from solopo_nemo.data.output import atomic_text, write_json_line
from solopo_nemo.data.prepared import TooLong, prepare_dataset
from solopo_nemo.data.tokenize import load_tokenizer
from solopo_nemo.data.triplets import Needs
from solopo_nemo.errors import UserError
from solopo_nemo.training.checkpoints import is_checkpoint
from solopo_nemo.training.config import RunConfig, check_model

logger = logging.getLogger("solopo_nemo")

BUILTIN_MODEL = Path(__file__).resolve().parents[1] / "assets" / "tiny_qwen2"


@dataclass(frozen=True)
class Paths:
    """Where a run keeps what, below its output folder."""

    output: Path

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.output / "config.yaml"

    @property
    def metrics(self) -> Path:
        """One line a step."""
        return self.output / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Megatron checkpoints."""
        return self.output / "checkpoints"

    @property
    def hf(self) -> Path:
        """The final policy as a Hugging Face folder."""
        return self.output / "hf"

    @property
    def report(self) -> Path:
        """Plots and tables."""
        return self.output / "report"

    @property
    def accuracy(self) -> Path:
        """Answer accuracy before and after."""
        return self.output / "accuracy.json"

    @property
    def tokenized(self) -> Path:
        """The tokenized training samples."""
        return self.output / "data" / "tokenized"

    @property
    def builtin(self) -> Path:
        """The generated built-in triplets."""
        return self.output / "data" / "builtin.jsonl"

    @property
    def initial(self) -> Path:
        """The initial weights as a NeMo checkpoint."""
        return self.output / "initial"

    @property
    def reference(self) -> Path:
        """Reference log-probabilities."""
        return self.output / "reference"


def find_model(init: str) -> Path:
    """The local folder that ``model.init`` means: Hugging Face or NeMo.

    Raises:
        UserError: there is none and the hub does not give it.
    """
    if init == "builtin":
        return BUILTIN_MODEL
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
        return Path(snapshot_download(init, allow_patterns=["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]))
    except Exception as error:  # whatever the hub client raises: offline, unknown, gated
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"model.init={init}: no such folder here, and the Hugging Face hub did not give it ({reason}); "
            "give a local folder"
        ) from None


def hash_weights(folder: Path) -> str:
    """Content hash of all weight files of a model folder."""
    digest = hashlib.sha256()
    files = sorted(p for p in folder.rglob("*") if p.suffix in (".safetensors", ".bin", ".distcp"))
    for file in files:
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
    from transformers import AutoConfig

    paths, source = Paths(config.output), find_model(config.model.init)
    template = source / "hf" if is_checkpoint(source) else source
    try:
        hf_config = AutoConfig.from_pretrained(template, local_files_only=True)
    except (OSError, ValueError) as error:
        raise UserError(f"model.init={config.model.init}: {' '.join(str(error).split())}") from None
    check_model(config, hf_config)
    tokenizer = load_tokenizer(template)
    objective = config.build_objective()
    train = _training_file(config, paths)
    window = int(hf_config.max_position_embeddings)
    max_tokens = config.data.max_tokens or window
    if max_tokens > window:
        raise UserError(f"data.max_tokens={max_tokens} is more than the model's window of {window} tokens")
    needs = Needs(tuple(dict.fromkeys((*objective.sequences, *objective.reference_sequences))))
    prepared = prepare_dataset(
        train,
        tokenizer,
        needs,
        max_tokens,
        cast(TooLong, config.data.too_long),
        paths.tokenized,
        config.model.init,
    )
    _import_weights(source, paths)
    return prepared.summary


def _training_file(config: RunConfig, paths: Paths) -> Path:
    if config.data.train != "builtin":
        return Path(config.data.train)
    from solopo_nemo.data.synthetic import generate_triplets

    builtin = config.data.builtin
    rows = generate_triplets(builtin.samples, builtin.seed, builtin.short_paragraphs, builtin.long_paragraphs)
    paths.builtin.parent.mkdir(parents=True, exist_ok=True)
    with atomic_text(paths.builtin) as stream:
        for row in islice(rows, builtin.samples):
            write_json_line(stream, row)
    return paths.builtin


def _import_weights(source: Path, paths: Paths) -> None:
    """Bring the initial weights into ``output_dir/initial``, unless that is what is there."""
    from solopo_nemo.model.convert import run_apart

    origin = {"weights": hash_weights(source)}
    marker = paths.initial / "source.json"
    if marker.is_file() and json.loads(marker.read_text()) == origin:
        return
    if is_checkpoint(source):
        _link_checkpoint(source, paths.initial)
    else:
        logger.info("importing %s as a Megatron checkpoint", source)
        run_apart("import", source, paths.initial)
    marker.write_text(json.dumps(origin) + "\n")


def _link_checkpoint(source: Path, destination: Path) -> None:
    """Use a NeMo checkpoint where it lies; only what this project adds is our own."""
    import shutil

    shutil.rmtree(destination, ignore_errors=True)
    destination.mkdir(parents=True)
    for part in ("weights", "context", "hf"):
        (destination / part).symlink_to((source / part).resolve())
