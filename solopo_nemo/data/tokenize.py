"""Tokenization of triplets. The ids of prompt and response equal those of the whole conversation, or it is refused."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from solopo_nemo.data.chat_template import DROPPED, ChatTemplate, NoBeginning, not_joined, require_beginning
from solopo_nemo.data.messages import Message, Prompt
from solopo_nemo.data.text_ids import TextIds
from solopo_nemo.data.triplets import Needs, Triplet, sequence_columns
from solopo_nemo.data.turns import Turns
from solopo_nemo.runtime.errors import UserError, require

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger("solopo_nemo")

_QUESTION: Message = {"role": "user", "content": "question"}
_ANSWER = "probe"


@dataclass(frozen=True)
class _Ending:
    """The text that a chat template writes after an answer.

    Attributes:
        close: Text up to and including the added token that ends the turn; without such a token, all text except
            trailing white space.
        rest: Text after `close`.
        token: The added token that ends the turn; empty if there is none, and then `eos_token` follows `close`.
        end_id: Id of that token, or of `eos_token`.
    """

    close: str
    rest: str
    token: str
    end_id: int


@dataclass(frozen=True)
class _Pair:
    """A rendered prompt and its response.

    Attributes:
        prompt: Text of the prompt.
        body: Text of the response, including text that the template inserts before it.
        ending: Text and token after the response.
        special: Index in `body` of the first special-token text of the response, which is encoded as plain text; None
            without such text.
        where: Location and field of the response, for messages.
    """

    prompt: str
    body: str
    ending: _Ending
    special: int | None
    where: str


class TripletEncoder:
    """Encodes prompts and responses as token ids.

    - A prompt of messages is rendered as for inference: the chat template with the generation prompt. `tools`,
      `documents` and `chat_template_kwargs` of a row are passed to the template. Input that it ignores is refused.
    - The response is the rest of the rendered conversation, up to the added token that ends the assistant's turn. If
      the template has no such token, the response is the rest of the text and `eos_token`. The ids of prompt and
      response together are those of the whole conversation. A sample for which this does not hold is refused.
    - An answer of several messages is encoded by `Turns`; tokens that are not scored are negative there.
    - A plain prompt starts with the special tokens that the tokenizer itself prepends. Its response ends with
      `eos_token`.
    - Special-token text in a response is encoded as plain text, so that only the end token ends the response. In a
      prompt it is encoded as the special token, as in inference.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template_kwargs: Mapping[str, Any] | None = None,
        key: str = "data.chat_template_kwargs",
        given: Mapping[str, Any] | None = None,
        score: str = "assistant",
    ) -> None:
        """See `ChatTemplate` and `Turns`."""
        self.tokenizer, self.score = tokenizer, score
        self.template = ChatTemplate(tokenizer, template_kwargs, key, given)
        self.rewritten: dict[str, str] = {}
        """By the location of an answer of several turns, how the template rewrites the earlier ones."""
        self._ids = TextIds(tokenizer)
        self._rows: dict[str, TripletEncoder] = {}
        self._markup = False

    def encode(self, triplets: Sequence[Triplet], needs: Needs) -> list[dict[str, list[int]]]:
        """Encode a batch. The tokenizer processes it in parallel.

        Args:
            triplets: Samples with the fields of `needs`.
            needs: The sequences to encode.

        Returns:
            For each sample, the token ids of the fields in `needs.columns`.

        Raises:
            UserError: The template raises an error or drops a part of a response, the ids of a conversation do not
                begin with those of its prompt, or there is no template or end token.
        """
        try:
            return self._encode(triplets, needs)
        except NoBeginning as error:
            raise UserError(f"{error}{self._mending_switch(triplets, needs)}") from None

    def _mending_switch(self, triplets: Sequence[Triplet], needs: Needs) -> str:
        """The switch with which the same samples are accepted, as words; empty where the template has none."""
        for name in self.template.switch_names():
            for value in (False, True):
                try:
                    switched = TripletEncoder(self.tokenizer, self.template.switches | {name: value}, score=self.score)
                    switched._encode(triplets, needs)
                except UserError:
                    continue
                return f"; or give data.chat_template_kwargs='{{{name}: {str(value).lower()}}}'"
        return ""

    def _encode(self, triplets: Sequence[Triplet], needs: Needs) -> list[dict[str, list[int]]]:
        self._rows.clear()  # of the batch before
        columns: dict[str, list[list[int]]] = {}
        texts: dict[str, list[str]] = {}
        for field in needs.prompts:
            texts[field] = [self._of(t)._text(getattr(t, field), t.place(field)) for t in triplets]
            columns[field] = self._prompt_ids(texts[field], [getattr(t, field) for t in triplets])
        rows = [{field: ids[row] for field, ids in columns.items()} for row in range(len(triplets))]
        for name in needs.sequences:
            prompt, response = sequence_columns()[name]
            self._add_answers(rows, triplets, texts[prompt], prompt, response)
        return rows

    def _add_answers(
        self,
        rows: list[dict[str, list[int]]],
        triplets: Sequence[Triplet],
        texts: list[str],
        prompt: str,
        response: str,
    ) -> None:
        """Encode the answers of a field after a prompt, and add them to the rows."""
        pairs, places = [], []
        for row, (triplet, text) in enumerate(zip(triplets, texts, strict=True)):
            encoder, asked = self._of(triplet), getattr(triplet, prompt)
            for column, where, answer in triplet.answers(response):
                if isinstance(answer, str):
                    pairs.append(encoder._pair(asked, text, answer, where))
                    places.append((row, column, where))
                else:
                    ids = encoder._turns.encode(asked, text, rows[row][prompt], answer, where)
                    self.rewritten |= encoder._turns.rewritten
                    _add(rows[row], column, ids, where)
        encoded = self._response_ids(pairs, [rows[row][prompt] for row, _, _ in places])
        for (row, column, where), ids in zip(places, encoded, strict=True):
            _add(rows[row], column, ids, where)

    def encode_prompts(self, prompts: Sequence[Prompt], places: Sequence[str]) -> list[list[int]]:
        """Encode prompts for generation.

        Args:
            prompts: Chat messages or plain strings.
            places: Location of each prompt, for messages.

        Returns:
            The token ids of each prompt.

        Raises:
            UserError: There is no template for messages, or it raises an error.
        """
        return self._prompt_ids([self._text(p, where) for p, where in zip(prompts, places, strict=True)], prompts)

    def count_text(self, text: str) -> int:
        """Return the number of tokens of a text, without added special tokens."""
        return len(self._ids([text])[0])

    def special_text(self, triplet: Triplet, fields: Sequence[str]) -> list[str]:
        """Describe each response that contains special-token text, by location, field and first such text.

        The text is encoded as plain text: the model learns to write it, not to emit the token.
        """
        found = [
            (where, self._ids.first_special(answer)[1])
            for field in fields
            for _, where, answer in (triplet.answers(field) if getattr(triplet, field) else ())
            if isinstance(answer, str)
        ]
        return [f"{where}: {token!r}" for where, token in found if token]

    def render(self, messages: list[Message], where: str) -> str:
        """Render messages with the chat template, up to the start of the assistant's text.

        Raises:
            UserError: There is no template, it raises an error, or it ignores a part of the messages.
        """
        return self.template.prompt(messages, where) + self._header

    def _of(self, triplet: Triplet) -> TripletEncoder:
        """Return the encoder with the template fields of a row."""
        key = json.dumps(triplet.template) if triplet.template else ""
        if key and key not in self._rows:
            given = dict(triplet.template)
            switches = self.template.switches | given.pop("chat_template_kwargs", {})
            where = f"{triplet.where}: field chat_template_kwargs"
            self._rows[key] = TripletEncoder(self.tokenizer, switches, where, given, self.score)
        return self._rows[key] if key else self

    def _text(self, prompt: Prompt, where: str) -> str:
        return prompt if isinstance(prompt, str) else self.render(prompt, where)

    def _pair(self, prompt: Prompt, text: str, response: str, where: str) -> _Pair:
        """Render a response after its prompt."""
        if isinstance(prompt, str):
            self._check_markup(prompt, where)
            return _Pair(
                text, response, _Ending("", "", "", self._ids.eos), self._ids.first_special(response)[0], where
            )
        whole = self.template.apply([*prompt, {"role": "assistant", "content": response}], where, generate=False)
        require_beginning(text, whole, where)
        close, rest = self._ending.close, self._ending.rest
        if not whole.endswith(close + rest):
            raise UserError(f"{where}: the chat template ends this answer with {whole[-20:]!r}, and others differently")
        body = whole[len(text) : len(whole) - len(close + rest)]
        # the generation prompt of a thinking template can contain the start of the answer; white space may differ
        if not "".join((text[-len(response) :] + body).split()).endswith("".join(response.split())):
            raise UserError(f"{where}: {DROPPED}")
        end = self._ending.token
        if end and end in body and end not in self._ids.special_tokens:
            raise UserError(f"{where}: holds {end!r}, which ends an answer: remove that text")
        special, token = self._ids.first_special(response)
        if special is not None and (special := body.find(token)) != self._ids.first_special(body)[0]:
            raise UserError(f"{where}: special tokens by the chat template and the text {token!r}: remove that text")
        return _Pair(text, body, self._ending, special, where)

    def _check_markup(self, prompt: str, where: str) -> None:
        """Warn once of plain prompts that are rendered conversations, if the template ends answers otherwise."""
        token = self._ids.first_special(prompt.removeprefix(str(self.tokenizer.bos_token)))[1]
        if not self._markup and token not in ("", self.tokenizer.eos_token) and self.tokenizer.chat_template:
            self._markup = True
            with suppress(UserError):  # a template that does not render the probe has no part in plain prompts
                if (own := self._ending).end_id == self._ids.eos:
                    return
                logger.warning(
                    "%s: the plain prompt holds %r, but its answer ends with %r and not, as by the chat template, with "
                    "%r: write such prompts as messages", where, token, self.tokenizer.eos_token, own.token or own.close
                )  # fmt: skip

    def _prompt_ids(self, texts: Sequence[str], prompts: Sequence[Prompt]) -> list[list[int]]:
        # only the prepended special tokens are used: the appended ones would come before the response
        probe = self._ids([_ANSWER])[0]
        with_special = self._ids([_ANSWER], add_special_tokens=True)[0]
        starts = [i for i in range(len(with_special)) if with_special[i : i + len(probe)] == probe]
        require(bool(starts), "the tokenizer's own special tokens change the text between them: use another tokenizer")
        first = with_special[: starts[0]]
        ids = self._ids(list(texts))
        plain = [
            isinstance(prompt, str) and own[: len(first)] != first for prompt, own in zip(prompts, ids, strict=True)
        ]
        return [[*first, *own] if add else own for own, add in zip(ids, plain, strict=True)]

    def _response_ids(self, pairs: Sequence[_Pair], prompts: Sequence[list[int]]) -> list[list[int]]:
        """Encode responses as part of the whole text.

        The tokenizer encodes the text after a special token independently of the text before it. So only the text from
        the last special token of the prompt on is encoded.
        """
        tails = [pair.prompt[max(0, *map(pair.prompt.rfind, self._ids.special_tokens)) :] for pair in pairs]
        bodies = [p.body + p.ending.close if p.special is None else p.body[: p.special + 1] for p in pairs]
        before = self._ids(tails)
        whole = self._ids([tail + body for tail, body in zip(tails, bodies, strict=True)])
        responses = []
        for pair, prompt, joint, tail, joined, body in zip(pairs, prompts, tails, before, whole, bodies, strict=True):
            response, end = joined[len(tail) :], pair.ending.end_id
            fits = joined[: len(tail)] == tail == prompt[len(prompt) - len(tail) :]
            if pair.special is not None:
                gap = pair.ending.close.removesuffix(pair.ending.token)
                letters = self._ids.letters(joint, pair.body + gap)
                fits = fits and bool(letters) and self._ids.letters(joint, body) == response
                response = [*letters, end]
            elif not pair.ending.token:
                response = [*response, end]
            if not fits or response[-1] != end:
                raise not_joined(pair.prompt, pair.body, pair.where)
            responses.append(response)
        return responses

    @cached_property
    def _turns(self) -> Turns:
        return Turns(self._ids, self.template, self._header, self._ending.rest, self.score)

    @cached_property
    def _header(self) -> str:
        """The text that opens the assistant's turn if the template ignores `add_generation_prompt`; else empty."""
        opened, whole = self._probe
        if opened != self.template.apply([_QUESTION], generate=False) or not whole.startswith(opened):
            return ""
        lead = whole[len(opened) :].rpartition(_ANSWER)[0]
        # a blank lead is the space that some tokenizers insert before a word
        return lead if lead.strip() else ""

    @cached_property
    def _ending(self) -> _Ending:
        tail = self._probe[1].rpartition(_ANSWER)[2]
        start, token = self._ids.first_added(tail)  # some programs add the template's tokens as normal tokens
        if start is None:
            close = tail.rstrip()
            return _Ending(close, tail[len(close) :], "", self._ids.eos)
        return _Ending(tail[: start + len(token)], tail[start + len(token) :], token, self._ids.id_of(token))

    @cached_property
    def _probe(self) -> tuple[str, str]:
        """A short conversation, rendered as a prompt and as a whole."""
        whole = self.template.apply([_QUESTION, {"role": "assistant", "content": _ANSWER}], generate=False)
        return self.template.apply([_QUESTION]), whole


def _add(row: dict[str, list[int]], column: str, ids: list[int], where: str) -> None:
    if row.setdefault(column, ids) != ids:
        raise UserError(f"{where}: other tokens after the long prompt than after the short one")
