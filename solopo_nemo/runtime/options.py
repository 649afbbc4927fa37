"""Declares options as dataclass fields with their allowed values, and checks all options of a dataclass.

Objectives and the configuration of a run use it. Example::

    @dataclass
    class Parallel:
        tensor: int = number(minimum=1)
        mode: str = choice(allowed=("p2p", "a2a"))

    check_options(Parallel(tensor=0, mode="p2p"), "parallel.")   # parallel.tensor must be a finite number of at least 1
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import MISSING, Field, field, fields, is_dataclass
from typing import Any, cast, get_type_hints

from solopo_nemo.runtime.errors import UserError

Check = Callable[[Any], str | None]
"""Takes a value. Returns None if it is allowed, else a description of the allowed values."""


def _option(default: Any, check: Check, help: str, optional: bool = False, allowed: Collection[str] = ()) -> Any:
    def checked(value: object) -> str | None:
        if optional and value is None:
            return None
        allowed = check(value)
        return f"{allowed}, or null" if allowed and optional else allowed

    return field(default=default, metadata={"check": checked, "help": help, "allowed": allowed})


def number(
    default: Any = MISSING,
    help: str = "",
    *,
    minimum: float | None = None,
    above: float | None = None,
    below: float | None = None,
    optional: bool = False,
) -> Any:
    """Declares a finite number.

    Args:
        default: default value; without one the field is required.
        help: text of the option.
        minimum: smallest allowed value.
        above: the value must be greater.
        below: the value must be less.
        optional: whether None is allowed.
    """

    def check(value: object) -> str | None:
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if (
            is_number
            and (minimum is None or value >= minimum)  # type: ignore[operator]
            and (above is None or value > above)  # type: ignore[operator]
            and (below is None or value < below)  # type: ignore[operator]
        ):
            return None
        limits = (("of at least", minimum), ("above", above), ("below", below))
        return " ".join(["a finite number", *(f"{word} {limit:g}" for word, limit in limits if limit is not None)])

    return _option(default, check, help, optional)


def choice(default: Any = MISSING, allowed: Collection[str] = (), help: str = "", *, optional: bool = False) -> Any:
    """Declares one of some names.

    Args:
        default: default value; without one the field is required.
        allowed: the names. A registry may grow later, as it is read at each check.
        help: text of the option.
        optional: whether None is allowed.
    """

    def check(value: object) -> str | None:
        return None if isinstance(value, str) and value in allowed else f"one of {', '.join(allowed)}"

    return _option(default, check, help, optional, allowed)


def flag(default: bool, help: str) -> Any:
    """Declares a value that is true or false."""

    def check(value: object) -> str | None:
        return None if isinstance(value, bool) else "true or false"

    return _option(default, check, help)


def path(default: Any = MISSING) -> Any:
    """Declares a path, or a name in place of one such as a hub name; :func:`path_options` lists these options."""
    return field(default=default, metadata={"path": True})


def path_options(cls: type) -> Iterator[str]:
    """Yields the dotted names of the :func:`path` options of a dataclass and of the dataclasses in its fields."""
    kinds = get_type_hints(cls)
    for option in fields(cls):
        if option.metadata.get("path"):
            yield option.name
        elif is_dataclass(kind := kinds[option.name]):
            yield from (f"{option.name}.{name}" for name in path_options(cast(type, kind)))


def fixed(default: object) -> Any:
    """Declares a constant field: a subclass fixes an option of its base class, which is then no option any more."""
    return field(default=default, init=False)


def option_fields(cls: type) -> dict[str, Field[Any]]:
    """The options of a dataclass by name, with ``default``, ``metadata["help"]`` and ``metadata["allowed"]``."""
    return {option.name: option for option in fields(cls) if option.init}


def check_options(instance: Any, prefix: str) -> None:
    """Checks every option of a dataclass instance, and of the dataclasses in its fields.

    Args:
        instance: instance of a dataclass. Fields without a declared check are not checked.
        prefix: prefix of the options in messages, such as ``objective.``.

    Raises:
        UserError: an option has a value that is not allowed.
    """
    for name, option in option_fields(type(instance)).items():
        value = getattr(instance, name)
        if is_dataclass(value):
            check_options(value, f"{prefix}{name}.")
        check: Check | None = option.metadata.get("check")
        allowed = check(value) if check else None
        if allowed:
            raise UserError(f"{prefix}{name} must be {allowed}; got {value!r}")
