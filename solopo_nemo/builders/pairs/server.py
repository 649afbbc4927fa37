"""Sampling from a server with an OpenAI-compatible API, such as vLLM, NIM or SGLang."""

from __future__ import annotations

import email.utils
import os
import random
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
from openai import APIError, APIStatusError, Omit, OpenAI

from solopo_nemo.builders.pairs.backend import Refused, Request, Sample, Sampling
from solopo_nemo.runtime.errors import UserError

KEY_VARIABLE = "OPENAI_API_KEY"
_CONNECT_SECONDS = 10.0
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 30.0
# timeouts, conflicts, too many requests, and all 5xx codes
_TRY_AGAIN = frozenset({408, 409, 425, 429, *range(500, 600)})
_REFUSED = frozenset({400, 413, 422})


class ServerBackend:
    """Requests several answers per call from a server.

    Requests to an unreachable, busy or rate-limiting server are repeated for up to `patience` seconds per prompt, with
    exponential backoff and jitter, or after the delay in `Retry-After`. The OpenAI client's own retries are off: they
    limit the number of attempts instead of the time, ignore a `Retry-After` above two minutes, and cannot be
    interrupted. The key is read from the environment variable `OPENAI_API_KEY`, and only the server receives it.
    """

    def __init__(
        self,
        sampling: Sampling,
        base_url: str,
        *,
        concurrency: int = 16,
        patience: float = 600.0,
        timeout: float = 600.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """Check that the server is reachable and has the model.

        Args:
            sampling: Sampling settings; `model` is the model name on the server.
            base_url: Base address of the API, such as `http://127.0.0.1:8000/v1`.
            concurrency: Number of concurrent requests.
            patience: Seconds without an answer to a prompt before the run fails.
            timeout: Timeout of one request in seconds.
            transport: Replaces the network, for tests.

        Raises:
            UserError: The server is unreachable, rejects the key, or does not have the model.
        """
        self.concurrency = concurrency
        self._sampling, self._url, self._patience = sampling, base_url.rstrip("/"), patience
        self._stop = threading.Event()
        self._key = os.environ.get(KEY_VARIABLE, "").strip()
        if not self._key.isascii():
            raise UserError(f"{KEY_VARIABLE}: holds characters that no key has: set it again")
        self._headers = {} if self._key else {"Authorization": Omit()}
        try:
            self._client = OpenAI(
                api_key=self._key or "none",
                base_url=self._url,
                timeout=httpx.Timeout(timeout, connect=_CONNECT_SECONDS),
                max_retries=0,
                http_client=httpx.Client(limits=httpx.Limits(max_connections=concurrency), transport=transport),
            )
            self._check()
        except httpx.InvalidURL as error:
            raise UserError(f"--base-url {self._url}: not an address ({error})") from error

    def sample(self, request: Request, have: int) -> list[Sample]:
        """See `Backend`."""
        completions, chat = self._client.completions, self._client.chat.completions
        if isinstance(request.prompt, str):
            answer = self._ask(completions.create, request, have, prompt=request.prompt)
        else:
            switches = self._sampling.chat_template_kwargs
            extra = {"extra_body": {"chat_template_kwargs": switches}} if switches else {}
            answer = self._ask(chat.create, request, have, messages=request.prompt, **extra)
        try:
            samples = [_sample(choice) for choice in answer.choices]
        except (TypeError, AttributeError) as error:
            raise UserError(f"--base-url {self._url}: answers in another format than OpenAI's ({error!r})") from error
        if not samples:
            raise Refused("the server gave no answer")
        # a server without support for `n` returns one answer
        return samples[: self._sampling.next_batch(have)]

    def close(self) -> None:
        """See `Backend`."""
        self._stop.set()
        self._client.close()

    def _check(self) -> None:
        known: list[str] = []  # stays empty for a server that does not list its models
        try:
            known = [model.id for model in self._client.models.list(extra_headers=self._headers)]
        except APIError as error:
            if not isinstance(error, APIStatusError):
                where = "start it, or check address and port (the address ends in /v1)"
                raise UserError(f"--base-url {self._url}: {self._problem(error)}: {where}") from error
            self._raise_for_key(error)
        except (TypeError, AttributeError):
            pass
        if known and self._sampling.model not in known:
            some = ", ".join(known[:5]) + (", ..." if len(known) > 5 else "")
            raise UserError(f"--model {self._sampling.model}: the server at {self._url} does not have it, only {some}")

    def _ask(self, create: Callable[..., Any], request: Request, have: int, **prompt: Any) -> Any:
        """Send a request, and repeat it until there is an answer or `patience` is over."""
        started, sampling = time.monotonic(), self._sampling
        tries = 0
        while True:
            try:
                return create(
                    **prompt,
                    model=sampling.model,
                    n=sampling.next_batch(have),
                    temperature=sampling.temperature,
                    top_p=sampling.top_p,
                    max_tokens=sampling.max_new_tokens,
                    seed=sampling.seed_of(request, have),
                    extra_headers=self._headers,
                )
            except APIError as error:
                self._raise_unless_temporary(error, sampling.next_batch(have))
                wait = max(_retry_after(error), _backoff(tries))
                tries += 1
                if time.monotonic() + wait - started > self._patience:
                    raise UserError(
                        f"--base-url {self._url}: {self._problem(error)}, {tries} tries: "
                        "start the same command again when it is back, finished samples are kept"
                    ) from error
            if self._stop.wait(wait):
                raise UserError("stopped: start the same command again, finished samples are kept")

    def _raise_unless_temporary(self, error: APIError, asked: int) -> None:
        problem = self._problem(error)
        # `close` aborts requests in flight, which then raise a connection error
        if not isinstance(error, APIStatusError):
            if self._stop.is_set():
                raise UserError(f"--base-url {self._url}: {problem}") from error
            return
        self._raise_for_key(error)
        if error.status_code in _REFUSED:
            raise Refused(f"{problem} (to n={asked}, which --batch changes)") from error
        if error.status_code == 404:
            what = f"--model {self._sampling.model}: the server at {self._url} does not have it, or the address is not"
            raise UserError(f"{what} the one that ends in /v1 ({problem})") from error
        if error.status_code not in _TRY_AGAIN:
            raise UserError(f"--base-url {self._url}: {problem}") from error

    def _raise_for_key(self, error: APIStatusError) -> None:
        # omit the server's message, which may contain the key
        if error.status_code in (401, 403):
            raise UserError(
                f"--base-url {self._url}: the server answers {error.status_code}: set {KEY_VARIABLE} to a valid key"
            ) from None

    def _problem(self, error: APIError) -> str:
        """Describe an error in one line, with the message of the server or the network and without the key."""
        if isinstance(error, APIStatusError):
            what, body = f"answers {error.status_code}", error.body
            reason = str(body.get("message", body) if isinstance(body, dict) else body or "")
        else:
            what, reason = "cannot be reached", str(error.__cause__) or type(error.__cause__).__name__
        reason = " ".join(reason.split())
        return f"the server {what} ({(reason.replace(self._key, '***') if self._key else reason)[:300]})"


def _sample(choice: Any) -> Sample:
    text = choice.message.content if hasattr(choice, "message") else choice.text
    # replace lone surrogates: JSON can represent them, UTF-8 files cannot
    clean = (text or "").encode("utf-8", "replace").decode("utf-8").strip()
    return Sample(clean, cut=choice.finish_reason == "length")


def _backoff(tries: int) -> float:
    longest: float = min(_LONGEST_WAIT, _FIRST_WAIT * 2.0 ** min(tries, 10))
    return random.uniform(longest / 2, longest)


def _retry_after(error: APIError) -> float:
    """Return the delay of `Retry-After` in seconds; 0 without that header."""
    value = error.response.headers.get("Retry-After", "") if isinstance(error, APIStatusError) else ""
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError):
        return 0.0
