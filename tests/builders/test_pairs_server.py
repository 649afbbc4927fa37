"""How the server backend behaves towards servers that are away, busy, wrong or odd; the network is replaced."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path
from typing import Any

import httpx
import pytest

from solopo_nemo.builders.pairs import client, proxies
from solopo_nemo.builders.pairs.backend import Refused, Request, Sampling
from solopo_nemo.builders.pairs.client import KEY_VARIABLE, ServerClient
from solopo_nemo.builders.pairs.server import ServerBackend
from solopo_nemo.runtime.errors import UserError

SAMPLING = Sampling(backend="openai", model="m", samples=5, temperature=0.7, top_p=0.9, max_new_tokens=33, seed=1)
ASK = Request("q0", "short", [{"role": "user", "content": "ask"}])
URL = "http://127.0.0.1:1/v1"
KEY = "sk-not-a-real-key"
Reply = httpx.Response | Exception
Make = Callable[..., tuple[ServerBackend, list[httpx.Request]]]


def models(*names: str) -> httpx.Response:
    return httpx.Response(200, json={"data": [{"id": name} for name in names]})


def choices(count: int, finish: str = "stop", text: str | None = " yes ") -> httpx.Response:
    message = {"message": {"role": "assistant", "content": text}, "finish_reason": finish}
    # escaped, which takes half surrogate pairs too
    return httpx.Response(200, content=json.dumps({"choices": [message] * count}))


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Make:
    """Makes a backend whose server gives these replies in turn; waits are kept short."""
    monkeypatch.setattr(client, "_backoff", lambda tries: 0.0)
    monkeypatch.delenv(KEY_VARIABLE, raising=False)

    def start(replies: Sequence[Reply] = (), first: Reply | None = None, **options: Any) -> Any:
        asked: list[httpx.Request] = []
        queue = [first or models("m"), *replies]

        def answer(request: httpx.Request) -> httpx.Response:
            asked.append(request)
            reply = queue.pop(0)
            if isinstance(reply, Exception):
                raise reply
            return reply

        sampling, transport = options.pop("sampling", SAMPLING), httpx.MockTransport(answer)
        url = options.pop("url", URL + "/")
        return ServerBackend(sampling, ServerClient(sampling.model, url, transport=transport, **options)), asked

    return start


def test_one_request_gives_all_samples(make: Make) -> None:
    backend, asked = make([choices(5)])
    samples = backend.sample(ASK, 0)
    assert [(sample.text, sample.cut) for sample in samples] == [("yes", False)] * 5
    body = json.loads(asked[1].content)
    assert asked[1].url == URL + "/chat/completions"
    assert "authorization" not in asked[1].headers
    assert body["seed"] == SAMPLING.seed_of(ASK, 0)
    assert {name: value for name, value in body.items() if name != "seed"} == {
        "model": "m", "n": 5, "temperature": 0.7, "top_p": 0.9, "max_tokens": 33, "messages": ASK.prompt,
    }  # fmt: skip


def test_a_server_that_gives_fewer_is_asked_for_the_rest_with_another_seed(make: Make) -> None:
    backend, asked = make([choices(1), choices(3), choices(9)])
    assert [len(backend.sample(ASK, have)) for have in (0, 1, 4)] == [1, 3, 1]
    bodies = [json.loads(request.content) for request in asked[1:]]
    assert [body["n"] for body in bodies] == [5, 4, 1]
    assert len({body["seed"] for body in bodies}) == 3


def test_switches_of_the_chat_template_and_more_fields_are_sent(make: Make) -> None:
    switches = {"enable_thinking": False}
    more = {"top_k": 20, "extra_body": {"min_p": 0.1}}
    backend, asked = make([choices(5)], sampling=replace(SAMPLING, chat_template_kwargs=switches, **more))
    backend.sample(ASK, 0)
    body = json.loads(asked[1].content)
    assert (body["chat_template_kwargs"], body["top_k"], body["min_p"]) == (switches, 20, 0.1)


def test_plain_strings_are_completed(make: Make) -> None:
    backend, asked = make([httpx.Response(200, json={"choices": [{"text": "b", "finish_reason": "length"}] * 5})])
    samples = backend.sample(Request("q0", "short", "a"), 0)
    assert samples[0].text == "b" and samples[0].cut
    assert asked[1].url == URL + "/completions" and json.loads(asked[1].content)["prompt"] == "a"


def test_odd_texts_can_be_written(make: Make) -> None:
    backend, _ = make([choices(5, text=None), choices(5, text="a\ud800b")])
    assert [sample.text for _ in range(2) for sample in backend.sample(ASK, 0)] == [""] * 5 + ["a?b"] * 5


@pytest.mark.parametrize("code", [408, 429, 500, 502, 503])
def test_a_busy_or_broken_server_is_asked_again(make: Make, code: int) -> None:
    backend, asked = make([httpx.Response(code), httpx.ConnectError("no"), httpx.ReadTimeout("late"), choices(5)])
    assert len(backend.sample(ASK, 0)) == 5
    assert len({request.content for request in asked[1:]}) == 1, "the same request each time"


def test_retry_after_is_respected(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_700_000_000
    monkeypatch.setattr(client.time, "time", lambda: now)
    headers = ["7", formatdate(now + 3600, usegmt=True), "soon", "-3"]
    replies = [httpx.Response(429, headers={"Retry-After": value}) for value in headers]
    backend, _ = make([*replies, choices(5)], patience=1e6)
    waits: list[float] = []
    monkeypatch.setattr(backend._client._stop, "wait", lambda seconds: waits.append(seconds))
    backend.sample(ASK, 0)
    assert waits == [7, 3600, 0, 0]


def test_waits_grow_and_differ() -> None:
    waits = [[client._backoff(tries) for _ in range(50)] for tries in (0, 3, 6, 500)]
    assert all(len(set(some)) > 1 for some in waits)
    for some, longest in zip(waits, (0.5, 4, 30, 30), strict=True):
        assert longest / 2 <= min(some) and max(some) <= longest


def test_patience_ends_with_one_error_that_says_how_to_go_on(make: Make) -> None:
    backend, _ = make([httpx.Response(503, json={"error": {"message": "loading"}})], patience=-1)
    with pytest.raises(UserError, match=r"503 \(loading\), 1 tries: start the same command again"):
        backend.sample(ASK, 0)


def test_a_closed_backend_stops_waiting(make: Make) -> None:
    backend, _ = make([httpx.Response(429, headers={"Retry-After": "100"})])
    backend._client._stop.set()
    with pytest.raises(UserError, match="stopped"):
        backend.sample(ASK, 0)


@pytest.mark.parametrize("code", [400, 413, 422])
def test_a_prompt_can_be_refused(make: Make, code: int) -> None:
    reply = httpx.Response(code, json={"error": {"message": "maximum context length is 8 tokens"}})
    backend, _ = make([reply, choices(5)])
    with pytest.raises(Refused, match="maximum context length"):
        backend.sample(ASK, 0)
    assert len(backend.sample(ASK, 0)) == 5


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (httpx.Response(404, json={"error": {"message": "no model m"}}), r"--model m: .*no model m"),
        (httpx.Response(301, headers={"Location": "/"}), "answers 301"),
        (httpx.Response(200, text="<html>"), "another format"),
        (httpx.Response(200, json={"choices": [{"message": "text"}]}), "another format"),
        (httpx.Response(200, json=[]), "another format"),
    ],
)
def test_what_the_user_has_to_mend(make: Make, reply: httpx.Response, message: str) -> None:
    backend, _ = make([reply])
    with pytest.raises(UserError, match=message):
        backend.sample(ASK, 0)


def test_an_unknown_model_is_named_with_those_there_are(make: Make) -> None:
    with pytest.raises(UserError, match=r"--model m: .* only a, b"):
        make(first=models("a", "b"))


@pytest.mark.parametrize("first", [httpx.Response(404), httpx.Response(200, text="?"), models()])
def test_a_server_need_not_list_its_models(make: Make, first: httpx.Response) -> None:
    backend, _ = make([choices(5)], first=first)
    assert backend.sample(ASK, 0)


def test_nobody_there_is_one_line_at_once() -> None:
    with pytest.raises(UserError, match=r"--base-url http://127\.0\.0\.1:1/v1: the server cannot be reached"):
        ServerClient("m", URL)
    with pytest.raises(UserError, match="--base-url nowhere"):
        ServerClient("m", "nowhere")


def test_the_key_is_sent_and_never_shown(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    told = httpx.Response(401, json={"error": {"message": f"bad key {KEY}"}})
    with pytest.raises(UserError, match=KEY_VARIABLE) as refused:
        make(first=told)
    echo = httpx.Response(500, text=f"trace: Authorization Bearer {KEY}")
    backend, asked = make([echo], patience=-1)
    assert asked[0].headers["authorization"] == f"Bearer {KEY}"
    with pytest.raises(UserError) as broken:
        backend.sample(ASK, 0)
    for error in (refused, broken):
        assert KEY not in str(error.value)


@pytest.mark.parametrize("key", ["", KEY])
def test_credentials_of_an_address_are_sent_and_never_shown(
    key: str, make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A server repeats them in every form, and so does the network."""
    monkeypatch.setenv(KEY_VARIABLE, key)
    secrets = ["p@ssword", "p%40ssword", "query-key", "dXNlcjpwQHNzd29yZA=="]
    address = "http://user:p%40ssword@127.0.0.1:1/v1/?key=query-key"
    echo = " ".join(secrets) + f" at {address}"
    shown = r"^--base-url http://127\.0\.0\.1:1/v1: "
    with pytest.raises(UserError, match=f"{shown}.*correct its user and password") as rejected:
        make(first=httpx.Response(401, text=echo), url=address)
    replies = [httpx.Response(500, text=echo), httpx.ConnectError(echo), httpx.Response(200, text=echo)]
    said = [str(rejected.value)]
    for reply in replies:
        backend, asked = make([reply], url=address, patience=-1)
        with pytest.raises(UserError, match=shown) as refused:
            backend.sample(ASK, 0)
        said.append(str(refused.value))
        assert {request.headers["authorization"] for request in asked} == {"Basic dXNlcjpwQHNzd29yZA=="}
        assert str(asked[1].url) == "http://127.0.0.1:1/v1/chat/completions?key=query-key"
    backend, _ = make([httpx.Response(400, json={"error": {"message": f"no seed, {echo}"}}), choices(5)], url=address)
    assert len(backend.sample(ASK, 0)) == 5
    said.append(caplog.text)
    assert "does not take seed" in caplog.text
    for text in said:
        assert not [secret for secret in secrets if secret in text], text


