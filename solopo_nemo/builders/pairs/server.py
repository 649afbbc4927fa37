"""Sampling from any server that speaks OpenAI's HTTP interface: vLLM, NIM, SGLang and others."""

from __future__ import annotations

import email.utils
import os
import random
import threading
import time
from typing import Any

import httpx

from solopo_nemo.builders.pairs.backend import Refused, Request, Sample, Sampling
from solopo_nemo.runtime.errors import UserError

KEY_VARIABLE = "OPENAI_API_KEY"
_CONNECT_SECONDS = 10.0
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 30.0
# time-outs and conflicts on the server's side, too many requests, and all of 5xx
_TRY_AGAIN = frozenset({408, 409, 425, 429})
_REFUSED = frozenset({400, 413, 422})


class ServerBackend:
    """Asks a server for several answers at once.

    A server that is away, busy or limits the rate is asked again, after exponentially growing waits with jitter or
    what its `Retry-After` says, until it has not answered one prompt for `patience` seconds. The key is taken from the
    environment, sent to the server, and goes nowhere else.
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
        """Check that the server is there and has the model.

        Args:
            sampling: How to sample; `model` is the name that the server gives it.
            base_url: Where the interface begins, such as `http://127.0.0.1:8000/v1`.
            concurrency: Prompts asked at once.
            patience: Seconds after which a prompt that gets no answer ends the run.
            timeout: Seconds that one answer may take.
            transport: Replaces the network.

        Raises:
            UserError: It is unreachable, refuses the key, or does not have the model.
        """
        self.concurrency = concurrency
        self._sampling = sampling
        self._url = base_url.rstrip("/")
        self._patience = patience
        self._stop = threading.Event()
        self._key = os.environ.get(KEY_VARIABLE, "").strip()
        try:
            self._client = httpx.Client(
                headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
                timeout=httpx.Timeout(timeout, connect=_CONNECT_SECONDS),
                limits=httpx.Limits(max_connections=concurrency),
                transport=transport,
            )
        except UnicodeEncodeError:
            raise UserError(f"{KEY_VARIABLE}: holds characters that no key has: set it again") from None
        try:
            self._check()
        except BaseException:
            self.close()
            raise

    def sample(self, request: Request, have: int) -> list[Sample]:
        """See `Backend`."""
        count = self._sampling.next_batch(have)
        body: dict[str, Any] = {
            "model": self._sampling.model,
            "n": count,
            "temperature": self._sampling.temperature,
            "top_p": self._sampling.top_p,
            "max_tokens": self._sampling.max_new_tokens,
            "seed": self._sampling.seed_of(request, have),
        }
        if isinstance(request.prompt, str):
            answer = self._post("/completions", body | {"prompt": request.prompt})
        else:
            answer = self._post("/chat/completions", body | {"messages": request.prompt})
        try:
            samples = [_sample(choice) for choice in answer.json()["choices"]]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"--base-url {self._url}: answers in another format than OpenAI's ({error!r})") from error
        if not samples:
            raise Refused("the server gave no answer")
        # a server that does not know `n` gives one
        return samples[:count]

    def close(self) -> None:
        """See `Backend`."""
        self._stop.set()
        self._client.close()

    def _check(self) -> None:
        try:
            answer = self._client.get(f"{self._url}/models")
        except httpx.InvalidURL as error:
            raise UserError(f"--base-url {self._url}: not an address ({error})") from error
        except httpx.TransportError as error:
            raise UserError(
                f"--base-url {self._url}: the server cannot be reached ({self._clean(str(error))}): "
                "start it, or check address and port (the address ends in /v1)"
            ) from error
        self._raise_for_key(answer)
        try:
            names = [str(model["id"]) for model in answer.json()["data"]] if answer.status_code == 200 else []
        except (ValueError, KeyError, TypeError):
            names = []
        # not every server lists its models
        if names and self._sampling.model not in names:
            known = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
            raise UserError(f"--model {self._sampling.model}: the server at {self._url} does not have it, only {known}")

    def _post(self, path: str, body: dict[str, Any]) -> httpx.Response:
        """Ask until there is an answer."""
        started = time.monotonic()
        tries = 0
        while True:
            wait = 0.0
            try:
                answer = self._client.post(self._url + path, json=body)
            except (httpx.TransportError, RuntimeError) as error:
                # the client is closed under a request that is given up
                if self._stop.is_set() or isinstance(error, RuntimeError | httpx.UnsupportedProtocol):
                    raise UserError(f"--base-url {self._url}: {self._clean(str(error))}") from error
                problem = f"cannot be reached ({self._clean(str(error)) or type(error).__name__})"
            else:
                if answer.status_code == 200:
                    return answer
                self._raise_unless_temporary(answer, body["n"])
                problem = f"answers {answer.status_code} ({self._message(answer)})"
                wait = _retry_after(answer)
            wait = max(wait, _backoff(tries))
            tries += 1
            if time.monotonic() + wait - started > self._patience:
                raise UserError(
                    f"--base-url {self._url}: the server {problem}, {tries} tries: "
                    "start the same command again when it is back, finished samples are kept"
                )
            if self._stop.wait(wait):
                raise UserError("stopped: start the same command again, finished samples are kept")

    def _raise_unless_temporary(self, answer: httpx.Response, count: int) -> None:
        self._raise_for_key(answer)
        code = answer.status_code
        if code in _REFUSED:
            raise Refused(f"the server answers {code}: {self._message(answer)} (to n={count}, which --batch changes)")
        if code == 404:
            raise UserError(
                f"--model {self._sampling.model}: the server at {self._url} does not have it, or the address is not "
                f"the one that ends in /v1 ({self._message(answer)})"
            )
        if code not in _TRY_AGAIN and code < 500:
            raise UserError(f"--base-url {self._url}: the server answers {code} ({self._message(answer)})")

    def _raise_for_key(self, answer: httpx.Response) -> None:
        # without the server's words, which may repeat the key
        if answer.status_code in (401, 403):
            raise UserError(
                f"--base-url {self._url}: the server answers {answer.status_code}: set {KEY_VARIABLE} to a valid key"
            )

    def _message(self, answer: httpx.Response) -> str:
        try:
            value = answer.json()
            value = value.get("error", value)
            text = str(value.get("message", value) if isinstance(value, dict) else value)
        except (ValueError, AttributeError):
            text = answer.text
        return self._clean(text)

    def _clean(self, text: str) -> str:
        text = " ".join(text.split())
        return (text.replace(self._key, "***") if self._key else text)[:300]


def _sample(choice: dict[str, Any]) -> Sample:
    text = choice["message"]["content"] if "message" in choice else choice["text"]
    # half surrogate pairs, which JSON can hold and files cannot
    clean = (text or "").encode("utf-8", "replace").decode("utf-8").strip()
    return Sample(clean, cut=choice.get("finish_reason") == "length")


def _backoff(tries: int) -> float:
    longest: float = min(_LONGEST_WAIT, _FIRST_WAIT * 2.0 ** min(tries, 10))
    return random.uniform(longest / 2, longest)


def _retry_after(answer: httpx.Response) -> float:
    """Seconds that the server asks to wait; 0 where it says nothing."""
    value = answer.headers.get("Retry-After", "")
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError):
        return 0.0
