"""Folders of the package, and expansion of ``~`` in the paths that users give."""

from __future__ import annotations

from pathlib import Path

from solopo_nemo.runtime.errors import UserError

_PACKAGE = Path(__file__).resolve().parents[1]

ASSETS = _PACKAGE / "assets"
"""Page templates, shapes of public models, the embedded model, and the Slurm scripts."""

CONF = (_PACKAGE / "conf").resolve()
"""The YAML defaults of every recipe. In a checkout ``solopo_nemo/conf`` is a link to ``conf``."""

EMBEDDED_MODEL = ASSETS / "tiny_qwen2"
"""The Hugging Face folder that ``model.init=builtin`` names."""

EMBEDDED_PAIRS = ASSETS / "tiny_qwen2_pairs.jsonl.gz"
"""The answers that ``data.train=builtin`` trains on, sampled from that model."""


def refuse_run_folder(folder: Path, named: str) -> None:
    """Refuses the output folder of a run in place of the model in its ``hf``.

    Args:
        folder: a folder that should hold a model or a tokenizer.
        named: the beginning of the message, which names the folder.

    Raises:
        UserError: the model is in the subfolder ``hf``.
    """
    if not (folder / "config.json").is_file() and (folder / "hf" / "config.json").is_file():
        raise UserError(f"{named}: the folder of a run, whose model is in {folder / 'hf'}: give that")


def expand_home(path: str, key: str = "") -> str:
    """Replaces a leading ``~`` or ``~user`` of a path by the home folder, as a shell does at the start of a word.

    Args:
        path: a path, or a name such as a hub name, which is returned unchanged.
        key: prefix of error messages that names the option, such as ``output_dir=``.

    Raises:
        UserError: the user has no home folder here.
    """
    try:
        # not the Path itself, which would drop the ./ of ./name
        return path if path[:1] != "~" else str(Path(path).expanduser())
    except RuntimeError:
        user = path.split("/")[0]
        raise UserError(f"{key}{path}: no home folder {user} here: write ./{path} for a name that begins so") from None
