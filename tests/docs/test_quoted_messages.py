"""The messages that the page on troubleshooting quotes are messages of this code."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache

import pytest
from shown import DOCS, ROOT

ANYTHING = "…"
QUOTED = re.findall(r"^### `(.+)`$", (DOCS / "troubleshooting.md").read_text(encoding="utf-8"), re.MULTILINE)


@cache
def texts() -> tuple[str, ...]:
    """Every string of the code as it reads with its values left open, and the lines of the shell scripts."""
    found = [text for folder in ("solopo_nemo", "tools") for path in sorted((ROOT / folder).rglob("*.py"))
             for text in strings(path.read_text(encoding="utf-8"))]  # fmt: skip
    for script in ("tools/launch.sh", "tools/slurm/job.sh"):
        found += re.sub(r'" *\\\n *"', " ", (ROOT / script).read_text()).splitlines()
    return tuple(found)


def strings(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(p.value) if isinstance(p, ast.Constant) else ANYTHING for p in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def occurs(quoted: str) -> bool:
    pattern = re.compile(".*".join(map(re.escape, quoted.split(ANYTHING))))
    return any(pattern.search(text) for text in texts())


@pytest.mark.parametrize("quoted", QUOTED)
def test_the_message_is_in_the_code(quoted: str) -> None:
    assert occurs(quoted)


def test_one_that_is_not_is_noticed() -> None:
    assert len(QUOTED) > 30
    assert not occurs("objective.name has to be one of")
    assert not occurs("no value given … on the command line as key: value")
