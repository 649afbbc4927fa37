"""Tokenization of triplets: prompts through the chat template, responses on their own so that the mask is exact."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import jinja2

from solopo_nemo.data.triplets import Message, Needs, Prompt, Triplet
from solopo_nemo.runtime.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_QUESTION: Message = {"role": "user", "content": "question"}
_ANSWER = "probe"


@dataclass(frozen=True)
class _ChatFormat:
    """What a chat template does around an assistant turn.

    Attributes:
        header: Opens the turn, where the template ignores `add_generation_prompt`; else empty.
        end_id: The special token that closes the turn.
        strips: Whether white space around the answer is removed.
    """

    header: str
    end_id: int
    strips: bool


class TripletEncoder:
    """Turns prompts and responses into token ids.

    A prompt of messages is what the model sees at inference: the template with its generation prompt. A plain string
    is encoded with the special tokens the tokenizer itself adds. A response is its text and one end token: the special
    token with which the template closes an assistant turn, `eos_token` for plain strings and templates without one.
    Special-token text inside a response is encoded as plain text, so that only the real end token ends it. Inside a
    prompt it keeps its meaning, as at inference.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer

    def encode(self, triplets: Sequence[Triplet], needs: Needs) -> list[dict[str, list[int]]]:
        """Encode a batch; the tokenizer works on it in parallel.

        Args:
            triplets: Samples that hold what `needs` names.
            needs: The fields to encode.

        Returns:
            For each sample its token ids by field, the fields of `needs.columns`.

        Raises:
            UserError: The template refuses a prompt, or there is no template or end token.
        """
        columns: dict[str, list[list[int]]] = {}
        for field in needs.prompts:
            columns[field] = self.encode_prompts([getattr(t, field) for t in triplets], [t.where for t in triplets])
        chats = [any(isinstance(getattr(t, field), list) for field in needs.prompts) for t in triplets]
        for field in needs.responses:
            columns[field] = self.encode_responses([getattr(t, field) for t in triplets], chats)
        return [{field: columns[field][row] for field in needs.columns} for row in range(len(triplets))]

    def encode_prompts(self, prompts: Sequence[Prompt], places: Sequence[str]) -> list[list[int]]:
        """Encode prompts, ready for a response to follow.

        Args:
            prompts: Chat messages or plain strings.
            places: Where each came from, for messages.

        Raises:
            UserError: Messages without a template, or that the template refuses.
        """
        plain = [prompt for prompt in prompts if isinstance(prompt, str)]
        chats = [self.render(p, where) for p, where in zip(prompts, places, strict=True) if not isinstance(p, str)]
        plain_ids = iter([self._without_end(ids) for ids in self._ids(plain, add_special_tokens=True)])
        chat_ids = iter(self._ids(chats, add_special_tokens=False))
        return [next(plain_ids if isinstance(prompt, str) else chat_ids) for prompt in prompts]

    def encode_responses(self, responses: Sequence[str], chats: Sequence[bool]) -> list[list[int]]:
        """Encode responses, each closed by its end token.

        Args:
            responses: Assistant texts.
            chats: For each, whether its prompt is rendered by the chat template.

        Raises:
            UserError: There is no end token.
        """
        texts = [
            text.strip() if chat and self._format.strips else text for text, chat in zip(responses, chats, strict=True)
        ]
        ids = self._ids(texts, add_special_tokens=False, split_special_tokens=True)
        return [[*own, self._format.end_id if chat else self._eos] for own, chat in zip(ids, chats, strict=True)]

    def count_text(self, text: str) -> int:
        """Return the number of tokens of a piece of text, without special tokens."""
        return len(self._ids([text], add_special_tokens=False)[0])

    def special_text(self, triplet: Triplet, fields: Sequence[str]) -> list[str]:
        """Return the responses that hold the text of special tokens, each with its place, field and first such text.

        It is encoded letter by letter: the model learns to write it, not to emit the token.
        """
        found = ((field, self._special_text.search(getattr(triplet, field) or "")) for field in fields)
        return [f"{triplet.where}: field {field}: {match.group()!r}" for field, match in found if match]

    def require_chat_template(self, where: str = "tokenizer") -> None:
        """Check that messages can be rendered.

        Raises:
            UserError: There is no template, or not one that conversations can be told apart with.
        """
        if not self.tokenizer.chat_template:
            raise UserError(
                f"{where}: the prompt is chat messages, but the tokenizer has no chat template: "
                "use an instruct model's tokenizer, or write the prompt as one plain string"
            )
        self._format  # noqa: B018  derived once, and checked by that

    def render(self, messages: list[Message], where: str) -> str:
        """Render messages through the chat template, up to where the assistant's text begins.

        Raises:
            UserError: There is no template, or it refuses these messages.
        """
        self.require_chat_template(where)
        return self._apply(messages, where, add_generation_prompt=True) + self._format.header

    @cached_property
    def _format(self) -> _ChatFormat:
        """The template's format, seen by rendering a short conversation."""
        padded: Message = {"role": "assistant", "content": f"  {_ANSWER}  "}
        full = self._apply([_QUESTION, {"role": "assistant", "content": _ANSWER}], add_generation_prompt=False)
        opened = self._apply([_QUESTION], add_generation_prompt=True)
        lead, found, tail = full.removeprefix(opened).rpartition(_ANSWER)
        if not full.startswith(opened) or not found:
            raise UserError(
                "the tokenizer's chat template writes a prompt that is not the beginning of the whole conversation, "
                "so responses cannot be told apart: use the template of an instruct model"
            )
        ignores_generation = opened == self._apply([_QUESTION], add_generation_prompt=False)
        special = self._special_ids
        end_id = next((i for i in self._ids([tail], add_special_tokens=False)[0] if i in special), None)
        return _ChatFormat(
            # a blank lead is the space that some tokenizers put before a word by themselves
            header=lead if ignores_generation and lead.strip() else "",
            end_id=self._eos if end_id is None else end_id,
            strips=padded["content"] not in self._apply([_QUESTION, padded], add_generation_prompt=False),
        )

    @cached_property
    def _special_ids(self) -> frozenset[int]:
        added = {i for i, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        return frozenset(added | set(self.tokenizer.all_special_ids))

    @cached_property
    def _special_text(self) -> re.Pattern[str]:
        tokens = [re.escape(str(self.tokenizer.convert_ids_to_tokens(i))) for i in self._special_ids]
        return re.compile("|".join(sorted(tokens, key=len, reverse=True)) or r"(?!)")

    @property
    def _eos(self) -> int:
        if self.tokenizer.eos_token_id is None:
            raise UserError("the tokenizer has no eos_token to close a response with: set it in tokenizer_config.json")
        return int(self.tokenizer.eos_token_id)

    def _apply(self, messages: list[Message], where: str = "tokenizer", *, add_generation_prompt: bool) -> str:
        try:
            rendered = self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        except jinja2.TemplateError as error:
            roles = ", ".join(message["role"] for message in messages)
            raise UserError(f"{where}: the chat template refuses these messages (roles {roles}): {error}") from error
        assert isinstance(rendered, str)
        return rendered

    def _without_end(self, ids: list[int]) -> list[int]:
        """Drop the eos that some tokenizers append: the response is still to come."""
        return ids[:-1] if len(ids) > 1 and ids[-1] == self.tokenizer.eos_token_id else ids

    def _ids(self, texts: list[str], **options: bool) -> list[list[int]]:
        # verbose: no warning for texts beyond model_max_length, our own limit is data.max_tokens
        return self.tokenizer(texts, verbose=False, **options)["input_ids"] if texts else []
