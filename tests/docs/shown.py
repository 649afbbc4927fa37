"""The commands that README.md and the pages show: read out of them, and checked without starting any."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = (ROOT / "README.md", *sorted(DOCS.glob("*.md")))
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(
    r"(?<!`)`((?:\.venv/bin/)?(?:python (?:tools|recipes|benchmarks)/\w+\.py|solopo [a-z]\w+)[^`]*)`(?!`)"
)
ASSIGNMENT = re.compile(r"^[A-Za-z_]\w*=")


@dataclass(frozen=True)
class Command:
    """One simple command.

    Attributes:
        place: page and text, for the message of a test.
        environment: the assignments before it.
        words: the command and its arguments.
    """

    place: str
    environment: dict[str, str]
    words: tuple[str, ...]

    def __str__(self) -> str:
        return self.place


def commands(page: Path) -> Iterator[Command]:
    """Every command of a page: of its bash blocks, and those of our programs that stand in a line of text."""
    text = page.read_text(encoding="utf-8")
    blocks = [block for language, block in FENCE.findall(text) if language == "bash"]
    spans = [span.replace("\n", " ") for span in SPAN.findall(FENCE.sub("", text))]
    for block in [*blocks, *spans]:
        for line in block.replace("\\\n", " ").splitlines():
            for words in _simple(line):
                names = list(_leading(words))
                environment = dict(name.split("=", 1) for name in names)
                place = f"{page.name}: {' '.join(words)}"
                yield Command(place, environment, tuple(words[len(names) :]))


def _simple(line: str) -> Iterator[list[str]]:
    """The commands of a line, without comments, apart at && and the like."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="&|;")
    lexer.whitespace_split, lexer.commenters = True, "#"
    words: list[str] = []
    for word in [*lexer, ";"]:
        if set(word) <= set("&|;"):
            if words:
                yield words
            words = []
        else:
            words.append(word)


def _leading(words: list[str]) -> Iterator[str]:
    for word in words:
        if not ASSIGNMENT.match(word):
            return
        yield word
