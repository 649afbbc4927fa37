"""Rows of every form with something odd in them: the cases of the fuzz, each with what must come of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from chat_templates import TEMPLATES
from row_oddities import ODDITIES, WRITTEN
from template_tokenizers import BEGINS, TOKENIZERS

COUNT = 2340
FORMS = ("triplet", "plain triplet", "one prompt", "inside the answers", "plain")
PIECES = [
    *("word", "Who", "é", "日本", "👍", "1960", "def f():", "x", "The answer is:", "<think>", "</think>", "[INST]"),
    *(" ", "  ", "\n", "\n\n", "\t", "    ", ".", "-", "#", "<", "|", "▁", "\u00a0", "\u200b", "cafe\u0301", "\r\n"),
    *("</s>", "<s>", "<|im_end|>", "{{ x }}", '"role": "user"', "\u2028", "\x00", "א", "ﷺ", "[", "{"),
]


@dataclass
class Case:
    """One line of a file.

    Attributes:
        template: The name of the chat template.
        kind: The kind of the tokenizer.
        form: One of ``FORMS``.
        row: What is in the line.
        line: The line itself.
        refused: What a refusal has to name; None where the row may also be read.
        marks: Words that are in the prompt's text if the row is read.
        oddity: What is odd about it.
    """

    number: int
    template: str
    kind: str
    form: str
    row: dict[str, Any]
    line: str = ""
    refused: str | None = None
    marks: list[str] = field(default_factory=list)
    oddity: str = ""


class Maker:
    """Makes one case; ``random`` is its own."""

    def __init__(self, number: int) -> None:
        self.random = Random(f"rows {number}")
        combos = len(TEMPLATES)
        self.case = Case(
            number,
            [*TEMPLATES][number % combos],
            (*TOKENIZERS, BEGINS)[number // combos % (len(TOKENIZERS) + 1)],
            self.random.choices(FORMS, (5, 2, 3, 2, 1))[0],
            {},
        )

    def text(self, plain: bool = False) -> str:
        """Text that is not blank; a plain one begins and ends with letters."""
        made = "".join(self.random.choices(PIECES, k=self.random.randint(1, 8)))
        if plain:
            return f"So {made.replace('think>', '')} it is"
        return made if made.strip() else made + "x"

    def mark(self) -> str:
        """A word that occurs nowhere else."""
        word = f"mark{self.case.number}x{len(self.case.marks)}y"
        self.case.marks.append(word)
        return word

    def messages(self) -> list[dict[str, Any]]:
        """A prompt of messages."""
        made: list[dict[str, Any]] = []
        if self.random.random() < 0.3:
            made.append({"role": "system", "content": f"{self.text()} {self.mark()}"})
        for _ in range(self.random.choice((0, 0, 0, 1, 2))):
            made.append({"role": "user", "content": f"{self.mark()} {self.text()}"})
            made.append({"role": "assistant", "content": self.text(plain=True) + self.mark()})
        made.append({"role": "user", "content": f"{self.text()}{self.mark()}{self.text()}"})
        return made

    def answer(self) -> str:
        """The text of an answer."""
        if self.case.template == "always" and self.random.random() < 0.8:
            return f"{self.text(plain=True)}\n</think>\n\n{self.text(plain=True)}"
        return self.text(plain=self.random.random() < 0.7)

    def make(self) -> Case:
        """The case."""
        case, random = self.case, self.random
        chosen, rejected = self.answer(), self.answer()
        row: dict[str, Any] = {"id": f"row {case.number}", "meta": {"score": 1.5, "tags": [None]}, "messages": []}
        if "plain" in case.form:
            word = self.mark()
            prompts = [
                f"{random.choice(('', '', '<s>'))}{self.text()}{word} A:{random.choice(('', '', ' ', chr(10)))}"
                for _ in range(2)
            ]
            chosen, rejected = (random.choice(("", " ")) + text for text in (chosen, rejected))
        else:
            prompts = [self.messages()]  # type: ignore[list-item]
            prompts.append(json.loads(json.dumps(prompts[0])))
            prompts[1][-1]["content"] = "More. " + prompts[1][-1]["content"]  # type: ignore[index]
        if "triplet" in case.form:
            row |= {"prompt_short": prompts[0], "prompt_long": prompts[1], "chosen": chosen, "rejected": rejected}
        elif case.form == "inside the answers":
            for name, text in (("chosen", chosen), ("rejected", rejected)):
                row[name] = [*json.loads(json.dumps(prompts[0])), {"role": "assistant", "content": text}]
        else:
            row |= {"prompt": prompts[0], "chosen": chosen, "rejected": rejected}
            if case.form == "one prompt" and random.random() < 0.5:
                row |= {name: [{"role": "assistant", "content": row[name]}] for name in ("chosen", "rejected")}
        case.row = row
        if random.random() < 0.7:
            fitting = WRITTEN.get(case.template, ())
            case.oddity = random.choice(fitting if fitting and random.random() < 0.5 else [*ODDITIES])
            ODDITIES[case.oddity](self)
        case.line = case.line or json.dumps(case.row, ensure_ascii=random.random() < 0.5 or case.oddity == "value")
        return case

    def prompts(self) -> list[list[dict[str, Any]]]:
        """All prompts of messages in the row, also inside answers."""
        values = (self.case.row.get(name) for name in ("prompt", "prompt_short", "prompt_long", "chosen", "rejected"))
        return [value for value in values if isinstance(value, list) and value[0]["role"] != "assistant"]

    def answers(self) -> list[dict[str, Any]]:
        """The messages of answers; answers that are strings become messages."""
        row = self.case.row
        for name in ("chosen", "rejected"):
            if isinstance(row[name], str):
                row[name] = [{"role": "assistant", "content": row[name]}]
        return [row[name][-1] for name in ("chosen", "rejected")]

    def refuse(self, what: str) -> None:
        """Expect a refusal that names something."""
        self.case.refused = what

    def in_messages(self, change: Callable[[dict[str, Any]], object], role: str = "user") -> bool:
        """Change the last message of a role in each prompt; False where there is none."""
        found = [[m for m in prompt if m.get("role") == role] for prompt in self.prompts()]
        for own in found:
            if own:
                change(own[-1])
        return any(found)


def cases(step: int = 1) -> list[Case]:
    """Every ``step``-th case, in a fixed order."""
    return [Maker(number).make() for number in range(0, COUNT, step)]
