"""Token counts of prompts and of single passages."""

from __future__ import annotations

from solopo_nemo.data.contexts.prompt import passage_body, passage_header
from solopo_nemo.data.contexts.question import Paragraph
from solopo_nemo.data.tokenize import TripletEncoder
from solopo_nemo.data.triplets import Message

# what stands around a passage, so that tokens which span its borders are counted as in a prompt
_BEFORE, _AFTER = "Passage 1:\n", "Passage"
_BETWEEN = ".\n\n"


class TokenCounter:
    """Exact counts of prompts, and counts of single passages that are kept for the next question.

    Args:
        encoder: Of the target tokenizer.
    """

    def __init__(self, encoder: TripletEncoder) -> None:
        self._encoder = encoder
        self._frame = self._count(_BEFORE + _AFTER)
        self._gap = self._count(_BETWEEN + _AFTER)
        self._headers: dict[int, int] = {}
        self._bodies: dict[str, int] = {}

    def prompt(self, prompt: list[Message], where: str) -> int:
        """Return the exact length of a rendered prompt."""
        return self._count(self._encoder.render(prompt, where))

    def passage(self, paragraph: Paragraph, number: int) -> int:
        """Return what a passage adds to a prompt."""
        header = self._headers.get(number)
        if header is None:
            header = self._count(_BETWEEN + passage_header(number) + _AFTER) - self._gap
            self._headers[number] = header
        body = self._bodies.get(paragraph.key)
        if body is None:
            body = self._count(_BEFORE + passage_body(paragraph) + _AFTER) - self._frame
            self._bodies[paragraph.key] = body
        return header + body

    def _count(self, text: str) -> int:
        backend = getattr(self._encoder.tokenizer, "backend_tokenizer", None)
        if backend is None or backend.truncation or backend.padding or backend.encode_special_tokens:
            return self._encoder.count_text(text)
        # the same tokens without offsets, masks and Python lists of them, which take half of the time
        return len(backend.encode_batch_fast([text], add_special_tokens=False)[0])
