"""Progress bars on stderr. They are drawn on a terminal only, and stdout holds results only."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from rich.console import Console
from rich.progress import track

T = TypeVar("T")


def with_progress(items: Iterable[T], description: str, total: int | None = None) -> Iterable[T]:
    """Yields the items unchanged, and draws a progress bar if stderr is a terminal.

    Args:
        items: what is iterated over.
        description: text beside the bar.
        total: number of items; by default ``len(items)``.
    """
    console = Console(stderr=True)
    return track(items, description=description, total=total, console=console, disable=not console.is_terminal)
