"""The configuration of a run: its schema, its composition from YAML, and the checks before any work.

Defaults are in ``conf/`` only. :mod:`solopo_nemo.config.sections` has the keys of each section.
"""

from __future__ import annotations

import importlib
import logging
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from omegaconf import OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from solopo_nemo.config.overrides import FORMER_KEYS, compose_recipe, one_line
from solopo_nemo.config.parallel import ParallelConfig
from solopo_nemo.config.peft import PeftConfig
from solopo_nemo.config.sections import (
    DataConfig,
    DryRunConfig,
    EvaluationConfig,
    HubConfig,
    LoggerConfig,
    ModelConfig,
    OptimConfig,
    TrainerConfig,
)
from solopo_nemo.embedded import SHORT_PARAGRAPHS
from solopo_nemo.embedded.world import MAX_PARAGRAPHS
from solopo_nemo.runtime import kernels
from solopo_nemo.runtime.cli import command_name
from solopo_nemo.runtime.errors import UserError, require
from solopo_nemo.runtime.options import check_options, path, path_options
from solopo_nemo.runtime.output import atomic_text
from solopo_nemo.runtime.paths import CONF, expand_home

logger = logging.getLogger("solopo_nemo")


@dataclass(kw_only=True)
class RunConfig:
    """A whole run.

    Attributes:
        recipe: name of the recipe, which its own file sets.
        output_dir: folder of everything that the run writes.
        objective: options of the objective; ``objective.name`` and ``objective.reference`` are the run's own.
        objective.name: the name that the objective is registered under.
        objective.reference: how the reference policy is scored: cached (once, kept on disk), online (by a frozen copy
            beside the policy), adapter_off (by the policy without its adapters; the default with peft=lora).
        check_only: list what the run would refuse or warn of, train nothing and write nothing.
        plugins: modules to import first, which register objectives of your own; given as +plugins=[my_package.my_po].
    """

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
    check_only: bool = False
    dry_run: DryRunConfig = field(default_factory=DryRunConfig)
    hub: HubConfig = field(default_factory=HubConfig)
    peft: PeftConfig = field(default_factory=PeftConfig)
    plugins: list[str] = field(default_factory=list)

    @property
    def output(self) -> Path:
        """The output folder."""
        return Path(self.output_dir)

    @property
    def reference(self) -> str:
        """The value of ``objective.reference``: ``cached``, ``online`` or ``adapter_off``."""
        return self.objective.get("reference", "cached")

    @property
    def auto_alpha(self) -> bool:
        """Whether ``objective.alpha`` is ``auto``; see :mod:`solopo_nemo.training.callbacks.auto_alpha`."""
        return bool(self.objective.get("alpha") == "auto")

    def build_objective(self) -> Any:
        """The objective of this configuration. With ``alpha=auto`` its alpha is 1, until the run has chosen one.

        Raises:
            UserError: a plugin cannot be imported, the name or an option is unknown, or a value is out of range.
        """
        from solopo_nemo.objectives import build_objective

        if self.plugins and str(Path.cwd()) not in sys.path:
            sys.path.insert(0, str(Path.cwd()))  # plugins are found in the working directory
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
"""Dotted names of the keys whose value is a path."""


def load_config(recipe: str, overrides: Sequence[str]) -> RunConfig:
    """Composes ``conf/<recipe>.yaml`` with command-line overrides, and checks the result.

    Args:
        recipe: name of the recipe, such as ``solo_dpo``.
        overrides: ``key=value`` and ``group=option`` words.

    Raises:
        UserError: a key is unknown, a value is missing, has the wrong type or is out of range, or two values exclude
            each other.
    """
    try:
        composed = compose_recipe(recipe, overrides, _PATHS)
        with open_dict(composed):
            chosen = composed.pop("hydra").runtime.choices
        merged = OmegaConf.merge(OmegaConf.structured(RunConfig), composed)
        if missing := OmegaConf.missing_keys(merged):
            raise UserError(f"{', '.join(sorted(missing))}: no value given; set it on the command line as key=value")
        for key in _PATHS:
            if (value := OmegaConf.select(merged, key)) is not None:
                OmegaConf.update(merged, key, expand_home(value, f"{key}="))
        config: RunConfig = OmegaConf.to_object(merged)  # type: ignore[assignment]
        if config.peft.on and "reference" in config.objective and not _gives("objective.reference", overrides):
            config.objective["reference"] = "adapter_off"
    except (HydraException, OmegaConfBaseException) as error:
        # Hydra's advice to append the key with + applies to plugins only
        reason = re.sub(r"Could not override '(?!plugins')(.*?)'.*", r"there is no key \1", one_line(error))
        reason += "; peft=lora brings it" if "no key peft." in reason else ""
        if "objective=plugin" in overrides and (option := re.search(r"no key (objective\.\w+)", reason)):
            reason += f"; an option of a plugin takes a plus: +{option[1]}"
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
    """All checks that need neither the model nor the data.

    Raises:
        UserError: with the key to change.
    """
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
    """Writes the resolved configuration as YAML, atomically."""
    with atomic_text(path) as stream:
        stream.write(OmegaConf.to_yaml(OmegaConf.structured(config)))


def read_config(path: Path) -> RunConfig:
    """Reads a file of :func:`save_config`, also one of an earlier version with former names of keys.

    Raises:
        UserError: the file is damaged, or its keys are not those of this version.
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
            saved.objective.setdefault("label_smoothing", 0.0)
        if OmegaConf.select(saved, "data.builtin.seed") is not None:  # of version 0.1
            if saved.data.train == "builtin":
                raise UserError(f"{path}: a run of version 0.1, on other built-in data; choose another output_dir")
            for former in ("seed", "short_paragraphs"):
                del saved.data.builtin[former]
        merged = OmegaConf.merge(OmegaConf.structured(RunConfig), saved)
        return OmegaConf.to_object(merged)  # type: ignore[return-value]
    except (OmegaConfBaseException, YAMLError) as error:
        raise UserError(f"{path}: {one_line(error)}; choose another output_dir") from None
