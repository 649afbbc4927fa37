"""The interface of all sampling backends."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Protocol

from solopo_nemo.data.triplets import Prompt
from solopo_nemo.runtime.errors import UserError


@dataclass(frozen=True)
class Sampling:
    """Sampling settings; other values give other samples.

    Attributes:
        backend: `hf` or `openai`.
        model: Folder or name of the model.
        samples: Answers a prompt.
        temperature: Sampling temperature.
        top_p: Nucleus sampling; 1 for none.
        max_new_tokens: Longest answer.
        seed: Seed of all draws.
        batch: Answers to a prompt that are asked for at once, each batch with a seed of its own; 0 for all of them.
        date: The day, as 2026-11-29, that the chat template of a local model writes; None where it writes none.
        chat_template_kwargs: Switches of the chat template.
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

    def __post_init__(self) -> None:
        if self.samples < 2:
            raise UserError(f"--samples {self.samples}: a pair needs at least 2 answers a prompt")
        if self.temperature <= 0:
            raise UserError(f"--temperature {self.temperature}: must be above 0, else all answers are the same")
        if not 0 < self.top_p <= 1:
            raise UserError(f"--top-p {self.top_p}: must be above 0 and at most 1")
        if self.max_new_tokens < 1:
            raise UserError(f"--max-new-tokens {self.max_new_tokens}: must be at least 1")
        if self.batch < 0:
            raise UserError(f"--batch {self.batch}: must be at least 1, or 0 for all answers of a prompt at once")

    def next_batch(self, have: int) -> int:
        """Return how many answers to ask for where there are `have`."""
        return min(self.batch or self.samples, self.samples - have)

    def seed_of(self, request: Request, have: int) -> int:
        """Return the seed of a batch, which depends on nothing that ran before."""
        text = f"{self.seed}:{request.id}:{request.side}:{have}"
        return int.from_bytes(sha256(text.encode()).digest()[:4], "big") >> 1


@dataclass(frozen=True)
class Sample:
    """One sampled answer.

    Attributes:
        text: The assistant's text, stripped.
        cut: It reached the token limit before its end.
    """

    text: str
    cut: bool


@dataclass(frozen=True)
class Request:
    """One prompt to answer.

    Attributes:
        id: The question.
        side: `short` or `long`.
        prompt: Messages or a plain string.
    """

    id: str
    side: str
    prompt: Prompt


class Refused(Exception):
    """This prompt cannot be answered, for instance because it is too long for the model; others may be."""


class Backend(Protocol):
    """Samples answers; called from `concurrency` threads at once."""

    concurrency: int

    def sample(self, request: Request, have: int) -> list[Sample]:
        """Return the next answers to a prompt: one at least, and at most `Sampling.next_batch(have)`.

        Args:
            request: The prompt.
            have: How many answers to it there are.

        Raises:
            Refused: This prompt cannot be answered.
            UserError: None can, until the user mends something.
        """

    def close(self) -> None:
        """Abort requests in progress and release all resources."""
