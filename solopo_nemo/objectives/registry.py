"""Registry of the objectives: recipes select an objective by name, and users register their own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from typing_extensions import dataclass_transform

from solopo_nemo.objectives.base import Objective, UnalignedObjective
from solopo_nemo.runtime.errors import UserError
from solopo_nemo.runtime.options import choice, flag, number, option_fields

_REGISTRY: dict[str, type[Objective]] = {}

ObjectiveClass = TypeVar("ObjectiveClass", bound=type[Objective])


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(number, choice, flag))
def register(name: str) -> Callable[[ObjectiveClass], ObjectiveClass]:
    """Registers an objective class. Its annotated attributes become its options.

    The class becomes a frozen, keyword-only dataclass unless it is a dataclass already.

    Args:
        name: The name in ``build_objective(name)`` and in ``objective=name``.

    Raises:
        ValueError: The name is taken.
        TypeError: The class lacks ``bound_constant``.
    """

    def decorate(cls: ObjectiveClass) -> ObjectiveClass:
        if name in _REGISTRY:
            owner = f"{_REGISTRY[name].__module__}.{_REGISTRY[name].__qualname__}"
            raise ValueError(f"objective {name!r} is already registered by {owner}; choose another name")
        if not issubclass(cls, UnalignedObjective) and not hasattr(cls, "bound_constant"):
            raise TypeError(f"{cls.__qualname__} must set bound_constant, the C of f(z) <= bound_factor * s(|z|) + C")
        if "__dataclass_params__" not in vars(cls):
            dataclass(frozen=True, kw_only=True)(cls)
        cls.name = name
        _REGISTRY[name] = cls
        return cls

    return decorate


def available_objectives() -> tuple[str, ...]:
    """The registered names, built-in ones first."""
    return tuple(_REGISTRY)


def objective_class(name: str) -> type[Objective]:
    """The class registered under a name; its options are ``option_fields(objective_class(name))``.

    Raises:
        UserError: The name is unknown.
    """
    if name not in _REGISTRY:
        raise UserError(f"objective.name must be one of {', '.join(_REGISTRY)}; got {name!r}")
    return _REGISTRY[name]


def build_objective(name: str, **options: Any) -> Objective:
    """Builds an objective from its name and options, e.g. ``build_objective("dpo", beta=0.1, alpha=3.0)``.

    Args:
        name: One of ``available_objectives()``.
        **options: Options of that objective. Defaults are those of "the specification", section 5.

    Raises:
        UserError: The name or an option is unknown, or a value is not allowed. The message lists what is allowed.
    """
    cls = objective_class(name)
    known = option_fields(cls)
    for option in options:
        if option not in known:
            raise UserError(
                f"objective.{option} is not an option of {name}; its options are {', '.join(sorted(known))}"
            )
    return cls(**options)
