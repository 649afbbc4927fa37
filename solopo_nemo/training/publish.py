"""Publishing of a finished run: the model card of the exported policy, and the upload to the hub."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
from pathlib import Path
from typing import Any

import yaml

from solopo_nemo.config.schema import RunConfig
from solopo_nemo.evaluation.accuracy import AccuracyRow
from solopo_nemo.families.hf import RECORD
from solopo_nemo.runtime.credentials import sign_in_of_mlflow
from solopo_nemo.runtime.errors import UserError
from solopo_nemo.runtime.kernels import version_of
from solopo_nemo.runtime.output import atomic_text
from solopo_nemo.training.paths import Paths
from solopo_nemo.training.report.rows import read_metrics

LOGGERS = ("mlflow", "trackio", "swanlab")
"""Loggers whose package the user installs; each has the name of its package."""
_PACKAGES = ("solopo-nemo", "torch", "megatron-core", "nemo_toolkit", "transformers", "tokenizers")
_CITATION = """```bibtex
@article{solopo,
  title   = {SoLoPO: Unlocking Long-Context Capabilities in LLMs via Short-to-Long Preference Optimization},
  journal = {arXiv preprint arXiv:2505.11166},
  year    = {2025}
}
```"""

logger = logging.getLogger("solopo_nemo")


def check_publishing(config: RunConfig) -> None:
    """Checks the packages of the loggers and the access to the hub, before the run begins.

    Raises:
        UserError: the package of a logger is missing, MLflow's address has half a sign-in, there is no token for the
            hub, or ``HF_HUB_OFFLINE`` is set.
    """
    for name in LOGGERS:
        if (project := getattr(config.logger, name)) and importlib.util.find_spec(name) is None:
            raise UserError(f"logger.{name}={project}: the package {name} is not installed: pip install {name}")
    if config.logger.mlflow:
        sign_in_of_mlflow(os.environ.get("MLFLOW_TRACKING_URI", ""))
    if config.hub.push:
        from huggingface_hub import constants, get_token

        if constants.HF_HUB_OFFLINE:
            raise UserError(f"hub.push={config.hub.push}: HF_HUB_OFFLINE is set; unset it, or leave hub.push out")
        if not get_token():
            raise UserError(f"hub.push={config.hub.push}: no token; set HF_TOKEN to one that may write")


def exported_policy(config: RunConfig) -> Path:
    """The folder to publish: the policy, or the adapters if they are not merged."""
    paths = Paths(config.output)
    return paths.hf_adapter if config.peft.on and not config.peft.merge else paths.hf


def write_card(config: RunConfig, step: int) -> None:
    """Writes the model card ``README.md`` of the exported policy.

    It has base model, recipe, data, objective, metrics, versions and citation. Of a local path it has only the name.

    Args:
        config: configuration of the run.
        step: the step whose weights are exported.
    """
    paths, base, policy = Paths(config.output), config.model.init, exported_policy(config)
    is_path = Path(base).exists() or base == "builtin"
    head: dict[str, Any] = {
        **({} if is_path else {"base_model": base}),
        "library_name": "transformers" if policy == paths.hf else "peft",
        "pipeline_tag": "text-generation",
        "tags": ["solopo", "preference-optimization", "long-context", str(config.objective["name"])],
    }
    objective = ", ".join(f"`{key}={value}`" for key, value in config.objective.items() if key != "name")
    batch, lr = config.trainer.global_batch, config.optim.lr
    name = Path(base).name if is_path else base
    rows = {
        "Base model": "the embedded model of this project" if base == "builtin" else name,
        "Recipe": config.recipe,
        "Objective": f"{config.objective['name']} ({objective})",
        **({"Adapters": config.peft.words} if config.peft.on else {}),
        "Data": Path(config.data.train).name,
        "Training": f"{step} steps of {batch} samples, learning rate {lr:g}",
        **_results(paths),
        "Versions": ", ".join(f"{name} {version_of(name) or 'not installed'}" for name in _PACKAGES),
    }
    lines = ["---", yaml.safe_dump(head, sort_keys=False).rstrip(), "---", "", f"# {_title(config)}", ""]
    lines += ["Trained with short-to-long preference optimization (SoLoPO) on NeMo and Megatron-core.", ""]
    lines += ["| | |", "|---|---|", *(f"| {name} | {_cell(value)} |" for name, value in rows.items())]
    lines += ["", "## Citation", "", _CITATION, ""]
    with atomic_text(policy / "README.md") as stream:
        stream.write("\n".join(lines))


def push(config: RunConfig) -> None:
    """Uploads the exported policy to the hub. A second upload of the same files changes nothing there.

    Raises:
        UserError: the hub refuses the upload, or cannot be reached.
    """
    check_publishing(config)
    assert config.hub.push is not None
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    folder, api = exported_policy(config), HfApi()
    try:
        place = api.create_repo(config.hub.push, private=config.hub.private, exist_ok=True)
        api.upload_folder(
            repo_id=config.hub.push, folder_path=folder, ignore_patterns=[RECORD], commit_message=_title(config)
        )
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"hub.push={config.hub.push}: {reason}; the policy is in {folder}, and the same command tries again"
        ) from None
    logger.info("uploaded %s to %s", folder, place)


def _title(config: RunConfig) -> str:
    name = config.hub.push.rpartition("/")[2] if config.hub.push else config.output.resolve().name
    return f"{name} ({config.recipe})"


def _results(paths: Paths) -> dict[str, str]:
    """The metrics of the last step, and the answer accuracy if it was measured, as rows of the card."""
    found = {}
    if rows := read_metrics(paths.metrics):
        shown = ("loss", "rewards/accuracy", "rewards/margin", "align/gap")
        values = [f"{name} {rows[-1][name]:.4g}" for name in shown if isinstance(rows[-1].get(name), float)]
        found["Last step"] = ", ".join(values)
    if paths.accuracy.is_file():
        for moment, measured in json.loads(paths.accuracy.read_text()).items():
            shares = [f"{row.length}x {100 * row.accuracy:.1f} %" for row in (AccuracyRow(**each) for each in measured)]
            found[f"Answer accuracy {moment}"] = ", ".join(shares)
    return found


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
