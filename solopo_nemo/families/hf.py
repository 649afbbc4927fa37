"""Hugging Face folders: read the configuration, and copy all files except the weights."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from solopo_nemo.data.tokenizer_files import older_config
from solopo_nemo.families.description import ModelDescription
from solopo_nemo.families.family import FAMILIES
from solopo_nemo.families.reading import TOKEN_IDS, check_token_ids
from solopo_nemo.families.rope import read_rope
from solopo_nemo.runtime.errors import UserError
from solopo_nemo.runtime.json_files import read_json, write_json
from solopo_nemo.runtime.warn import warn_once

RECORD = "conversion.json"
"""File that a finished conversion writes to its destination."""
TEMPLATE_PATTERNS = (
    *("*.json", "*.jinja", "*.model", "*.model.v*", "*.txt", "merges*", "vocab*", "LICENSE*"),
    "additional_chat_templates/*.jinja",
)
NOT_TEMPLATE = ("model.safetensors.index.json", "pytorch_model.bin.index.json", RECORD)


def is_checkpoint(path: Path) -> bool:
    """True if a folder is a NeMo checkpoint."""
    return (path / "weights" / "metadata.json").is_file() and (path / "context").is_dir()


def read_config(
    folder: Path, *, rope_scaling: Mapping[str, Any] | None = None, rope_key: str = "rope_scaling"
) -> ModelDescription:
    """Read and check the configuration of a model folder.

    Args:
        folder: Hugging Face folder.
        rope_scaling, rope_key: see :meth:`ModelDescription.from_hf`.

    Raises:
        UserError: a file cannot be read, or Megatron's layers would compute the model differently.
    """
    file = folder / "config.json"
    if not file.is_file() and (folder / "adapter_config.json").is_file():
        raise UserError(
            f"{folder}: a LoRA adapter without its model: solopo merge-adapter HF_FOLDER {folder} MERGED makes a model "
            "of both; training goes on from it with peft=lora model.adapter"
        )
    model = ModelDescription.from_hf(read_json(file), str(file), rope_scaling=rope_scaling, rope_key=rope_key)
    generation, stated = folder / "generation_config.json", {file: model.token_ids}
    if generation.exists():
        stated[generation] = read_json(generation)
        for key in TOKEN_IDS:
            check_token_ids(stated[generation].get(key), key, str(generation))
    if model.source.get("auto_map"):
        warn_once(f"{file}: auto_map names Python code, which is not run: the model is {model.family.models}")
    for place, content in stated.items():
        ends = content.get("eos_token_id")
        for end in ends if isinstance(ends, list) else [ends]:
            if end is not None and end >= model.vocab_size:
                warn_once(
                    f"{place}: eos_token_id={end} is beyond the model's vocab_size={model.vocab_size}, so it never "
                    "stops there: write the id of the token that ends its answers"
                )
    return model


def transformers_config(folder: Path) -> Any:
    """A folder's configuration for transformers, with rotary embeddings corrected for transformers 4.

    The family may be unsupported by training, because sampling runs every model that transformers runs.

    Raises:
        UserError: transformers 5 wrote the file, the installed version is older, and the family is unsupported.
    """
    from transformers import AutoConfig, __version__

    raw = read_json(folder / "config.json")
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    if raw.get("rope_parameters") is None or int(__version__.split(".")[0]) >= 5:
        return config
    if config.model_type not in FAMILIES:
        raise UserError(
            f"{folder}/config.json: rope_parameters, as transformers 5 writes it, is misread by transformers "
            f"{__version__}, which is installed; save the model with transformers 4, or ask a server"
        )
    defaults = FAMILIES[config.model_type].defaults
    for key, value in read_rope(raw, config.max_position_embeddings, f"{folder}/config.json", defaults).items():
        setattr(config, key, value)
    return config


def template_files(folder: Path, *, code: bool = False) -> list[Path]:
    """The files of a Hugging Face folder without its weights; ``code``: Python files too."""
    patterns = (*TEMPLATE_PATTERNS, *(("*.py",) if code else ()))
    found = (file for pattern in patterns for file in folder.glob(pattern))
    return sorted({file for file in found if file.is_file() and file.name not in NOT_TEMPLATE})


def copy_template(source: Path, destination: Path, changes: Mapping[str, Any], *, code: bool = False) -> None:
    """Copy a Hugging Face folder without its weights: configuration, tokenizer, chat templates, licence.

    A ``tokenizer_config.json`` of transformers 5 is rewritten so that transformers 4 can read it too.

    Args:
        source: Hugging Face folder.
        destination: output folder; created if missing.
        changes: keys to replace in ``config.json``. If empty, the file is copied byte for byte.
        code: True to copy Python files too.
    """
    destination.mkdir(parents=True, exist_ok=True)
    for file in template_files(source, code=code):
        target = destination / file.relative_to(source)
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, target)
    if (older := older_config(source)) is not None:
        write_json(destination / "tokenizer_config.json", older, ensure_ascii=False)
    if changes:
        copied = destination / "config.json"
        write_json(copied, {**read_json(copied), **changes})


def linked_copy(source: Path, destination: Path, changes: Mapping[str, Any]) -> Path:
    """Copy a Hugging Face folder with changes to ``config.json``; the weights are symbolic links."""
    copy_template(source, destination, changes)
    for file in source.glob("*.safetensors*"):
        (destination / file.name).unlink(missing_ok=True)
        (destination / file.name).symlink_to(file.resolve())
    return destination
