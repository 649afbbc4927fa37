"""The prompt template of the project: passages, question, and the instruction for the closing line.

Data construction, training and evaluation share it.
"""

from __future__ import annotations

from collections.abc import Sequence

from solopo_nemo.builders.contexts.question import Paragraph
from solopo_nemo.data.answers import ANSWER_PREFIX
from solopo_nemo.data.messages import Message

NO_ANSWER = "No answer."

_OPENING = "Read the passages and answer the question. Only some of the passages are relevant.\n\n"
_CLOSING = (
    "Question: {question}\n\n"
    'Think step by step, then end with one line "{prefix} ..." that gives the answer in as few words as possible. '
    'If the passages do not hold the answer, end with "{prefix} {no_answer}"'
)


def passage_header(number: int) -> str:
    """Return the header line of a passage; numbers begin at 1."""
    return f"Passage {number}:\n"


def passage_body(paragraph: Paragraph) -> str:
    """Return the text of a passage between its header and the next header."""
    title = f"{paragraph.title}\n" if paragraph.title else ""
    return f"{title}{paragraph.text.rstrip()}\n\n"


def render_prompt(question: str, paragraphs: Sequence[Paragraph]) -> list[Message]:
    """Return the chat messages that ask `question` about `paragraphs`, in their order."""
    passages = (passage_header(i) + passage_body(paragraph) for i, paragraph in enumerate(paragraphs, start=1))
    return [{"role": "user", "content": render_document(question, "".join(passages))}]


def render_document(question: str, document: str) -> str:
    """Return the text that asks `question` about a document. The document has its own headings or none."""
    closing = _CLOSING.format(question=question, prefix=ANSWER_PREFIX, no_answer=NO_ANSWER)
    return f"{_OPENING}{document.rstrip()}\n\n{closing}"


def closing_line(answer: str) -> str:
    """Return the line that states an answer."""
    return f"{ANSWER_PREFIX} {answer}"
