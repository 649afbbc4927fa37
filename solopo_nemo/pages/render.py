"""The Jinja renderer of all HTML and Markdown pages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from solopo_nemo.runtime.output import atomic_text
from solopo_nemo.runtime.paths import ASSETS


def render(template: Path, /, **values: Any) -> str:
    """Render a template.

    Args:
        template: ``*.html.jinja`` (values are escaped) or ``*.md.jinja``. It can extend and import templates of its
            folder and of the package.
        **values: variables of the template.

    Returns:
        The page, with one line feed at its end.

    Raises:
        jinja2.UndefinedError: the template uses a variable that is not in ``values``.
    """
    environment = Environment(
        loader=FileSystemLoader([template.parent, ASSETS]),
        autoescape=lambda name: name is not None and name.endswith(".html.jinja"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template.name).render(**values).rstrip() + "\n"


def write_page(page: Path, template: Path, /, **values: Any) -> Path:
    """Render a template, write the page atomically, and return its path."""
    with atomic_text(page) as stream:
        stream.write(render(template, **values))
    return page
