"""Loading of tokenizers that transformers 4 or 5 saved, with the same token ids in both versions."""

from __future__ import annotations

import json
import logging
import tempfile
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from solopo_nemo.data import template_date
from solopo_nemo.runtime.errors import UserError, reason_of
from solopo_nemo.runtime.json_files import read_json
from solopo_nemo.runtime.paths import refuse_run_folder
from solopo_nemo.runtime.warn import warn_once

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CONFIG, _TOKENIZER = "tokenizer_config.json", "tokenizer.json"
_TEKKEN = ("mistral", "mistral3", "voxtral", "ministral", "pixtral")
"""Model types whose Tekken tokenizer may have been saved with an incorrect pattern."""
_ONLY_5 = ("backend", "is_local", "local_files_only")

logger = logging.getLogger("solopo_nemo")


def load_tokenizer(
    folder: Path | str, trust_remote_code: bool = False, day: str | None = None
) -> PreTrainedTokenizerBase:
    """Load a tokenizer from a local Hugging Face folder, without network access.

    Args:
        folder: folder that transformers 4 or 5 wrote.
        trust_remote_code: allow the Python code in the folder to run.
        day: date that the chat template prints, such as 2026-11-29; None uses the date of the model's training data,
            or today if the model has none.

    Raises:
        UserError: The folder is missing, or its tokenizer cannot be loaded.
    """
    from transformers import AutoTokenizer

    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder: give a local folder with tokenizer.json and tokenizer_config.json")
    refuse_run_folder(folder, str(folder))
    older, tekken = older_config(folder), _needs_tekken_pattern(folder)
    if tekken:
        logger.warning("%s: its pattern is not Tekken's and is put right: serve it with fix_mistral_regex=True", folder)
    with tempfile.TemporaryDirectory() as temporary:
        source = folder if older is None else _with_config(folder, older, Path(temporary))
        try:
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                str(source), local_files_only=True, trust_remote_code=trust_remote_code, fix_mistral_regex=tekken
            )
            tokenizer("word")  # settings of a wrong type are noticed at the first text
        except Exception as error:  # tokenizers raises bare Exception for a damaged file
            reason = reason_of(error, 600)
            raise UserError(
                f"{folder}: no tokenizer can be loaded from it ({reason}): copy {_TOKENIZER} and {_CONFIG} from the "
                "original model (a clone needs git lfs pull)"
            ) from error
    tokenizer.name_or_path = str(folder)
    stated, own = read_json(folder / _CONFIG, missing={}).get("chat_template"), folder / "chat_template.jinja"
    if isinstance(stated, str) and own.is_file() and stated.strip() != own.read_text(encoding="utf-8").strip():
        warn_once(
            f"{own}: is taken, as by transformers, and not the other chat_template in {_CONFIG}, as by older "
            "programs: remove the wrong one"
        )
    _check_end_token(tokenizer, folder)
    _pin_date(tokenizer, folder, day)
    return tokenizer


def _check_end_token(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Warn of an end token that only ``tokenizer_config.json`` names: loading adds it with a new id."""
    end, file = tokenizer.eos_token, folder / _TOKENIZER
    if end is None or not file.is_file():
        return
    listed = read_json(folder / _CONFIG, missing={}).get("added_tokens_decoder") or {}
    known = file.read_text(encoding="utf-8") + json.dumps(listed, ensure_ascii=False)
    if not any(json.dumps(str(end), ensure_ascii=escaped) in known for escaped in (False, True)):
        warn_once(
            f"{folder}: eos_token {str(end)!r} of {_CONFIG} is not in {_TOKENIZER} and gets the new id "
            f"{tokenizer.eos_token_id}, with which the model was not trained: check its spelling"
        )


def tokenizer_state(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Return everything of a tokenizer that determines token ids, as plain data."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    state: dict[str, Any] = json.loads(backend.to_str()) if backend is not None else {"vocab": tokenizer.get_vocab()}
    # every call sets these two, so they depend on earlier calls
    state.pop("truncation", None)
    state.pop("padding", None)
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return {"state": state, "template": tokenizer.chat_template, "special": special}


def _pin_date(tokenizer: PreTrainedTokenizerBase, folder: Path, day: str | None) -> None:
    kept, today = tokenizer.init_kwargs.get(template_date.KEY), str(date.today())
    try:
        dated = template_date.pin_date(tokenizer, date.fromisoformat(day or kept or today))
    except (TypeError, ValueError):
        raise UserError(f"{folder}: {_CONFIG}: {template_date.KEY}={kept!r} is no day such as {today}") from None
    if dated:
        of = "the day of this run's data" if day else "the day of the model's training data" if kept else "today"
        warn_once(f"the chat template can write the date: {day or kept or today}, {of}, in all prompts")


def _with_config(folder: Path, settings: dict[str, Any], view: Path) -> Path:
    """Fill ``view`` with links to the files of a folder and with a new ``tokenizer_config.json``."""
    for file in folder.iterdir():
        if file.name != _CONFIG:
            (view / file.name).symlink_to(file.resolve())
    (view / _CONFIG).write_text(json.dumps(settings), encoding="utf-8")
    return view


def older_config(folder: Path) -> dict[str, Any] | None:
    """Convert a ``tokenizer_config.json`` of transformers 5 to a form that version 4 reads too.

    Version 5 loads such a tokenizer from ``tokenizer.json`` and ignores the class in the file. So does this form.

    Returns:
        The converted content; None if version 4 wrote the file or there is none.

    Raises:
        UserError: A file is damaged, or ``tokenizer.json`` is missing.
    """
    settings = read_json(folder / _CONFIG, missing={})
    extra = settings.get("extra_special_tokens")
    name = settings.get("tokenizer_class")
    if not ("backend" in settings or isinstance(extra, list) or str(name).endswith("Backend")):
        return None
    if settings.get("backend", "tokenizers") != "tokenizers" or not (folder / _TOKENIZER).is_file():
        raise UserError(
            f"{folder}: {_CONFIG} is of transformers 5 (tokenizer_class {name}), and only with a {_TOKENIZER} can this "
            f"tokenizer be read: copy {_TOKENIZER} and {_CONFIG} from the original model"
        )
    older = {key: value for key, value in settings.items() if key not in _ONLY_5}
    if isinstance(extra, list):
        older["additional_special_tokens"] = older.pop("extra_special_tokens")
    # version 4 sets add_prefix_space to false by default
    pre_tokenizer = read_json(folder / _TOKENIZER).get("pre_tokenizer") or {}
    return older | {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_prefix_space": bool(pre_tokenizer.get("add_prefix_space")),
    }


def _needs_tekken_pattern(folder: Path) -> bool:
    """True if the tokenizer needs ``fix_mistral_regex`` of transformers.

    Some of Mistral's Tekken tokenizers were published with the pattern of another model, so they split text differently
    than in training. transformers 4.57 warns about this for every model, affected or not.
    """
    kind = read_json(folder / "config.json", missing={}).get("model_type")
    if kind not in _TEKKEN or not (folder / _TOKENIZER).is_file():
        return False
    state = read_json(folder / _TOKENIZER)
    splits = (state.get("pre_tokenizer") or {}).get("pretokenizers") or [{}]
    control = {token["content"] for token in state.get("added_tokens", [])}
    # the correct pattern splits a word after its capitals, so it contains \p{Lu}
    return splits[0].get("type") == "Split" and "[INST]" in control and r"\p{Lu}" not in json.dumps(splits[0])
