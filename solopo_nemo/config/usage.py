"""The keys of the configuration out of ``conf/*.yaml``: for ``--help`` and for the reference page of the documentation.

Each YAML file states its defaults and, in the comment of a line, what the key means.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from solopo_nemo.runtime.cli import command_name
from solopo_nemo.runtime.paths import CONF

# a key, its value and its comment; a # in a value would need quotes, and there are none
LINE = re.compile(r"^(?P<indent> *)(?P<key>[\w.]+):(?P<value>[^#]*)(?:#\s*(?P<comment>.*))?$")


@dataclass(frozen=True)
class Key:
    """One key of a YAML file: its path, its value as written, its comment."""

    path: str
    value: str
    comment: str


def keys(path: Path) -> Iterator[Key]:
    """The keys of a file that have a value, with the comment on their line."""
    above: list[tuple[int, str]] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        found = LINE.match(line)
        if not found:
            continue
        indent, value = len(found["indent"]), found["value"].strip()
        above = [(depth, name) for depth, name in above if depth < indent]
        if above and above[0][1] in ("defaults", "hydra"):
            continue
        if value or found["comment"]:
            name = ".".join([*(name for _, name in above), found["key"]])
            yield Key(name, value, (found["comment"] or "").strip())
        above.append((indent, found["key"]))


def about(path: Path) -> str:
    """The comment at the head of a file, without Hydra's directive."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if "@package" not in line:
            lines.append(line.removeprefix("#").strip())
    return " ".join(lines)


def describe(recipe: str) -> str:
    """Help text of a recipe: its keys with their defaults and meanings, group by group."""
    plain = [key for key in keys(CONF / "base.yaml") if key.path != "recipe" and "." not in key.path]
    plain.append(Key("plugins", "[]", "modules that register objectives; given as +plugins=[my_package.my_po]"))
    lines = [
        f"usage: {command_name()} [key=value ...] [group=option ...]",
        "",
        about(CONF / f"{recipe}.yaml"),
        "With no argument it runs the embedded default on this machine.",
        "",
        *(_line(key) for key in plain),
    ]
    choices = _choices(recipe)
    everywhere = list(keys(CONF / "base.yaml"))
    for group in ("model", "objective", "data", "parallel", "optim", "trainer", "logger", "evaluation", "peft"):
        options = sorted(p.stem for p in (CONF / group).glob("*.yaml"))
        lines += ["", f"{group}={'|'.join(options)}"]
        own = [Key(f"{group}.{k.path}", k.value, k.comment) for k in keys(CONF / group / f"{choices[group]}.yaml")]
        lines += [_line(key) for key in (*own, *(k for k in everywhere if k.path.startswith(f"{group}.")))]
    return "\n".join(lines)


def _line(key: Key) -> str:
    setting = f"  {key.path}={key.value}"
    return f"{setting:<42} {key.comment}".rstrip()


def _choices(recipe: str) -> dict[str, str]:
    """The option that a recipe takes for each group unless told otherwise."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        composed = compose(recipe, return_hydra_config=True)
    return dict(composed.hydra.runtime.choices)
