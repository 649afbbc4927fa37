"""Pages out of templates: one environment for HTML and Markdown, with its settings here alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from solopo_nemo.runtime.output import atomic_text
from solopo_nemo.runtime.paths import ASSETS


def render(template: Path, /, **values: Any) -> str:
    """Fill a template.

    Args:
        template: ``*.html.jinja``, where values are escaped, or ``*.md.jinja``; it can extend and import its neighbours
            and the package's own templates.
        **values: of the template; one that is missing is an error.

    Returns:
        The page, with one line feed at its end.
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
    """Write the page that :func:`render` gives, whole or not at all, and return its path."""
    with atomic_text(page) as stream:
        stream.write(render(template, **values))
    return page
