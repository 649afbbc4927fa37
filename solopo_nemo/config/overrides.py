"""Command-line overrides: former names of keys, unquoted paths, and one-line errors for what Hydra cannot parse."""

from __future__ import annotations

import logging
import re
import shlex
from collections.abc import Collection, Sequence
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException

from solopo_nemo.runtime.errors import UserError
from solopo_nemo.runtime.paths import CONF
from solopo_nemo.runtime.units import token_count

logger = logging.getLogger("solopo_nemo")

FORMER_KEYS = {"parallel.context_mode": "parallel.cp_comm_type", "model.row_chunk": "model.logits_chunk_size"}
"""Former name of a key -> present name. The former name still works and logs a warning."""
_LENGTHS = frozenset({"data.max_tokens"})
"""Keys whose value is a number of tokens, which may be written as 8K."""


def _renamed(override: str) -> str:
    """The override with the full and present name of its key; a former name logs a warning."""
    key, equals, value = override.partition("=")
    name = key.lstrip("+~")
    if name == "dry_run" and value[:1] != "{":
        return f"dry_run.enabled={value}"
    if name in _LENGTHS and value[-1:] in tuple("kKmM") and value[:-1].isdigit():
        return f"{key}={token_count(value)}"
    if name not in FORMER_KEYS:
        return override
    logger.warning("%s is deprecated: it is called %s now", name, FORMER_KEYS[name])
    return f"{key.removesuffix(name)}{FORMER_KEYS[name]}{equals}{value}"


def one_line(error: Exception) -> str:
    """The message of a Hydra or OmegaConf error in one line, after the key that it names."""
    key = getattr(error, "full_key", None)
    message = " ".join(str(error).split("\n    full_key")[0].partition("\nConfig search path")[0].split())
    message = re.sub(r"Invalid value assigned: \w+ is not a ListConfig.*", "must be a list, as in [a,b]", message)
    return f"{key}: {message}" if key else message


def _readable(override: str, before: str, paths: Collection[str]) -> str:
    """The override in Hydra's grammar. The value of a path option is quoted, so that every character stays as it is.

    A path that is quoted already, or has Hydra's backslashes, keeps Hydra's meaning: ``output_dir="a b"`` is ``a b``.

    Args:
        override: the override.
        before: the override before it on the command line, for a hint about a missing quote.
        paths: keys whose value is a path.

    Raises:
        UserError: Hydra cannot parse the override, or parses it as a sweep over several values.
    """
    key, equals, value = override.partition("=")
    problem, own = "", None
    try:
        parsed = OverridesParser.create().parse_override(override)
        own = None if parsed.is_sweep_override() else parsed.value()
        problem = "several values" if parsed.is_sweep_override() else ""
    except HydraException as error:
        problem = one_line(error)
    if equals and key.lstrip("+") in paths and value != "null":
        quoted = value[:1] in ("'", '"') and value[:1] == value[-1:]
        taken = isinstance(own, str) and (quoted or "\\" in value)
        return override if taken else f"{key}={QuotedString(value, Quote.single).with_quotes()}"
    if problem:
        example = "'model.rope_scaling={type: yarn, factor: 4.0}'"
        if value[:1] not in ("[", "{"):
            example = shlex.quote(f"{key}={QuotedString(value, Quote.double).with_quotes()}")
        how = f", what needs quotes as in {example}" if key and value else ""
        if problem == "several values":
            how += f"; a list takes brackets, as in {shlex.quote(f'{key}=[{value}]')}"
        if not equals and "=" in before:
            how = f"; a value with a space needs quotes, as in {shlex.quote(f'{before} {override}')}"
        raise UserError(f"configuration: {override!r} cannot be read ({problem}): write key=value{how}")
    return override


def compose_recipe(recipe: str, overrides: Sequence[str], paths: Collection[str]) -> Any:
    """Composes the configuration of a recipe.

    Args:
        recipe: name of its YAML.
        overrides: the words of the command line.
        paths: keys whose value is a path.

    Returns:
        Hydra's ``DictConfig``, with Hydra's own section.

    Raises:
        UserError: an override cannot be parsed.
    """
    GlobalHydra.instance().clear()
    named = [_renamed(override) for override in overrides]
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            pairs = zip(("", *named), named, strict=False)
            readable = [_readable(override, before, paths) for before, override in pairs]
            return compose(recipe, overrides=readable, return_hydra_config=True)
    except (ValueError, TypeError) as error:  # Hydra does not turn them into errors of its own
        raise UserError(f"configuration: {error} (in: {' '.join(named)})") from None
