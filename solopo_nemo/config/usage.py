"""The keys of the configuration with their defaults and texts, for ``--help`` and the configuration page.

Both are read from ``conf/**/*.yaml``: the value of a line is the default, its comment the text, which
``.ci/yaml_comments.py`` writes from the schema. So ``--help`` imports neither the schema nor torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from solopo_nemo.config.overrides import compose_recipe
from solopo_nemo.runtime.cli import command_name
from solopo_nemo.runtime.paths import CONF

# A key, its value and its comment. No value has a #. The key plugins is commented out, as Hydra's +plugins= adds it.
LINE = re.compile(r"^(?P<indent> *)(?:# (?=plugins:))?(?P<key>[\w.]+):(?P<value>[^#]*)(?:#\s*(?P<comment>.*))?$")

GROUPS = ("model", "objective", "data", "parallel", "optim", "trainer", "logger", "evaluation", "peft")
"""The groups with keys, in the order in which they are shown."""


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
    head = takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines())
    return " ".join(line.removeprefix("#").strip() for line in head if "@package" not in line)


def describe(recipe: str, overrides: Sequence[str] = ()) -> str:
    """The help text of a recipe: its keys with their defaults and texts, group by group.

    Args:
        recipe: name of its YAML.
        overrides: words of the command line; ``group=option`` shows the keys of that option.
    """
    lines = [
        f"usage: {command_name()} [key=value ...] [group=option ...]",
        "",
        about(CONF / f"{recipe}.yaml"),
        "With no argument it runs the embedded default on this machine.",
        "",
        *map(_line, run_keys()),
    ]
    words = dict(word.split("=", 1) for word in overrides if "=" in word)
    chosen = {group: option for group, option in words.items() if (CONF / group / f"{option}.yaml").is_file()}
    choices = {**compose_recipe(recipe, (), ()).hydra.runtime.choices, **chosen}
    everywhere = list(keys(CONF / "base.yaml"))
    for group in GROUPS:
        options = {path.stem: list(keys(path)) for path in sorted((CONF / group).glob("*.yaml"))}
        texts = {k.path: k.comment for found in options.values() for k in found if k.comment}  # some files have none
        lines += ["", f"{group}={'|'.join(options)}"]
        own = [Key(f"{group}.{k.path}", k.value, k.comment or texts[k.path]) for k in options[choices[group]]]
        lines += [_line(key) for key in (*own, *(k for k in everywhere if k.path.startswith(f"{group}.")))]
    return "\n".join(lines)


def run_keys() -> list[Key]:
    """The keys of ``base.yaml`` that belong to no group."""
    return [key for key in keys(CONF / "base.yaml") if key.path.partition(".")[0] not in ("recipe", *GROUPS)]


def _line(key: Key) -> str:
    setting = f"  {key.path}={key.value}"
    return f"{setting:<42} {key.comment}".rstrip()
