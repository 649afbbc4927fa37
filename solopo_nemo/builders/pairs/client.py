"""A client of servers with an OpenAI-compatible API, such as vLLM, NIM or SGLang, for sampling and evaluation.

It judges every reply: what is a whole answer, what is none, what may pass on another try, and what concerns one prompt
only. Nothing that is no answer leaves it as one.
"""

from __future__ import annotations

import email.utils
import json
import logging
import os
import random
import re
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
from openai import APIConnectionError, APIError, APIStatusError, Omit, OpenAI

from solopo_nemo.builders.pairs.backend import Refused
from solopo_nemo.builders.pairs.proxies import http_client, proxy_of
from solopo_nemo.builders.pairs.replies import ErrorBody, NoAnswer, Reply, read_reply
from solopo_nemo.data.triplets import Prompt
from solopo_nemo.runtime.credentials import Server, masked
from solopo_nemo.runtime.errors import UserError
from solopo_nemo.runtime.json_files import json_hash

logger = logging.getLogger("solopo_nemo")

KEY_VARIABLE = "OPENAI_API_KEY"
_STOPPED = "stopped: start the same command again, finished samples are kept"
_CONNECT_SECONDS = 10.0
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 30.0
_TRIES = 4
"""Failures of one prompt before a probe decides whether the server fails, or only at this prompt."""
_NO_CREDIT = "insufficient_quota"
"""OpenAI's code of a 429 that does not pass: the account has no credit left."""
_BUSY = frozenset({408, 409, 425, 429, 503})
_REFUSED = frozenset({400, 413, 422})
_N_REFUSED = re.compile(
    r"\bn\b ?(?:>|=|<|must|should|is\b|:|param)|['\"`]n['\"`]|best_of|(?:one|single|multiple) (?:completion|choice)"
)
_IDENTITY = ("root", "parent", "max_model_len", "meta")
PROBE: list[dict[str, Any]] = [{"role": "user", "content": "Write three sentences about a river."}]
"""The prompt whose greedy answer identifies a model, and tells whether a server answers at all."""
_PROBE_TOKENS = 32


class _Temporary(Exception):
    """A failure that may pass. `own`: the prompt may be its reason. `wait`: the server's `Retry-After`, in seconds."""

    def __init__(self, problem: str, *, own: bool, wait: float = 0.0) -> None:
        super().__init__(problem)
        self.own, self.wait = own, wait


