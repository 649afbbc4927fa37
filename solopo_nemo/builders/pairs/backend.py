"""The interface of all sampling backends."""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Protocol

from solopo_nemo.data.messages import Prompt
from solopo_nemo.runtime.errors import require, require_at_least

REFUSALS_TO_GIVE_UP = 8
"""Refused prompts after which a run ends, if no prompt was answered."""
WRITTEN = "written"
"""Side of the prompts that ask for one text and not for `Sampling.samples` answers."""


@dataclass(frozen=True)
class Sampling:
    """Sampling settings. Every field affects the samples.

    Attributes:
        backend: `hf` or `openai`.
        model: Folder of the model, or its name on the server.
        samples: Answers per prompt; a prompt of the side `WRITTEN` has one.
        temperature: Sampling temperature.
        top_p: Threshold of nucleus sampling; 1 disables it.
        max_new_tokens: Maximum answer length in tokens.
        seed: Seed of all draws.
        batch: Answers to a prompt per call of the backend; 0 for all. Each batch has its own seed.
        date: Date that the chat template of a local model prints, such as 2026-11-29; None if it prints none.
        chat_template_kwargs: Keyword arguments of the chat template.
        server: Fingerprint of a server's model; None for a local one.
        top_k: Most probable tokens to draw from; None for all (`hf`), or for the server's default.
        extra_body: Further fields of requests to a server.
    """

    backend: str
    model: str
    samples: int = 32
    temperature: float = 0.85
    top_p: float = 1.0
    max_new_tokens: int = 512
    seed: int = 0
    batch: int = 0
    date: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    server: str | None = None
    top_k: int | None = None
    extra_body: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        require_at_least(1, samples=self.samples, max_new_tokens=self.max_new_tokens)
        some = f"--temperature {self.temperature}: must be above 0, else all answers are the same"
        require(self.temperature > 0, some)
        require(0 < self.top_p <= 1, f"--top-p {self.top_p}: must be above 0 and at most 1")
        top_k = f"--top-k {self.top_k}: must be at least 1; leave it out to draw from all tokens"
        require(self.top_k is None or self.top_k >= 1, top_k)
        require(not (self.backend == "hf" and self.extra_body), "--extra-body: is for a server (--backend openai)")
        batch = f"--batch {self.batch}: must be at least 1, or 0 for all answers of a prompt at once"
        require(self.batch >= 0, batch)

    def wanted(self, side: str) -> int:
        """Return the number of answers to a prompt of a side."""
        return 1 if side == WRITTEN else self.samples

    def next_batch(self, side: str, have: int) -> int:
        """Return the size of the next batch when `have` answers are present."""
        left = self.wanted(side) - have
        return min(self.batch or left, left)

    def seed_of(self, request: Request, have: int) -> int:
        """Return the seed of a batch. It is independent of other prompts and of the order of calls."""
        text = f"{self.seed}:{request.id}:{request.side}:{have}"
        return int.from_bytes(sha256(text.encode()).digest()[:4], "big") >> 1


@dataclass(frozen=True)
class Sample:
    """One sampled answer.

    Attributes:
        text: The assistant's text, stripped.
        cut: True if the answer is not whole, for example because it reached the token limit.
        reason: Why it is not whole: `length`, another finish reason of a server, or empty.
    """

    text: str
    cut: bool
    reason: str = ""


@dataclass(frozen=True)
class Request:
    """One prompt to answer.

    Attributes:
        id: Id of the question.
        side: `short`, `long` or another name of the kind of prompt.
        prompt: Messages or a plain string.
        tokens: Its length in tokens, as the contexts file counts it; None if unknown.
    """

    id: str
    side: str
    prompt: Prompt
    tokens: int | None = None


class Refused(Exception):
    """One prompt cannot be answered, for example because it is too long for the model. Sampling continues."""


class Cost:
    """Answered requests, with the tokens of their prompts and answers. Several threads may add at the same time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.counts = {"requests": 0, "prompt_tokens": 0, "answer_tokens": 0, "without_usage": 0}

    def add(self, prompt: int | None, answer: int | None) -> None:
        """Add a request; None where a server does not tell the tokens."""
        with self._lock:
            self.counts["requests"] += 1
            self.counts["prompt_tokens"] += prompt or 0
            self.counts["answer_tokens"] += answer or 0
            self.counts["without_usage"] += prompt is None or answer is None

    @property
    def tokens(self) -> int:
        """Tokens of prompts and answers."""
        return self.counts["prompt_tokens"] + self.counts["answer_tokens"]


def kind_of(reason: str) -> str:
    """Return a reason without its longer numbers, so that like ones are counted together."""
    return re.sub(r"\d{4,}", "N", reason.split(" (to n=")[0])


class Backend(Protocol):
    """A sampling backend.

    Attributes:
        concurrency: Number of threads that call it at the same time.
        cut_prompts: Number of prompts that the model read only in part.
        cost: What this process has asked for.
    """

    concurrency: int
    cut_prompts: int
    cost: Cost

    def fingerprint(self, earlier: str | None) -> str | None:
        """Return what identifies a model that has only a name; None if the settings do.

        Args:
            earlier: The fingerprint of stored samples.
        """

    def sample(self, request: Request, have: int) -> list[Sample]:
        """Return the next answers to a prompt: at least one, at most `Sampling.next_batch(side, have)`.

        Args:
            request: The prompt.
            have: Number of answers that are already present.

        Raises:
            Refused: This prompt cannot be answered.
            UserError: No prompt can be answered until the user corrects something.
        """

    def close(self) -> None:
        """Abort requests in progress and release all resources."""
