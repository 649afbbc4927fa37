"""The prompts that a model gets: files that a user can replace."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from solopo_nemo.builders.contexts.prompt import passage_body, passage_header
from solopo_nemo.builders.contexts.question import Paragraph
from solopo_nemo.data.messages import Message
from solopo_nemo.runtime.errors import UserError, require
from solopo_nemo.runtime.paths import ASSETS

_OWN = ASSETS / "questions"
_PLACES = {"write": ("{passages}",), "answer": ("{passages}", "{question}"), "recall": ("{question}",)}
"""Name of a prompt -> what its file has to hold."""


class Prompts:
    """The prompts that write a question, answer it from its evidence, and answer it without.

    Args:
        folder: Folder with any of `write.txt`, `answer.txt` and `recall.txt`; the others are the project's own.

    Raises:
        UserError: The folder holds none of them or other text files, or a file lacks a place such as `{passages}`.
    """

    def __init__(self, folder: Path | None) -> None:
        given = {file.stem: file for file in sorted(folder.glob("*.txt"))} if folder else {}
        known = ", ".join(f"{name}.txt" for name in _PLACES)
        require(folder is None or bool(given), f"--prompts {folder}: no such folder, or none of {known} in it")
        if unknown := [file.name for name, file in given.items() if name not in _PLACES]:
            raise UserError(f"--prompts {folder}: {unknown[0]} is no prompt, there are {known}")
        self.texts: dict[str, str] = {}
        for name, places in _PLACES.items():
            file = given.get(name, _OWN / f"{name}.txt")
            try:
                self.texts[name] = file.read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise UserError(f"{file}: cannot be read as UTF-8 text ({error})") from error
            for place in places:
                if place not in self.texts[name]:
                    raise UserError(f"{file}: lacks {place}, where the {place.strip('{}')} go: write it in")

    def render(self, name: str, paragraphs: Iterable[Paragraph] = (), question: str = "") -> list[Message]:
        """Return the messages of a prompt: `write`, `answer` or `recall`."""
        shown = (passage_header(i) + passage_body(one) for i, one in enumerate(paragraphs, start=1))
        values = {"{passages}": "".join(shown).rstrip(), "{question}": question}
        # in one pass, because passages may hold "{question}"
        text = re.sub(r"\{passages\}|\{question\}", lambda place: values[place.group()], self.texts[name])
        return [{"role": "user", "content": text}]
