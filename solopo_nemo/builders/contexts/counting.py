"""Token counts of prompts and of single passages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice

from solopo_nemo.builders.contexts.prompt import passage_body, passage_header
from solopo_nemo.builders.contexts.question import Paragraph
from solopo_nemo.data.messages import Message
from solopo_nemo.data.tokenize import TripletEncoder
from solopo_nemo.runtime.progress import with_progress

# the text around a passage, so that tokens across its borders are counted as in a prompt
_BEFORE, _AFTER = "Passage 1:\n", "Passage"
_BETWEEN = ".\n\n"
_COUNTED_AT_ONCE = 512


class TokenCounter:
    """Counts the tokens of prompts exactly, and caches the counts of single passages.

    Args:
        encoder: Encoder of the target tokenizer.
    """

    def __init__(self, encoder: TripletEncoder) -> None:
        self._encoder = encoder
        self._frame = self._count(_BEFORE + _AFTER)
        self._gap = self._count(_BETWEEN + _AFTER)
        self._headers: dict[int, int] = {}
        self._bodies: dict[str, int] = {}

    def prompt(self, prompt: list[Message], where: str) -> int:
        """Return the exact length of a rendered prompt in tokens."""
        return self._count(self._encoder.render(prompt, where))

    def passage(self, paragraph: Paragraph, number: int) -> int:
        """Return the tokens that a passage with its header adds to a prompt."""
        return self.header(number) + self.body(paragraph)

    def header(self, number: int) -> int:
        """Return the tokens that the header of a passage adds."""
        if number not in self._headers:
            self._headers[number] = self._count(_BETWEEN + passage_header(number) + _AFTER) - self._gap
        return self._headers[number]

    def body(self, paragraph: Paragraph) -> int:
        """Return the tokens of a passage without its header."""
        if paragraph.key not in self._bodies:
            self._count_bodies([paragraph])
        return self._bodies[paragraph.key]

    def count_all(self, paragraphs: Iterable[Paragraph], size: int) -> int:
        """Count `size` paragraphs once, on all cores; return their sum as passages of one prompt."""
        shown = iter(with_progress(paragraphs, "counting tokens", size))
        bodies = 0
        while batch := list(islice(shown, _COUNTED_AT_ONCE)):
            bodies += sum(self._count_bodies(batch))
        return bodies + sum(self.header(number) for number in range(1, size + 1))

    def _count_bodies(self, paragraphs: Sequence[Paragraph]) -> list[int]:
        counts = self._counts([_BEFORE + passage_body(paragraph) + _AFTER for paragraph in paragraphs])
        bodies = [count - self._frame for count in counts]
        self._bodies.update(zip((paragraph.key for paragraph in paragraphs), bodies, strict=True))
        return bodies

    def _count(self, text: str) -> int:
        return self._counts([text])[0]

    def _counts(self, texts: list[str]) -> list[int]:
        backend = getattr(self._encoder.tokenizer, "backend_tokenizer", None)
        if backend is None or backend.truncation or backend.padding or backend.encode_special_tokens:
            return [self._encoder.count_text(text) for text in texts]
        # the same tokens without offsets, masks and Python lists, which would double the time
        return [len(encoding) for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]
