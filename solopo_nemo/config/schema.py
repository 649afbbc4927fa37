"""The configuration of a run: its schema, its composition from YAML, and the checks before any work.

Defaults live in ``conf/`` only; the dataclasses here name the keys and their types.
"""

from __future__ import annotations

import importlib
import logging
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from solopo_nemo.config.overrides import FORMER_KEYS, compose_recipe, one_line
from solopo_nemo.config.parallel import ParallelConfig
from solopo_nemo.config.peft import PeftConfig
from solopo_nemo.embedded import SHORT_PARAGRAPHS
from solopo_nemo.embedded.world import MAX_PARAGRAPHS
from solopo_nemo.runtime import kernels
from solopo_nemo.runtime.cli import command_name
from solopo_nemo.runtime.errors import UserError, require
from solopo_nemo.runtime.options import check_options, choice, number, path, path_options
from solopo_nemo.runtime.paths import CONF, expand_home

logger = logging.getLogger("solopo_nemo")


@dataclass(kw_only=True)
class ModelConfig:
    """Where the weights come from and how the model is computed."""

    init: str = path()
    rope_scaling: dict[str, Any] | None
    trust_checkpoint: bool
    recompute: str = choice(allowed=("none", "selective", "full"))
    logits_chunk_size: int = number(minimum=1)
    layers: str = choice(allowed=kernels.LAYERS, default="auto")  # absent in the configuration of earlier runs
    adapter: str | None = path(None)  # likewise
    moe_aux_loss: float | None = number(None, minimum=0, optional=True)  # likewise
    moe_z_loss: float = number(0.0, minimum=0)  # likewise


@dataclass(kw_only=True)
class BuiltinDataConfig:
    """Size of the built-in question set."""

    samples: int = number(minimum=1)
    long_paragraphs: int = number(minimum=SHORT_PARAGRAPHS)


@dataclass(kw_only=True)
class DataConfig:
    """Training samples."""

    train: str = path()
    max_tokens: int | None = number(minimum=2, optional=True)
    too_long: str = choice(allowed=("error", "drop"))
    chat_template_kwargs: dict[str, Any] | None = None  # absent in the configuration of earlier runs
    score: str = choice("assistant", allowed=("assistant", "last"))  # likewise
    template_mismatch: str = choice("error", allowed=("error", "warn"))  # likewise
    builtin: BuiltinDataConfig


@dataclass(kw_only=True)
class OptimConfig:
    """AdamW and its schedule."""

    lr: float = number(above=0)
    min_lr: float = number(minimum=0)
    warmup_ratio: float = number(minimum=0, below=1)
    weight_decay: float = number(minimum=0)
    beta1: float = number(minimum=0, below=1)
    beta2: float = number(minimum=0, below=1)
    eps: float = number(above=0)
    clip_grad: float = number(minimum=0)


@dataclass(kw_only=True)
class TrainerConfig:
    """Length of the run, batches, precision, checkpoints."""

    max_steps: int | None = number(minimum=1, optional=True)
    epochs: int = number(minimum=1)
    global_batch: int = number(minimum=1)
    micro_batch: int = number(minimum=1)
    seed: int = number(minimum=1)
    precision: str | None = choice(allowed=("fp32", "bf16"), optional=True)
    checkpoint_every: int = number(minimum=1)
    keep_checkpoints: int = number(minimum=1)
    select_best: str | None
    resume: str = path()
    nonfinite: str = choice(allowed=("stop", "skip"))
    timeout_minutes: float = number(above=0)


@dataclass(kw_only=True)
class LoggerConfig:
    """Lightning loggers beside metrics.jsonl."""

    tensorboard: bool
    wandb: str | None
    # absent in the configuration of earlier runs
    mlflow: str | None = None
    trackio: str | None = None
    swanlab: str | None = None


@dataclass(kw_only=True)
class HubConfig:
    """Upload of the exported policy."""

    push: str | None = None
    private: bool = True


@dataclass(kw_only=True)
class EvaluationConfig:
    """Built-in before/after evaluation."""

    name: str = choice(allowed=("auto", "builtin", "none"))
    lengths: list[int]
    questions: int = number(minimum=1)
    data: str = path()
    limit: int | None = number(minimum=1, optional=True)
    seed: int


