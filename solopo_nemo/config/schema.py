"""The configuration of a run: its schema, its composition from YAML, and the checks before any work.

Defaults live in ``conf/`` only; the dataclasses here name the keys and their types.
"""

from __future__ import annotations

import importlib
import logging
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, OverrideParseException
from omegaconf import OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from solopo_nemo.embedded.world import MAX_PARAGRAPHS
from solopo_nemo.runtime import environment
from solopo_nemo.runtime.errors import UserError, require
from solopo_nemo.runtime.paths import CONF

logger = logging.getLogger("solopo_nemo")


@dataclass
class ModelConfig:
    """Where the weights come from and how the model is computed."""

    init: str
    rope_scaling: dict[str, Any] | None
    trust_checkpoint: bool
    recompute: str
    row_chunk: int


@dataclass
class BuiltinDataConfig:
    """Size of the built-in question set."""

    samples: int
    short_paragraphs: int
    long_paragraphs: int
    seed: int


@dataclass
class DataConfig:
    """Training samples."""

    train: str
    max_tokens: int | None
    too_long: str
    builtin: BuiltinDataConfig


@dataclass
class ParallelConfig:
    """Megatron parallel sizes."""

    tensor: int
    sequence: bool
    context: int
    context_mode: str
    pipeline: int
    data: int | None

    @property
    def model_ranks(self) -> int:
        """Ranks that hold one copy of the model and work on one micro-batch together."""
        return self.tensor * self.context * self.pipeline


@dataclass
class OptimConfig:
    """AdamW and its schedule."""

    lr: float
    min_lr: float
    warmup_ratio: float
    weight_decay: float
    beta1: float
    beta2: float
    eps: float
    clip_grad: float


@dataclass
class TrainerConfig:
    """Length of the run, batches, precision, checkpoints."""

    max_steps: int | None
    epochs: int
    global_batch: int
    micro_batch: int
    seed: int
    precision: str | None
    checkpoint_every: int
    keep_checkpoints: int
    select_best: str | None
    resume: str
    nonfinite: str
    timeout_minutes: float


@dataclass
class LoggerConfig:
    """Lightning loggers beside metrics.jsonl."""

    tensorboard: bool
    wandb: str | None


@dataclass
class EvaluationConfig:
    """Built-in before/after evaluation."""

    name: str
    lengths: list[int]
    questions: int
    data: str
    limit: int | None
    seed: int


@dataclass
class RunConfig:
    """A whole run."""

    recipe: str
    output_dir: str
    model: ModelConfig
    objective: dict[str, Any]
    data: DataConfig
    parallel: ParallelConfig
    optim: OptimConfig
    trainer: TrainerConfig
    logger: LoggerConfig
    evaluation: EvaluationConfig
    plugins: list[str] = field(default_factory=list)  # no YAML default: Hydra's +plugins=[...] adds the key

    @property
    def output(self) -> Path:
        """The output folder."""
        return Path(self.output_dir)

    @property
    def reference(self) -> str:
        """How the reference policy is run: ``cached`` or ``online``."""
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


def _one_line(error: Exception) -> str:
    key = getattr(error, "full_key", None)
    message = " ".join(str(error).split("\n    full_key")[0].split())
    return f"{key}: {message}" if key else message


def _compose(recipe: str, overrides: Sequence[str]) -> Any:
    try:
        return compose(recipe, overrides=list(overrides), return_hydra_config=True)
    except OverrideParseException as error:
        raise UserError(
            f"configuration: {error.override!r} cannot be read ({_one_line(error)}): write key=value"
        ) from None
    except (ValueError, TypeError) as error:  # what Hydra does not say itself
        raise UserError(f"configuration: {error} (in: {' '.join(overrides)})") from None


def load_config(recipe: str, overrides: Sequence[str]) -> RunConfig:
    """Compose ``conf/<recipe>.yaml`` with command-line overrides and check it.

    Raises:
        UserError: unknown key, wrong type, missing value, or a layout or batch that cannot be.
    """
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            composed = _compose(recipe, overrides)
        with open_dict(composed):
            chosen = composed.pop("hydra").runtime.choices
        merged = OmegaConf.merge(OmegaConf.structured(RunConfig), composed)
        missing = OmegaConf.missing_keys(merged)
        if missing:
            raise UserError(f"{', '.join(sorted(missing))}: no value given; set it on the command line as key=value")
        config: RunConfig = OmegaConf.to_object(merged)  # type: ignore[assignment]
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(
            f"configuration: {_one_line(error)} (python recipes/{recipe}.py --help lists the keys)"
        ) from None
    _check(config)
    if chosen["model"] == "tiny_qwen2" and config.model.init != "builtin":
        logger.warning(
            "model=tiny_qwen2 brings the embedded model's settings (optim.lr=%g); your own model takes model=custom",
            config.optim.lr,
        )
    return config


