"""Progress bars: on a terminal only, and on stderr, so that stdout stays for results."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from rich.console import Console
from rich.progress import track

T = TypeVar("T")


def with_progress(items: Iterable[T], description: str, total: int | None = None) -> Iterable[T]:
    """Pass items through, drawing a bar where stderr is a terminal."""
    console = Console(stderr=True)
    return track(items, description=description, total=total, console=console, disable=not console.is_terminal)