@dataclass(kw_only=True)
class DryRunConfig:
    """What ``dry_run=true`` traces; see :mod:`solopo_nemo.training.dry_run`."""

    enabled: bool = False
    device: str = choice("cuda", allowed=("cuda", "cpu"))
    gpus: int | None = number(None, minimum=1, optional=True)
    memory: float | None = number(None, above=0, optional=True)
    length: str | None = None


@dataclass(kw_only=True)
class RunConfig:
    """A whole run."""

    recipe: str
    output_dir: str = path()
    model: ModelConfig
    objective: dict[str, Any]
    data: DataConfig
    parallel: ParallelConfig
    optim: OptimConfig
    trainer: TrainerConfig
    logger: LoggerConfig
    evaluation: EvaluationConfig
    check_only: bool = False  # absent in the configuration of earlier runs
    dry_run: DryRunConfig = field(default_factory=DryRunConfig)  # likewise
    hub: HubConfig = field(default_factory=HubConfig)  # likewise
    peft: PeftConfig = field(default_factory=PeftConfig)  # likewise
    plugins: list[str] = field(default_factory=list)  # no YAML default: Hydra's +plugins=[...] adds the key

    @property
    def output(self) -> Path:
        """The output folder."""
        return Path(self.output_dir)

    @property
    def reference(self) -> str:
        """How the reference policy is run: ``cached``, ``online`` or ``adapter_off``."""
        return self.objective.get("reference", "cached")

    @property
    def auto_alpha(self) -> bool:
        """Whether the run chooses ``objective.alpha`` itself; see :mod:`solopo_nemo.training.callbacks.auto_alpha`."""
        return bool(self.objective.get("alpha") == "auto")

    def build_objective(self) -> Any:
        """The objective that this configuration names; with ``alpha=auto``, of alpha 1 until the run has chosen.

        Raises:
            UserError: unknown name or option, or a value out of range.
        """
        from solopo_nemo.objectives import build_objective

        if self.plugins and str(Path.cwd()) not in sys.path:
            sys.path.insert(0, str(Path.cwd()))  # a user's own modules lie where the command is given
        for module in self.plugins:
            try:
                importlib.import_module(module)
            except ImportError as error:
                raise UserError(f"plugins: cannot import {module!r} ({error}); is it on PYTHONPATH?") from None
        options = {k: v for k, v in self.objective.items() if k not in ("name", "reference")}
        if self.auto_alpha:
            options["alpha"] = 1.0
        objective = build_objective(self.objective["name"], **options)
        if self.auto_alpha and not objective.aligned_answers:
            raise UserError(
                f"objective.alpha=auto: with objective.align={objective.align} nothing is aligned; give alpha a number"
            )
        return objective


_PATHS = tuple(path_options(RunConfig))
"""The keys that name a file or a folder."""


def load_config(recipe: str, overrides: Sequence[str]) -> RunConfig:
    """Compose ``conf/<recipe>.yaml`` with command-line overrides and check it.

    Raises:
        UserError: unknown key, wrong type, missing value, or a layout or batch that cannot be.
    """
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            composed = compose_recipe(recipe, overrides, _PATHS)
        with open_dict(composed):
            chosen = composed.pop("hydra").runtime.choices
        merged = OmegaConf.merge(OmegaConf.structured(RunConfig), composed)
        missing = OmegaConf.missing_keys(merged)
        if missing:
            raise UserError(f"{', '.join(sorted(missing))}: no value given; set it on the command line as key=value")
        for key in _PATHS:
            if (value := OmegaConf.select(merged, key)) is not None:
                OmegaConf.update(merged, key, expand_home(value, f"{key}="))
        config: RunConfig = OmegaConf.to_object(merged)  # type: ignore[assignment]
        if config.peft.on and "reference" in config.objective and not _gives("objective.reference", overrides):
            config.objective["reference"] = "adapter_off"
    except (HydraException, OmegaConfBaseException) as error:
        # Hydra's advice to append the key is right for plugins alone
        reason = re.sub(r"Could not override '(?!plugins')(.*?)'.*", r"there is no key \1", one_line(error))
        reason += "; peft=lora brings it" if "no key peft." in reason else ""
        raise UserError(f"configuration: {reason} ({command_name()} --help lists the keys)") from None
    _check(config)
    if chosen["model"] == "tiny_qwen2" and config.model.init != "builtin":
        logger.warning(
            "model=tiny_qwen2 brings the embedded model's settings (optim.lr=%g); your own model takes model=custom",
            config.optim.lr,
        )
    return config