class ServerClient:
    """Sends requests, and repeats those that can pass.

    Requests to an unreachable, busy or rate-limiting server are repeated for up to `patience` seconds per prompt, with
    exponential backoff and jitter, or after the delay in `Retry-After`. The OpenAI client's own retries are off: they
    limit the number of attempts instead of the time, ignore a `Retry-After` above two minutes, and cannot be
    interrupted. The key is read from the environment variable `OPENAI_API_KEY`; a user and password in the address take
    its place. Only the server receives them, and the fields of the address's query.

    Attributes:
        url: Base address of the API, without credentials.
        concurrency: Number of concurrent requests.
    """

    def __init__(
        self,
        model: str,
        base_url: str,
        *,
        concurrency: int = 16,
        patience: float = 600.0,
        timeout: float = 600.0,
        alive: Callable[[], None] | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """Check that the server is reachable and has the model.

        Args:
            model: Model name on the server.
            base_url: Base address of the API, such as `http://127.0.0.1:8000/v1`, with credentials if it needs them.
            concurrency: Number of concurrent requests.
            patience: Seconds without an answer to a prompt before the run fails.
            timeout: Timeout of one request in seconds.
            alive: Raises if the server has ended for good; called after each failure that could pass. Such a server
                runs on this machine: no proxy is used.
            transport: Replaces the network, for tests.

        Raises:
            UserError: The server is unreachable, rejects the key, or does not have the model.
        """
        server = Server.of(base_url, "--base-url")
        self._model, self.url, self._patience = model, server.url, patience
        self.concurrency, self._alive = concurrency, alive
        self._stop = threading.Event()
        self._answered = False
        # set while the server is away; the first answer afterwards is compared with the fingerprint
        self._away, self._known, self._compares = threading.Event(), "", threading.Lock()
        self._unsupported: set[str] = set()
        key = os.environ.get(KEY_VARIABLE, "").strip()
        if not key.isascii():
            raise UserError(f"{KEY_VARIABLE}: holds characters that no key has: set it again")
        self._secrets, self._user = (key, *server.secrets), server.authorization
        self._headers = {"Authorization": self._user} if self._user else {} if key else {"Authorization": Omit()}
        try:
            if alive is not None and transport is None:
                transport = httpx.HTTPTransport(limits=httpx.Limits(max_connections=concurrency))
            self._client = OpenAI(
                api_key=key or "none",
                base_url=self.url,
                default_query=server.query,
                timeout=httpx.Timeout(timeout, connect=_CONNECT_SECONDS),
                max_retries=0,
                http_client=http_client(self.url, concurrency, transport),
            )
            self._entry = self._check()
        except httpx.InvalidURL as error:
            raise UserError(f"--base-url {self.url}: not an address ({error})") from error
        except OSError as error:
            name = f"SSL_CERT_FILE={os.environ.get('SSL_CERT_FILE', '')}"
            raise UserError(f"{name}: no file of certificates ({error}): correct it, or unset it") from error

    def ask(self, prompt: Prompt, max_tokens: int, n: int = 1, **options: Any) -> Reply:
        """Answer a prompt.

        Args:
            prompt: Messages or a plain string.
            max_tokens: Maximum answer length in tokens.
            n: Number of answers; a server that gives one at a time returns one.
            **options: Further fields of the request, such as `temperature`.

        Raises:
            Refused: The server does not answer this prompt, though it answers others.
            UserError: The server answers no prompt until the user corrects something.
        """
        reply = self._ask(prompt, max_tokens, n, options)
        if self._away.is_set():
            self._require_same_model()
        return reply

    def _ask(self, prompt: Prompt, max_tokens: int, n: int, options: dict[str, Any]) -> Reply:
        started, tries, own = time.monotonic(), 0, 0
        while True:
            try:
                reply = self._once(prompt, max_tokens, n, options)
            except _Temporary as problem:
                if self._stop.is_set():
                    raise UserError(_STOPPED) from problem
                if self._alive:
                    self._alive()
                tries, own = tries + 1, own + problem.own
                wait = max(problem.wait, _backoff(tries - 1))
                over = time.monotonic() + wait - started > self._patience
                if problem.own and (over or own >= _TRIES) and self._answers_a_probe():
                    raise Refused(f"{problem}, {tries} tries, and answers another prompt") from problem
                if over:
                    raise UserError(
                        f"--base-url {self.url}: {problem}, {tries} tries: "
                        "start the same command again when it is back, finished samples are kept"
                    ) from problem
            else:
                self._answered = True
                return reply
            if self._stop.wait(wait):
                raise UserError(_STOPPED)

    def fingerprint(self, earlier: str | None = None) -> str:
        """Return a hash of what the server says about the model, and of its greedy answer to a fixed prompt.

        Args:
            earlier: An earlier fingerprint. Where the answer differs from it, the server is asked twice more, because
                the sums of a busy server differ in their last bits.
        """
        for _ in range(1 if earlier is None else 3):
            try:
                (probe,) = self._ask(PROBE, _PROBE_TOKENS, 1, {"temperature": 0.0}).samples[:1]
                text = probe.text
            except Refused:
                text = ""
            self._known = json_hash([self._model, self._entry, text])[:16]
            if self._known == earlier:
                break
        return self._known

    def close(self) -> None:
        """Abort requests in progress and release all resources."""
        self._stop.set()
        self._client.close()

    def _require_same_model(self) -> None:
        """Refuse a server that was away and came back with another model; the answer at hand is dropped."""
        with self._compares:
            known = self._known
            if self._away.is_set() and known:
                self._entry = self._check()
                if self.fingerprint(known) != known:
                    self._known = known
                    raise UserError(
                        f"--base-url {self.url}: the server was away and came back with another model under the name "
                        f"{self._model}: serve the first one, and start the same command again"
                    )
            self._away.clear()

    def _check(self) -> dict[str, Any]:
        """Return the server's description of the model. A server need not list its models."""
        try:
            listed = json.loads(self._client.models.with_raw_response.list(extra_headers=self._headers).text)["data"]
            known = {str(model["id"]): model for model in listed}
        except APIError as error:
            if not isinstance(error, APIStatusError):
                where = "start it, or check address and port (the address ends in /v1)"
                raise UserError(f"--base-url {self.url}: {self._unreachable(error)}: {where}") from error
            self._raise_for_key(error.status_code, error.response.headers)
            return {}
        except (ValueError, TypeError, KeyError):
            return {}
        if known and self._model not in known:
            some = ", ".join([*known][:5]) + (", ..." if len(known) > 5 else "")
            raise UserError(f"--model {self._model}: the server at {self.url} does not have it, only {some}")
        return {name: known.get(self._model, {}).get(name) for name in _IDENTITY}

    def _once(self, prompt: Prompt, max_tokens: int, n: int, options: dict[str, Any]) -> Reply:
        """Send a request once."""
        if isinstance(prompt, str):
            create: Callable[..., Any] = self._client.completions.with_raw_response.create
            given: dict[str, Any] = {"prompt": prompt}
        else:
            create, given = self._client.chat.completions.with_raw_response.create, {"messages": prompt}
        while True:
            gone = frozenset(self._unsupported)
            limit = "max_completion_tokens" if "max_tokens" in gone else "max_tokens"
            body = {**given, "model": self._model, **options, limit: max_tokens, "n": n}
            extra = {name: value for name, value in body.pop("extra_body", {}).items() if name not in gone}
            body = {name: value for name, value in body.items() if name not in gone}
            # a seed, and a top_p that changes nothing, can be left out too
            free = {*extra, *(name for name in body if name == "seed" or (name, body[name]) == ("top_p", 1))}
            try:
                raw = create(**body, extra_headers=self._headers, extra_body=extra or None)
                return self._read(raw.text, n)
            except APIStatusError as error:
                failure = (error.status_code, self._words(error.body), error.response.headers)
            except APIConnectionError as error:
                own = not isinstance(error.__cause__, httpx.ConnectError | httpx.ConnectTimeout | httpx.ProxyError)
                if not own:
                    self._away.set()
                raise _Temporary(self._unreachable(error), own=own) from error
            except ErrorBody as error:
                failure = (error.code, self._words(error.value), httpx.Headers())
            if not self._adapts(*failure[:2], n, free, gone):
                self._raise(*failure, "" if n == 1 or "n" in gone else f" (to n={n}, which --batch changes)")

    def _read(self, text: str, n: int) -> Reply:
        """Read the body of a reply with status 200."""
        try:
            return read_reply(text, n)
        except NoAnswer as error:
            raise _Temporary(str(error), own=True) from error
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            words = self._words(text)[:200]
            problem = f"the server answers in another format than OpenAI's ({error!r}: {words})"
            if self._answered:
                raise _Temporary(problem, own=True) from error
            raise UserError(f"--base-url {self.url}: {problem}") from error

    def _adapts(self, code: int, words: str, n: int, free: set[str], gone: frozenset[str]) -> bool:
        """True if the request can be sent again without `n` or a field of `free`, which this server does not take."""
        if code not in _REFUSED:
            return False
        said = words.lower()
        fields = {name for name in free if re.search(rf"(?<![\w-]){re.escape(name.lower())}(?![\w-])", said)}
        if n > 1 and "n" not in gone and _N_REFUSED.search(said):
            fields.add("n")
        if "max_completion_tokens" in said and "max_tokens" not in gone:
            fields.add("max_tokens")
        for name in fields - self._unsupported:
            hint = "; --batch may ask for fewer at once" if name == "n" else ""
            logger.warning("%s: the server does not take %s (%s); goes on without it%s", self.url, name, words, hint)
        self._unsupported |= fields
        return bool(fields)

    def _raise(self, code: int, words: str, headers: httpx.Headers, hint: str) -> None:
        problem = f"the server answers {code} ({words})"
        self._raise_for_key(code, headers)
        if code in _REFUSED:
            raise Refused(problem + hint)
        if code == 404:
            what = f"--model {self._model}: the server at {self.url} does not have it, or the address is not"
            raise UserError(f"{what} the one that ends in /v1 ({problem})")
        if (code in _BUSY and _NO_CREDIT not in words) or code >= 500:
            raise _Temporary(problem + self._proxy_hint(code), own=code not in _BUSY, wait=_retry_after(headers))
        raise UserError(f"--base-url {self.url}: {problem}")

    def _answers_a_probe(self) -> bool:
        try:
            self._once(PROBE, 1, 1, {"temperature": 0.0})
        except (_Temporary, Refused, UserError):
            return False
        return True

    def _raise_for_key(self, code: int, headers: httpx.Headers) -> None:
        # omit the server's message, which may contain the key
        if code == 407 or (code == 403 and {"via", "x-squid-error", "proxy-authenticate"} & {*headers}):
            raise UserError(f"--base-url {self.url}: a proxy answers {code}{self._proxy_hint(502)}")
        if code in (401, 403):
            hint = self._proxy_hint(502) if code == 403 else ""
            mend = "correct its user and password" if self._user else f"set {KEY_VARIABLE} to a valid key"
            raise UserError(f"--base-url {self.url}: the server answers {code}: {mend}{hint}")

    def _proxy_hint(self, code: int) -> str:
        proxy = proxy_of(self.url)
        if proxy is None or self._alive is not None or code not in (502, 503, 504):
            return ""
        return f"; the request went through the proxy {proxy.name}: NO_PROXY={httpx.URL(self.url).host} leaves it out"

    def _unreachable(self, error: APIError) -> str:
        """Describe a network error in one line."""
        reason = str(error.__cause__) or type(error.__cause__).__name__
        return f"the server cannot be reached ({self._words(reason)}){self._proxy_hint(502)}"

    def _words(self, body: Any) -> str:
        """Return the server's words in one line, without credentials."""
        if isinstance(body, dict):
            body = body.get("error") or body
            if isinstance(body, dict) and body.get("code") != _NO_CREDIT:
                body = body.get("message") or body.get("detail") or body
        return masked(" ".join(str(body or "").split()), *self._secrets)[:300]


def _backoff(tries: int) -> float:
    longest: float = min(_LONGEST_WAIT, _FIRST_WAIT * 2.0 ** min(tries, 10))
    return random.uniform(longest / 2, longest)


def _retry_after(headers: httpx.Headers) -> float:
    """Return the delay of `Retry-After` in seconds; 0 without that header."""
    value = headers.get("Retry-After", "")
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError):
        return 0.0
