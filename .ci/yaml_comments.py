"""Write the comments of ``conf/**/*.yaml`` from the docstrings of the configuration's schema.

    python .ci/yaml_comments.py

A file in which no key has a comment stays as it is. A test fails where a comment is not the one of the schema.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from dataclasses import Field, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from solopo_nemo.config.schema import RunConfig
from solopo_nemo.config.usage import keys
from solopo_nemo.objectives import available_objectives, objective_class, option_fields
from solopo_nemo.runtime.paths import CONF

_ENTRY = re.compile(r"^    ([\w.]+): (.*(?:\n {8}.*)*)", re.MULTILINE)


def main() -> None:
    """Write the files."""
    for path in CONF.rglob("*.yaml"):
        path.write_text(commented(path), encoding="utf-8")


def commented(path: Path) -> str:
    """The content of a YAML file with the comments of the schema.

    Raises:
        KeyError: The schema has no text for one of its keys.
    """
    content, found = path.read_text(encoding="utf-8"), list(keys(path))
    if not any(key.comment for key in found):
        return content
    group = path.parent.name if path.parent != CONF else ""
    texts = dict(_texts(RunConfig, ""))
    if path.parent.name == "objective" and path.stem in available_objectives():
        options = option_fields(objective_class(path.stem))
        texts |= {f"objective.{name}": _with_allowed(o, o.metadata["help"]) for name, o in options.items()}
    lines = {key: re.compile(rf"^( *(?:# )?{key.path.split('.')[-1]}:.*?) *(#.*)?$", re.MULTILINE) for key in found}
    settings = {key: line.search(content) for key, line in lines.items()}
    width = max(len(setting[1]) for setting in settings.values() if setting) + 2
    for key, line in lines.items():
        text = texts[f"{group}.{key.path}".lstrip(".")]
        content = line.sub(lambda m, text=text: f"{m[1]:<{width}}# {text}", content, count=1)
    return content


def _texts(cls: type, prefix: str) -> Iterator[tuple[str, str]]:
    """The texts of a section's keys and of its subsections', by dotted name."""
    section = (inspect.getdoc(cls) or "").partition("Attributes:\n")[2]
    texts = {name: " ".join(text.split()).removesuffix(".") for name, text in _ENTRY.findall(section)}
    kinds, options = get_type_hints(cls), {option.name: option for option in fields(cls)}
    for name in options:
        if is_dataclass(kind := kinds[name]):
            yield from _texts(kind, f"{prefix}{name}.")
    for name, text in texts.items():
        yield f"{prefix}{name}", _with_allowed(options.get(name), text)


def _with_allowed(option: Field[Any] | None, text: str) -> str:
    allowed = option.metadata.get("allowed", ()) if option else ()
    return f"{' | '.join(allowed)}: {text}" if allowed else text


if __name__ == "__main__":
    sys.exit(main())
