"""Writes the tables of the configuration page from conf/**/*.yaml and their comments, when the site is built."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from solopo_nemo.config.usage import GROUPS, Key, about, keys, run_keys
from solopo_nemo.runtime.paths import CONF

PAGE, PLACE = "configuration.md", "<!-- the keys -->"
SECTIONS = (*GROUPS, "preset")
# their files differ in values alone: one table of keys, of this file, and one of files
COMPARED = {"model": "tiny_qwen2", "evaluation": "auto"}


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """MkDocs' event: put the tables where the page asks for them."""
    return markdown.replace(PLACE, reference()) if page.file.src_uri == PAGE else markdown


def reference() -> str:
    """All tables, group by group."""
    sections = [_recipes(), _keys_of("The run itself", run_keys(), "")]
    for group in SECTIONS:
        sections.append(f"## `{group}`\n\n{_group(group)}")
    return "\n\n".join(sections)


def _recipes() -> str:
    rows = [(f"`recipes/{path.stem}.py`", _text(about(path))) for path in _files("") if path.stem != "base"]
    return "## Recipes\n\n" + _table(("recipe", "what it is"), rows)


def _group(group: str) -> str:
    files = _files(group)
    if group == "preset":
        return _presets(files)
    if len(files) == 1:
        return _keys_of("", list(keys(files[0])), group, about(files[0]))
    if group in COMPARED:
        usual = list(keys(CONF / group / f"{COMPARED[group]}.yaml"))
        added = [replace(key, path=key.path.removeprefix(f"{group}.")) for key in _over(group)]
        return _keys_of("", [*usual, *added], group) + "\n\n" + _choices(group, files, usual)
    comments = {key.path: key.comment for path in files for key in keys(path) if key.comment}
    parts = []
    for path in files:
        shown = [replace(key, comment=key.comment or comments.get(key.path, "")) for key in keys(path)]
        parts.append(_keys_of(f"`{group}={path.stem}`", shown, group, about(path), "###"))
    return "\n\n".join(parts)


def _over(group: str) -> Iterator[Key]:
    """The keys of a group that base.yaml sets for all its files."""
    return (key for key in keys(CONF / "base.yaml") if key.path.startswith(f"{group}."))


def _presets(files: list[Path]) -> str:
    lead = (
        "Taken by itself where a file has the name of the model and the objective, `MODEL-OBJECTIVE`; those of the "
        "embedded model also take what `tiny_qwen2` sets. The command line wins."
    )
    rows = [
        (f"`{path.stem}`", ", ".join(f"`{k.path}={k.value}`" for k in keys(path)) or "as `tiny_qwen2`", about(path))
        for path in files
    ]
    return f"{lead}\n\n" + _table(("preset", "sets", "why"), rows)


def _choices(group: str, files: list[Path], usual: list[Key]) -> str:
    values, rows = {key.path: key.value for key in usual}, []
    for path in files:
        other = ", ".join(f"`{k.path}={k.value}`" for k in keys(path) if values.get(k.path) != k.value)
        rows.append((f"`{group}={path.stem}`", other, about(path)))
    return _table(("choice", "its own values", "what it is"), rows)


def _keys_of(title: str, shown: list[Key], group: str, lead: str = "", level: str = "##") -> str:
    prefix = f"{group}." if group else ""
    rows = [(f"`{prefix}{key.path}`", f"`{key.value}`" if key.value else "", _text(key.comment)) for key in shown]
    head = f"{level} {title}" if title else ""
    return "\n\n".join(part for part in (head, lead, _table(("key", "default", "meaning"), rows)) if part)


def _files(group: str) -> list[Path]:
    return sorted((CONF / group).glob("*.yaml"))


def _text(text: str) -> str:
    """Plain text in a Markdown table: no cell ends early, nothing is markup. Text with code is Markdown already."""
    return text if "`" in text else re.sub(r"([|*<\[\]])", r"\\\1", text)


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