def _choice(key: str, value: str | None, allowed: Sequence[str | None]) -> None:
    names = ", ".join("null" if a is None else a for a in allowed)
    require(value in allowed, f"{key}={value}: must be one of {names}")


def _check(config: RunConfig) -> None:
    """Everything that needs neither the model nor the data."""
    require(bool(config.output_dir.strip()), "output_dir: is empty; name a folder")
    trainer, parallel = config.trainer, config.parallel
    for key, value in (
        ("parallel.tensor", parallel.tensor),
        ("parallel.context", parallel.context),
        ("parallel.pipeline", parallel.pipeline),
        ("parallel.data", 1 if parallel.data is None else parallel.data),
        ("trainer.global_batch", trainer.global_batch),
        ("trainer.micro_batch", trainer.micro_batch),
        ("trainer.epochs", trainer.epochs),
        ("trainer.checkpoint_every", trainer.checkpoint_every),
        ("trainer.keep_checkpoints", trainer.keep_checkpoints),
        ("trainer.max_steps", 1 if trainer.max_steps is None else trainer.max_steps),
        ("trainer.seed", trainer.seed),
        ("model.row_chunk", config.model.row_chunk),
        ("data.max_tokens", 2 if config.data.max_tokens is None else config.data.max_tokens - 1),
        ("data.builtin.samples", config.data.builtin.samples),
        ("evaluation.questions", config.evaluation.questions),
        ("evaluation.limit", 1 if config.evaluation.limit is None else config.evaluation.limit),
        ("evaluation.lengths", min(config.evaluation.lengths, default=0)),
    ):
        require(value >= 1, f"{key}: must be at least {2 if key == 'data.max_tokens' else 1}")
    _choice("model.recompute", config.model.recompute, ("none", "selective", "full"))
    _choice("data.too_long", config.data.too_long, ("error", "drop"))
    require(
        parallel.context_mode not in ("all_gather", "a2a+p2p"),
        f"parallel.context_mode={parallel.context_mode}: Transformer Engine refuses it for packed (THD) sequences, as "
        "triplets run; p2p has no limit but the length, a2a sends less where the heads divide",
    )
    _choice("parallel.context_mode", parallel.context_mode, environment.CONTEXT_MODES)
    _choice("trainer.nonfinite", trainer.nonfinite, ("stop", "skip"))
    require(trainer.timeout_minutes > 0, f"trainer.timeout_minutes={trainer.timeout_minutes}: must be greater than 0")
    _choice("trainer.precision", trainer.precision, ("fp32", "bf16", None))
    _choice("objective.reference", config.reference, ("cached", "online"))
    _choice("evaluation.name", config.evaluation.name, ("auto", "builtin", "none"))
    if trainer.select_best is not None:
        from solopo_nemo.evaluation.suites import find_suites

        suites = find_suites(trainer.select_best, "trainer.select_best=")
        require(len(suites) == 1, f"trainer.select_best={trainer.select_best}: name one suite")
    optim = config.optim
    require(0 < optim.lr < math.inf, f"optim.lr={optim.lr}: must be a number greater than 0")
    require(0 <= optim.min_lr <= optim.lr, f"optim.min_lr={optim.min_lr}: must lie between 0 and optim.lr={optim.lr}")
    require(0 <= optim.warmup_ratio < 1, f"optim.warmup_ratio={optim.warmup_ratio}: must be in [0, 1)")
    for key in ("beta1", "beta2"):
        require(0 <= getattr(optim, key) < 1, f"optim.{key}={getattr(optim, key)}: must be in [0, 1)")
    for key in ("weight_decay", "clip_grad"):
        require(getattr(optim, key) >= 0, f"optim.{key}={getattr(optim, key)}: must not be negative")
    require(optim.eps > 0, f"optim.eps={optim.eps}: must be greater than 0")
    require(
        not parallel.sequence or parallel.tensor > 1,
        "parallel.sequence=true needs parallel.tensor of 2 or more: sequence parallelism splits over the tensor ranks",
    )
    short, long = config.data.builtin.short_paragraphs, config.data.builtin.long_paragraphs
    require(2 <= short <= long, f"data.builtin: short_paragraphs={short} must lie between 2 and long_paragraphs={long}")
    paragraphs = max(config.evaluation.lengths) * short
    require(
        config.evaluation.name == "none" or paragraphs <= MAX_PARAGRAPHS,
        f"evaluation.lengths: {max(config.evaluation.lengths)} x {short} paragraphs is more than the {MAX_PARAGRAPHS} "
        "that the built-in questions have names for",
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
        merged = OmegaConf.merge(OmegaConf.structured(RunConfig), OmegaConf.load(path))
        return OmegaConf.to_object(merged)  # type: ignore[return-value]
    except (OmegaConfBaseException, YAMLError) as error:
        raise UserError(f"{path}: {_one_line(error)}; choose another output_dir") from None
