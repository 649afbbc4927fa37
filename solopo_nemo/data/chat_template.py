"""Rendering with a tokenizer's chat template. Input that the template ignores is refused."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from solopo_nemo.data.messages import RENDERED, Message
from solopo_nemo.runtime.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_OF_A_CALL = ("tool_call_id", "name")
"""Fields of a tool's message that refer to a call. A template that knows the order of calls needs neither."""


DROPPED = (
    "the chat template drops a part of this answer (reasoning before </think>?): leave that part out, or use another "
    "template"
)


def common_length(first: str, second: str) -> int:
    """Number of characters with which both texts begin."""
    found = (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
    return next(found, min(len(first), len(second)))


class NoBeginning(UserError):
    """The rendered prompt is not the beginning of the whole conversation, which a switch of the template may mend."""


def require_beginning(prompt: str, whole: str, where: str, way: str = "") -> None:
    """Check that a rendered prompt is the beginning of the whole conversation.

    Args:
        prompt: The prompt with the generation prompt.
        whole: The conversation.
        where: Location of the answer, for errors.
        way: One more way to mend it, for errors.

    Raises:
        NoBeginning: It is not.
    """
    if not whole.startswith(prompt):
        same = common_length(prompt, whole)
        raise NoBeginning(
            f"{where}: the chat template writes a prompt that is not the beginning of the whole conversation, "
            f"which lacks {prompt[same : same + 40]!r} before the answer: begin the answer with its reasoning, "
            f"where the template opens it, or use another template{way}"
        )


def not_joined(prompt: str, answer: str, where: str) -> NoBeginning:
    """The error for a prompt whose ids are not the beginning of those of the whole conversation."""
    return NoBeginning(
        f"{where}: the end of the prompt {prompt[-8:]!r} has other tokens alone, as in use, than before the answer "
        f"{answer[:12]!r}: begin the answer without white space, or with that which now ends a plain prompt (where a "
        "thinking template opens it, the answer begins with its reasoning)"
    )


class ChatTemplate:
    """Renders messages as `apply_chat_template` of transformers does.

    Attributes:
        switches: Keyword arguments of the template, such as `enable_thinking`.
        given: `tools` and `documents` of a row.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        switches: Mapping[str, Any] | None = None,
        key: str = "data.chat_template_kwargs",
        given: Mapping[str, Any] | None = None,
    ) -> None:
        """Check that the template reads all switches.

        Args:
            tokenizer: The tokenizer with the template.
            switches: Keyword arguments of the template.
            key: Option or field that set the switches, for messages.
            given: `tools` and `documents` of a row.

        Raises:
            UserError: The template does not read one of the switches.
        """
        self.switches, self.given = dict(switches or {}), dict(given or {})
        self._tokenizer = tokenizer
        taken = {"messages", *inspect.signature(tokenizer.apply_chat_template).parameters}
        for name in self.switches:
            if name in taken or not re.search(rf"\b{re.escape(name)}\b", str(tokenizer.chat_template)):
                raise UserError(f"{key}.{name}: the tokenizer's chat template has no such switch")

    def switch_names(self) -> list[str]:
        """Names that the template tests for being given, such as `enable_thinking`."""
        found = re.findall(r"\b(\w+) +is +(?:not +)?defined", str(self._tokenizer.chat_template))
        return sorted(set(found) - {"messages", "tools", "documents", "add_generation_prompt", *self.switches})

    def require(self, where: str) -> None:
        """Check that the tokenizer has a chat template.

        Raises:
            UserError: The tokenizer has none.
        """
        if not self._tokenizer.chat_template:
            raise UserError(
                f"{where}: the prompt is chat messages, but the tokenizer has no chat template: "
                "use an instruct model's tokenizer, or write the prompt as one plain string"
            )

    def apply(
        self, messages: list[Message], where: str = "tokenizer", *, generate: bool = True, without: str = ""
    ) -> str:
        """Render messages.

        Args:
            messages: The messages.
            where: Location of the messages, for errors.
            generate: Append the generation prompt.
            without: Key of `given` to omit.

        Raises:
            UserError: The template raises an error.
        """
        options = {name: value for name, value in self.given.items() if name != without} | self.switches
        try:
            rendered = self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=generate, **options
            )
        except Exception as error:  # templates can raise any exception
            roles, reason = ", ".join(message["role"] for message in messages), " ".join(str(error).split())
            raise UserError(f"{where}: the chat template refuses these messages (roles {roles}): {reason}") from error
        assert isinstance(rendered, str)
        return rendered

    def prompt(self, messages: list[Message], where: str) -> str:
        """Render a prompt, and check that the template uses every part of it.

        The check renders the prompt again without each part. A part that does not change the text is refused, but for
        a tool message's reference to its call.

        Raises:
            UserError: There is no template, it raises an error, or it ignores a part of the messages.
        """
        self.require(where)
        rendered = self.apply(messages, where)
        for index in range(len(messages)):
            self.require_used(messages, index, rendered, f"{where}[{index}]")
        for name in self.given:
            if self._gives(rendered, messages, without=name):
                raise UserError(
                    f"{where}: the chat template leaves out the row's {name}: remove it, or use another one"
                )
        return rendered

    def require_used(
        self, messages: list[Message], index: int, rendered: str, where: str, *, generate: bool = True
    ) -> None:
        """Check that the template uses every part of a message, but for a tool message's reference to its call.

        Args:
            messages: The messages.
            index: Of the message to check.
            rendered: The messages as `apply` renders them.
            where: Location of the message, for errors.
            generate: As given to `apply`.

        Raises:
            UserError: It ignores a part.
        """
        message = messages[index]
        others = messages[:index], messages[index + 1 :]
        for name, value in ({"content": None} | message).items():
            if name == "content" and value is None:  # allowed with tool calls
                if not self._gives(rendered, [*others[0], message | {"content": ""}, *others[1]], generate):
                    raise UserError(f"{where}: the chat template writes a missing content: write one")
            elif name in ("content", *RENDERED) and str(value or "").strip():
                if message["role"] == "tool" and name in _OF_A_CALL:
                    continue
                own = {key: message[key] for key in message if key != name}
                own = message | {"content": ""} if name == "content" else own
                if self._gives(rendered, [*others[0], own, *others[1]], generate):
                    raise UserError(
                        f"{where}.{name}: the chat template leaves it out of the prompt (role "
                        f"{message['role']}): remove it, or use another template"
                    )

    def _gives(self, rendered: str, messages: list[Message], generate: bool = True, without: str = "") -> bool:
        try:
            return self.apply(messages, generate=generate, without=without) == rendered
        except UserError:
            return False
