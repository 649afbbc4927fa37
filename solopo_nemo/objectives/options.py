"""Declares and checks the options of an objective: one field, with its default, its allowed values and its help."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import Field, field, fields
from typing import Any

from solopo_nemo.runtime.errors import UserError

Check = Callable[[Any], str | None]
"""Takes a value; returns what is allowed when the value is not, and None when it is."""


def _option(default: object, check: Check, help: str) -> Any:
    return field(default=default, metadata={"check": check, "help": help})


def number(default: float, help: str, *, minimum: float | None = None, above: float | None = None) -> Any:
    """A finite number, at least ``minimum`` or greater than ``above`` when one is given."""

    def check(value: object) -> str | None:
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if is_number and (minimum is None or value >= minimum) and (above is None or value > above):  # type: ignore[operator]
            return None
        limit = f" of at least {minimum:g}" if minimum is not None else f" above {above:g}" if above is not None else ""
        return f"a finite number{limit}"

    return _option(default, check, help)


def choice(default: str, allowed: Collection[str], help: str) -> Any:
    """One of ``allowed``, which is read at each check, so that a registry may grow."""

    def check(value: object) -> str | None:
        return None if isinstance(value, str) and value in allowed else f"one of {', '.join(allowed)}"

    return _option(default, check, help)


def flag(default: bool, help: str) -> Any:
    """True or false."""

    def check(value: object) -> str | None:
        return None if isinstance(value, bool) else "true or false"

    return _option(default, check, help)


def fixed(default: object) -> Any:
    """A field that a subclass pins: no longer an option, neither by name nor in the constructor."""
    return field(default=default, init=False)


def option_fields(cls: type) -> dict[str, Field[Any]]:
    """The options of a dataclass by name; ``default`` and ``metadata["help"]`` describe each."""
    return {option.name: option for option in fields(cls) if option.init}


def check_options(instance: object) -> None:
    """Checks every option of a dataclass instance.

    Raises:
        UserError: An option has a value that is not allowed; the line names it as ``objective.<name>``.
    """
    for name, option in option_fields(type(instance)).items():
        # A user's own class may declare plain dataclass fields and check them itself.
        check: Check | None = option.metadata.get("check")
        value = getattr(instance, name)
        allowed = check(value) if check else None
        if allowed:
            raise UserError(f"objective.{name} must be {allowed}; got {value!r}")