def _gives(key: str, overrides: Sequence[str]) -> bool:
    return any(override.partition("=")[0].lstrip("+~") == key for override in overrides)


def _check(config: RunConfig) -> None:
    """Everything that needs neither the model nor the data."""
    require(bool(config.output_dir.strip()), "output_dir: is empty; name a folder")
    parallel, optim, builtin = config.parallel, config.optim, config.data.builtin
    kernels.check_offered(parallel.cp_comm_type)
    check_options(config, "")
    references = ("cached", "adapter_off") if config.peft.on else ("cached", "online")
    require(
        config.reference in references,
        f"objective.reference must be one of {', '.join(references)} with peft={config.peft.name}; got "
        f"{config.reference!r}",
    )
    require(
        config.peft.on or config.model.adapter is None,
        f"model.adapter={config.model.adapter}: an adapter is trained with peft=lora",
    )
    if config.peft.on:
        config.peft.check()
    require(optim.min_lr <= optim.lr, f"optim.min_lr={optim.min_lr}: must be at most optim.lr={optim.lr}")
    parallel.check()
    require(
        builtin.long_paragraphs <= MAX_PARAGRAPHS,
        f"data.builtin.long_paragraphs={builtin.long_paragraphs}: must be at most {MAX_PARAGRAPHS}",
    )
    lengths = config.evaluation.lengths
    require(min(lengths, default=0) >= 1, f"evaluation.lengths={lengths}: give at least one, each at least 1")
    paragraphs = max(lengths) * SHORT_PARAGRAPHS
    require(
        config.evaluation.name == "none" or paragraphs <= MAX_PARAGRAPHS,
        f"evaluation.lengths: {max(lengths)} x {SHORT_PARAGRAPHS} paragraphs is more than the {MAX_PARAGRAPHS} "
        "that the built-in questions have names for",
    )
    require(
        config.dry_run.enabled or config.dry_run == DryRunConfig(),
        "dry_run.*: these keys belong to a dry run; add dry_run=true, or leave them out to train",
    )
    require(
        config.hub.push is None or bool(re.fullmatch(r"[\w.-]+/[\w.-]+", config.hub.push)),
        f"hub.push={config.hub.push}: give user/name",
    )
    config.build_objective()


def save_config(config: RunConfig, path: Path) -> None:
    """Write the resolved configuration, enough to run it again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.write_text(OmegaConf.to_yaml(OmegaConf.structured(config)))
    temporary.replace(path)


def read_config(path: Path) -> RunConfig:
    """Read what :func:`save_config` wrote.

    Raises:
        UserError: it is damaged, or of another version.
    """
    try:
        saved: Any = OmegaConf.load(path)
        for former, name in FORMER_KEYS.items():
            if (value := OmegaConf.select(saved, former)) is not None:
                group, key = former.split(".")
                saved[group].pop(key)
                OmegaConf.update(saved, name, value)
        shipped = CONF / "objective" / f"{saved.objective.name}.yaml"
        if shipped.is_file() and "label_smoothing" in OmegaConf.load(shipped):
            saved.objective.setdefault("label_smoothing", 0.0)  # absent in the configuration of earlier runs
        if OmegaConf.select(saved, "data.builtin.seed") is not None:  # of version 0.1
            if saved.data.train == "builtin":
                raise UserError(f"{path}: a run of version 0.1, on other built-in data; choose another output_dir")
            for former in ("seed", "short_paragraphs"):
                del saved.data.builtin[former]
        merged = OmegaConf.merge(OmegaConf.structured(RunConfig), saved)
        return OmegaConf.to_object(merged)  # type: ignore[return-value]
    except (OmegaConfBaseException, YAMLError) as error:
        raise UserError(f"{path}: {one_line(error)}; choose another output_dir") from None