def test_two_runs_that_differ_in_credentials_have_the_same_server(make: Make) -> None:
    found = {make([choices(1)], url=url)[0].fingerprint(None) for url in (URL, "http://a:b@127.0.0.1:1/v1?key=c")}
    assert len(found) == 1


@pytest.mark.parametrize(
    ("url", "environment", "proxy"),
    [
        ("http://10.1.2.3:8000/v1", {"http_proxy": "http://p:1"}, "http_proxy"),
        ("http://10.1.2.3:8000/v1", {"http_proxy": "http://p:1", "no_proxy": "10.0.0.0/8"}, None),
        ("http://[fd00::5]:8000/v1", {"HTTP_PROXY": "http://p:1", "NO_PROXY": "localhost,fd00::/8"}, None),
        ("http://[fe80::5]:8000/v1", {"HTTP_PROXY": "http://p:1", "NO_PROXY": "localhost,fd00::/8"}, "HTTP_PROXY"),
        ("http://gpu7.site:8000/v1", {"ALL_PROXY": "socks5://p:1", "NO_PROXY": ".site"}, None),
        ("https://api.site/v1", {"ALL_PROXY": "http://p:1"}, "ALL_PROXY"),
        ("https://api.site/v1", {"http_proxy": "http://p:1"}, None),
        ("https://api.site/v1", {"http_proxy": "http://p:1", "https_proxy": "http://q:1", "no_proxy": "*"}, None),
    ],
)
def test_the_proxies_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, url: str, environment: dict[str, str], proxy: str | None
) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found = proxies.proxy_of(url)
    assert (found and found.name) == proxy
    proxies.http_client(url, 1, None).close()


