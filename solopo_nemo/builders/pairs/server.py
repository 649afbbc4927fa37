"""Sampling from a server with an OpenAI-compatible API."""

from __future__ import annotations

import logging
from typing import Any

from solopo_nemo.builders.pairs.backend import Cost, Request, Sample, Sampling
from solopo_nemo.builders.pairs.client import ServerClient

logger = logging.getLogger("solopo_nemo")

SHORTER = 0.7
"""A prompt of which the server reads a smaller share of tokens than this was cut."""


class ServerBackend:
    """Requests several answers per call from a server.

    Args:
        sampling: Settings; `model` is the client's.
        client: The server.
    """

    def __init__(self, sampling: Sampling, client: ServerClient) -> None:
        self.concurrency = client.concurrency
        self.cut_prompts = 0
        self.cost = Cost()
        self._sampling, self._client = sampling, client

    def fingerprint(self, earlier: str | None) -> str | None:
        """See `Backend`."""
        return self._client.fingerprint(earlier)

    def sample(self, request: Request, have: int) -> list[Sample]:
        """See `Backend`."""
        sampling, n = self._sampling, self._sampling.next_batch(request.side, have)
        options: dict[str, Any] = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": sampling.seed_of(request, have),
        }
        switches = sampling.chat_template_kwargs if not isinstance(request.prompt, str) else None
        own = {"top_k": sampling.top_k, "chat_template_kwargs": switches}
        extra = {name: value for name, value in own.items() if value} | (sampling.extra_body or {})
        if extra:
            options["extra_body"] = extra
        reply = self._client.ask(request.prompt, sampling.max_new_tokens, n, **options)
        self.cost.add(reply.prompt_tokens, reply.answer_tokens)
        if not have:
            self.cut_prompts += is_cut(reply.prompt_tokens, request.tokens, request.id, self.cut_prompts)
        return reply.samples

    def close(self) -> None:
        """See `Backend`."""
        self._client.close()


def is_cut(read: int | None, tokens: int | None, where: str, earlier: int) -> bool:
    """True if a server read far fewer tokens than a prompt has, which is said at the first.

    Args:
        read: Tokens that it read.
        tokens: Tokens that the prompt has.
        where: The prompt or the server, for the message.
        earlier: Number of cut prompts before.
    """
    cut = read is not None and tokens is not None and read < SHORTER * tokens
    if cut and not earlier:
        what = "%s: the server read %s tokens of a prompt of %s: it cuts prompts; start it with a longer window"
        logger.warning(what, where, read, tokens)
    return cut
