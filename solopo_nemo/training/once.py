"""Cached properties of a start of a run, which also cache a UserError."""

from __future__ import annotations

from functools import cached_property
from typing import Any, TypeVar

from solopo_nemo.runtime.errors import UserError

T = TypeVar("T")


class once(cached_property[T]):
    """A ``cached_property`` that stores a UserError in ``refused`` of its object and raises it again at later reads."""

    def __get__(self, start: Any, owner: type[Any] | None = None) -> Any:
        """Returns the value, or raises the error, of the first read."""
        name = str(self.attrname)
        if name in start.refused:
            raise start.refused[name]
        try:
            return super().__get__(start, owner)
        except UserError as error:
            start.refused[name] = error
            raise
