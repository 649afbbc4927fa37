"""Passages: documents cut by their own structure, without boilerplate and near-duplicates."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import regex

from solopo_nemo.builders.contexts.question import Paragraph
from solopo_nemo.builders.questions.readers import Document
from solopo_nemo.data.normal_form import normalize
from solopo_nemo.runtime.errors import UserError
from solopo_nemo.runtime.progress import with_progress

Count = Callable[[str], int]

_HEADINGS = re.compile(
    r"^(?=#{1,6} \S)|(?:(?<=\n\n)|\A)(?=(?:chapter|book|part|section|act|scene|letter)\s+[\dIVXLC]+\b[^\n]{0,80}\n)",
    re.I | re.M,
)
_ENDS = [
    re.compile(r"\n\s*\n\s*"),
    re.compile(r"""[.!?…؟۔।॥።။។]["'”’»)\]]*\s+|[。！？][」』”）]*\s*"""),
    re.compile(r"\s+"),
]
"""Ends of paragraphs, of sentences and of words."""
_LETTERS = regex.compile(r"[\p{L}\p{M}]")
_SHORT = 0.25
"""A section below this share of the budget goes on into the next one, such as a title page."""
_REPEATED_IN, _SHARE = 3, 0.5
_LIKENESS, _SHINGLE, _PERMUTATIONS = 0.8, 5, 128
BOILERPLATE, NEAR_DUPLICATE = "boilerplate", "near_duplicate"


@dataclass(frozen=True)
class Passage(Paragraph):
    """A passage of a document: its title, and a text with all white space, so that joined in order they are its text.

    Attributes:
        document: Name of the document.
        number: Position in the document, from 0.
    """

    document: str
    number: int

    def row(self) -> dict[str, str | int]:
        """Return the row of the passages file. It is also a row of a pool."""
        title = {"title": self.title} if self.title else {}
        return {"document": self.document, "number": self.number, **title, "text": self.text}


def cut(text: str, budget: int, count: Count) -> list[str]:
    """Cut a text into passages. Joined, they are the text.

    A heading begins a passage. Paragraphs are kept whole where they fit, then sentences, then words.

    Args:
        text: Any text.
        budget: Most tokens of a passage, by the sum of its parts; at least 1.
        count: Gives the tokens of a text.

    Returns:
        The passages in order, each with the white space that follows it. None is empty.
    """
    passages: list[str] = []
    room = 0  # tokens that the last passage can still take
    for section in _split(text, [match.start() for match in _HEADINGS.finditer(text)]):
        if room < (1 - _SHORT) * budget:
            room = 0
        for part, tokens in _parts(section, budget, count, 0):
            if passages and tokens <= room:
                passages[-1] += part
                room -= tokens
            else:
                passages.append(part)
                room = budget - tokens
    return passages


def _split(text: str, places: Iterable[int]) -> Iterator[str]:
    for start, end in pairwise(sorted({0, *places, len(text)})):
        yield text[start:end]


def _parts(text: str, budget: int, count: Count, level: int) -> Iterator[tuple[str, int]]:
    """Yield parts of at most `budget` tokens, and their tokens."""
    tokens = count(text)
    if tokens <= budget or len(text) == 1:
        yield text, tokens
        return
    places = [match.end() for match in _ENDS[level].finditer(text)] if level < len(_ENDS) else [len(text) // 2]
    for part in _split(text, places):
        yield from _parts(part, budget, count, level + 1)


class Passages:
    """The passages of documents, by document and in order.

    Memory: the text of all documents, and 0.5 KB for each passage's signature.

    Attributes:
        kept: The passages that questions are asked about and that contexts hold.
        left_out: The other passages, each with `boilerplate` or `near_duplicate`.
    """

    def __init__(self, documents: Sequence[Document], budget: int, count: Count) -> None:
        """Cut the documents and sort out.

        Boilerplate is a passage of which at least half are paragraphs that three documents or more have (licences,
        menus), or of which less than half of the characters are letters (tables of numbers, rulers). A near-duplicate
        has a MinHash similarity of 0.8 or more, by runs of five words, with an earlier passage.

        Raises:
            UserError: datasketch is not installed.
        """
        repeated = _repeated(documents)
        self.kept: list[Passage] = []
        self.left_out: list[tuple[Passage, str]] = []
        prose = []
        for document in with_progress(documents, "cutting"):
            for number, text in enumerate(cut(document.text, budget, count)):
                passage = Passage(document.title, text, document.name, number)
                if _is_boilerplate(text, repeated):
                    self.left_out.append((passage, BOILERPLATE))
                else:
                    prose.append(passage)
        earlier = near_duplicates((passage.text, "") for passage in with_progress(prose, "finding duplicates"))
        for passage, duplicate in zip(prose, earlier, strict=True):
            if duplicate:
                self.left_out.append((passage, NEAR_DUPLICATE))
            else:
                self.kept.append(passage)


def _paragraphs(text: str) -> list[str]:
    return [part for part in re.split(r"\n\s*\n", text) if part.strip()]


def _repeated(documents: Sequence[Document]) -> set[str]:
    counts = Counter(form for one in documents for form in {*map(normalize, _paragraphs(one.text))})
    return {form for form, count in counts.items() if count >= _REPEATED_IN}


def _is_boilerplate(text: str, repeated: set[str]) -> bool:
    if len(_LETTERS.findall(text)) < _SHARE * len("".join(text.split())):
        return True
    paragraphs = _paragraphs(text)
    same = sum(len(one) for one in paragraphs if repeated and normalize(one) in repeated)
    return bool(same) and same >= _SHARE * sum(map(len, paragraphs))


def near_duplicates(texts: Iterable[tuple[str, str]], shingle: int = _SHINGLE) -> Iterator[bool]:
    """Yield for each text whether an earlier one, that is itself no duplicate, is nearly the same.

    Args:
        texts: Any texts, each with a key; only texts of one key are alike. Both are compared in normal form.
        shingle: Words of a run; texts with equal sets of runs have similarity 1.

    Raises:
        UserError: datasketch is not installed.
    """
    try:
        from datasketch import MinHash, MinHashLSH
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is not installed: pip install -r requirements/documents.txt") from error
    index = MinHashLSH(threshold=_LIKENESS, num_perm=_PERMUTATIONS)
    known: dict[Hashable, MinHash] = {}
    runs = (_runs(normalize(text).split(), shingle, normalize(key)) for text, key in texts)
    for number, signature in enumerate(MinHash.generator(runs, num_perm=_PERMUTATIONS)):
        duplicate = any(signature.jaccard(known[other]) >= _LIKENESS for other in index.query(signature))
        if not duplicate:
            known[number] = signature
            index.insert(number, signature)
        yield duplicate


def _runs(words: list[str], size: int, key: str) -> list[bytes]:
    return ["\0".join([*words[i : i + size], key]).encode() for i in range(max(1, len(words) - size + 1))]
