"""Properties of a start of a run that are read once, refusals included."""

from __future__ import annotations

from functools import cached_property
from typing import Any, TypeVar

from solopo_nemo.runtime.errors import UserError

T = TypeVar("T")


class once(cached_property[T]):
    """A property that is read once; a refusal is kept as well, and raised again."""

    def __get__(self, start: Any, owner: type[Any] | None = None) -> Any:
        """Read it, or take what was read."""
        name = str(self.attrname)
        if name in start.refused:
            raise start.refused[name]
        try:
            return super().__get__(start, owner)
        except UserError as error:
            start.refused[name] = error
            raise
