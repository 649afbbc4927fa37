"""Finds all errors of a command line, not only the first."""

from __future__ import annotations

import re
from collections.abc import Sequence

from solopo_nemo.config.schema import RunConfig, load_config
from solopo_nemo.runtime.errors import UserError

_GROUP = re.compile(r"[+~]*\w+=.*")


def load_reporting(recipe: str, overrides: Sequence[str]) -> tuple[RunConfig | None, list[str]]:
    """Loads a configuration and leaves out the overrides that are refused. Their keys keep the recipe's defaults.

    Args:
        recipe: name of the recipe.
        overrides: the words of the command line.

    Returns:
        The configuration, and one line for each refused override. The configuration is None if a group
        (``model=...``) is refused or a value is missing, because the run is not known then.
    """
    kept, dropped, problems = list(overrides), list[str](), list[str]()
    while True:
        try:
            return load_config(recipe, kept), problems
        except UserError as error:
            message = str(error)
        if any(_key(override) in message for override in dropped):
            return None, problems  # the error is about an override that was left out
        problems.append(message)
        culprit = _culprit(recipe, kept, message)
        if culprit is None:
            return None, problems
        kept.remove(culprit)
        dropped.append(culprit)


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def _culprit(recipe: str, overrides: list[str], message: str) -> str | None:
    """The override that causes an error: without it the message differs or there is none.

    Overrides whose key the message contains are tried first.
    """
    for override in sorted(overrides, key=lambda word: _key(word) not in message):
        if _GROUP.fullmatch(override):
            continue
        try:
            load_config(recipe, [other for other in overrides if other != override])
        except UserError as error:
            if str(error) == message:
                continue
        return override
    return None
