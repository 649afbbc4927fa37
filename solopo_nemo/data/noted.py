"""Encoding of a file's samples, with a record of what is unusual in them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from solopo_nemo.data.tokenize import TripletEncoder
from solopo_nemo.data.triplets import Needs, Triplet, read_triplets
from solopo_nemo.data.turns import rewritten_turns, vocabulary_ids
from solopo_nemo.data.vocabulary import require_token
from solopo_nemo.runtime.errors import UserError

BATCH = 32
"""Samples that are encoded together."""
_NAMED = 3

logger = logging.getLogger("solopo_nemo")


class NotedEncoder:
    """Encodes the samples of a file in batches, and records unusual samples.

    Attributes:
        largest: The largest token id so far and its location.
        special: Locations of answers that contain the text of a special token.
        equal: Locations of samples whose chosen and rejected answers are equal.
        no_longer: Locations of samples whose long prompt has no more tokens than the short one.
    """

    def __init__(self, encoder: TripletEncoder, needs: Needs, vocab_size: int, template_mismatch: str) -> None:
        self._encoder, self._needs, self._vocab_size = encoder, needs, vocab_size
        self._mismatch = template_mismatch
        self.largest: dict[str, Any] = {"id": -1, "where": ""}
        self.special: list[str] = []
        self.equal: list[str] = []
        self.no_longer: list[str] = []

    def __call__(self, path: Path) -> Iterator[tuple[Triplet, dict[str, list[int]]]]:
        """Yield the samples of a file and their token ids by column."""
        samples = read_triplets(path, self._needs)
        while batch := list(islice(samples, BATCH)):
            yield from zip(batch, self._encoder.encode(batch, self._needs), strict=True)

    def note(self, triplet: Triplet, ids: dict[str, list[int]]) -> None:
        """Record the properties of a kept sample.

        Raises:
            UserError: A token id has no embedding.
        """
        for column, own in ids.items():
            if (largest := int(vocabulary_ids(own).max(initial=-1))) > self.largest["id"]:
                self.largest = {"id": largest, "where": triplet.place(column)}
                require_token(largest, self._encoder.tokenizer, self._vocab_size, self.largest["where"])
        self.special += self._encoder.special_text(triplet, self._needs.responses)
        if len(self._needs.prompts) == 2 and len(ids["prompt_long"]) <= len(ids["prompt_short"]):
            self.no_longer.append(triplet.where)
        if triplet.same_answers(ids):
            self.equal.append(triplet.where)

    def report(self, path: Path, kept: int) -> None:
        """Log a warning for the unusual samples.

        Raises:
            UserError: In every sample, the chosen and the rejected answer are equal; or the template rewrites turns of
                an answer, and that is an error.
        """
        if rewritten := rewritten_turns(self._encoder.rewritten):
            if self._mismatch == "error":
                raise UserError(
                    f"{rewritten}: give data.score=last, which scores the last turn alone, or "
                    "data.template_mismatch=warn, which trains on the whole conversation as the template writes it"
                )
            logger.warning("data: %s", rewritten)
        if len(self.equal) == kept:
            raise UserError(
                f"{path}: chosen and rejected are the same answer in every row, first in {self.equal[0]}: there is "
                "nothing to prefer; check how the file was made"
            )
        for what, places in (
            ("answers hold the text of a special token, which is trained as letters", self.special),
            ("samples have the same answer as chosen and as rejected, which teaches nothing", self.equal),
            ("samples have a long prompt that is no longer than the short one", self.no_longer),
        ):
            if places:
                more = "; …" if len(places) > _NAMED else ""
                logger.warning("data: %d %s: %s%s", len(places), what, "; ".join(places[:_NAMED]), more)