def test_a_proxy_is_named_where_it_fails(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://p:1")
    for name in ("no_proxy", "NO_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(
        UserError, match=r"a proxy answers 403; .* the proxy HTTP_PROXY: NO_PROXY=127\.0\.0\.1 leaves it"
    ):
        make(first=httpx.Response(403, headers={"Via": "1.1 squid"}, text="denied"))
    backend, _ = make([httpx.Response(502, text="bad gateway")] * 2, patience=-1)
    with pytest.raises(UserError, match=r"502 \(.*\); the request went through the proxy HTTP_PROXY"):
        backend.sample(ASK, 0)
    monkeypatch.setattr(proxies, "find_spec", lambda name: None)
    for address in ("socks5://p:1", "socks5://user:password@p:1"):
        monkeypatch.setenv("HTTP_PROXY", address)
        with pytest.raises(UserError, match=r"HTTP_PROXY=socks5://p:1: a SOCKS proxy needs the package socksio"):
            ServerClient("m", URL)
    monkeypatch.setenv("HTTP_PROXY", "user:password@p:1")
    with pytest.raises(UserError, match="HTTP_PROXY=p:1: not a proxy's address such as http://host:3128: "):
        ServerClient("m", URL)
    monkeypatch.setenv("HTTP_PROXY", "ftp://user:password@p:1")
    with pytest.raises(UserError, match="HTTP_PROXY=ftp://p:1: not a proxy's address such as http://host:3128: "):
        ServerClient("m", URL)


def test_certificates_that_cannot_be_read_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "none.pem").touch()
    for name in ("gone.pem", "none.pem"):
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / name))
        with pytest.raises(UserError, match=rf"SSL_CERT_FILE=.*{name}: no file of certificates .*unset it"):
            ServerClient("m", URL)


def test_a_server_that_comes_back_with_another_model_ends_the_run(make: Make) -> None:
    probe, other = choices(1, text="A river."), choices(1, text="The river.")
    gone = httpx.ConnectError("refused")
    backend, _ = make(
        [probe, gone, choices(5), models("m"), probe, choices(5), gone, choices(5), models("m"), *[other] * 3]
    )
    known = backend.fingerprint(None)
    assert len(backend.sample(ASK, 0)) == 5, "the same model"
    assert len(backend.sample(ASK, 0)) == 5, "compared once"
    with pytest.raises(UserError, match="came back with another model under the name m"):
        backend.sample(ASK, 0)
    again, _ = make([*[other] * 2, probe])
    assert again.fingerprint(known) == known, "a busy server may differ in a few of its answers"
    newer, _ = make([probe], first=httpx.Response(200, json={"data": [{"id": "m", "root": "/models/step_20"}]}))
    assert newer.fingerprint(None) != known
