"""The sequences of a tokenized sample as text, with the tokens that are scored told apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

from solopo_nemo.data.triplets import answer_columns, sequence_columns
from solopo_nemo.data.turns import vocabulary_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SHOWN = 240


class Run(NamedTuple):
    """Neighbouring tokens, all scored or all not.

    Attributes:
        scored: They are scored.
        tokens: The text of each; a character of several tokens shows as replacement characters.
    """

    scored: bool
    tokens: list[str]

    @property
    def text(self) -> str:
        """Scored tokens with a bar between each two; others without, and a long text shortened."""
        return "|".join(self.tokens) if self.scored else shorten("".join(self.tokens))


class ShownSequence(NamedTuple):
    """A sequence of a sample.

    Attributes:
        name: Of the sequence, such as `short_rejected`; with a number for a further rejected answer.
        runs: Its tokens.
    """

    name: str
    runs: list[Run]

    @property
    def counts(self) -> str:
        """How many tokens there are, and how many of them are scored."""
        total, scored = (sum(len(run.tokens) for run in self.runs if run.scored >= only) for only in (False, True))
        return f"{total} tokens, {scored} scored"


def shorten(text: str) -> str:
    """Shorten a text to its beginning and its end. The end of a prompt contains the question."""
    if len(text) <= 2 * _SHOWN:
        return text
    return f"{text[:_SHOWN]} [... {len(text) - 2 * _SHOWN} characters ...] {text[-_SHOWN:]}"


def shown_sequences(
    tokenizer: PreTrainedTokenizerBase, sample: Mapping[str, Any], sequences: Sequence[str]
) -> Iterator[ShownSequence]:
    """Yield the sequences of a sample.

    Args:
        tokenizer: Its tokenizer.
        sample: Token ids by column, as `PreparedDataset` holds them.
        sequences: Names of sequences.
    """
    for name in sequences:
        prompt, response = sequence_columns()[name]
        for column in answer_columns(sample, response):
            tokens = [(False, i) for i in sample[prompt]]
            tokens += zip((i >= 0 for i in sample[column]), vocabulary_ids(sample[column]).tolist(), strict=True)
            runs = [
                Run(scored, [tokenizer.decode([i]) for _, i in own]) for scored, own in groupby(tokens, lambda t: t[0])
            ]
            yield ShownSequence(name + column.removeprefix(response), runs)
