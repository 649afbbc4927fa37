"""Servers that misbehave at one prompt: what sampling, questions and evaluation store, count and say."""

from __future__ import annotations

import json
import re
import sqlite3
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from pair_samples import asked_row
from samples import RowWriter

from solopo_nemo.builders.pairs import client
from solopo_nemo.builders.pairs.backend import Sampling
from solopo_nemo.builders.pairs.run import PairSettings, sample_pairs
from solopo_nemo.builders.pairs.server import ServerBackend
from solopo_nemo.builders.questions.run import QuestionSettings, build_questions
from solopo_nemo.data.tokenize import TripletEncoder
from solopo_nemo.evaluation.answers import Answer, AnswerCache
from solopo_nemo.evaluation.lm import ServerModel
from solopo_nemo.runtime.errors import UserError

URL = "http://127.0.0.1:1/v1"
SAMPLING = Sampling(backend="openai", model="m", samples=4, seed=3)
Body = dict[str, Any]
Make = Callable[[Body], "httpx.Response | Exception"]
TEXTS = ("The answer is: Gold", "The answer is: Tin", "I see.\nThe answer is: Gold", "It is\nThe answer is: Iron")


def choice(text: Any, finish: Any = "stop", index: int = 0, **message: Any) -> Body:
    return {"index": index, "message": {"role": "assistant", "content": text} | message, "finish_reason": finish}


def good(body: Body) -> httpx.Response:
    return httpx.Response(200, json={"choices": [choice(TEXTS[n], index=n) for n in range(body.get("n", 1))]})


def each(text: Any, finish: Any = "stop", **message: Any) -> Make:
    return lambda body: httpx.Response(200, json={"choices": [choice(text, finish, **message)] * body.get("n", 1)})


def said(code: int, words: str) -> Make:
    return lambda body: httpx.Response(code, json={"error": {"message": words}})


def body_of(value: Any) -> Make:
    return lambda body: httpx.Response(200, json=value)


def raised(error: Exception) -> Make:
    return lambda body: error


def without(name: str, words: str) -> Make:
    """Refuses a field; for `n`, any number but one, so that each request gives another text."""
    turns = count()

    def reply(body: Body) -> httpx.Response:
        if body.get(name, 1) != 1 or (name in body and name != "n"):
            return said(400, words)(body)  # type: ignore[return-value]
        if name == "n":
            return httpx.Response(200, json={"choices": [choice(TEXTS[next(turns) % 4])]})
        return good(body)

    return reply


def shuffled(body: Body) -> httpx.Response:
    value = json.loads(good(body).content)
    for number, one in enumerate(reversed(value["choices"])):
        one["index"] = 7 + number
    return httpx.Response(200, json=value)


def usage(tokens: int) -> Make:
    return lambda body: httpx.Response(200, json=json.loads(good(body).content) | {"usage": {"prompt_tokens": tokens}})


@dataclass(frozen=True)
class Case:
    """What a server does at one prompt, in turn (the last for good), and what becomes of it.

    `rule`: why the question gives no pair; empty: it gives one. `why`: the reason that is stored and said.
    `scored`: the evaluation scores the answer. `stops`: what ends the run.
    """

    name: str
    does: Sequence[Make]
    rule: str = ""
    why: str = ""
    scored: bool = True
    stops: str = ""


def unfinished(name: str, make: Make, why: str, scored: bool = False) -> Case:
    return Case(name, [make], "none_finished", why, scored)


def refused(name: str, *makes: Make, why: str) -> Case:
    return Case(name, makes, "refused", why, scored=False)


HTML: Make = lambda body: httpx.Response(200, text="<html>Sign in</html>")  # noqa: E731
CASES = [
    Case("whole", [good]),
    Case("finish eos_token", [lambda body: httpx.Response(200, json=json.loads(good(body).text.replace('"stop"', '"eos_token"')))]),
    unfinished("finish length", each("The answer is: Go", "length"), "length", scored=True),
    unfinished("finish MAX_TOKENS", each("The answer is: Go", "MAX_TOKENS"), "length", scored=True),
    unfinished("finish length, thoughts only", each(None, "length", reasoning_content="Hm"), "length", scored=True),
    unfinished("finish content_filter", each("The answer is: Gold", "content_filter"), "content_filter"),
    unfinished("finish null", each("The answer is: Gold", None), "no finish reason"),
    unfinished("finish unknown", each("The answer is: Gold", "recitation"), "recitation"),
    refused("finish abort, always", each("The answer", "abort"), why="aborts the answer"),
    Case("finish abort, once", [each("The answer", "abort"), good]),
    unfinished("content null", each(None), "no text"),
    unfinished("content missing", lambda b: httpx.Response(200, json={"choices": [{"message": {}, "finish_reason": "stop"}] * 4}), "no text"),
    unfinished("only a refusal", each(None, refusal="I cannot"), "no text, only refusal"),
    unfinished("only thoughts", each(None, reasoning_content="Hm"), "no text, only reasoning_content"),
    unfinished("only a tool call", each(None, tool_calls=[{"id": "1"}]), "no text, only tool_calls"),
    unfinished("unclosed thought", each("<think>The answer is: Gold"), "no stated answer", scored=True),
    Case("content a list of parts", [lambda b: httpx.Response(200, json={"choices": [choice([{"type": "text", "text": t}, {"type": "image"}]) for t in TEXTS]})]),
    Case("choices empty, once", [body_of({"choices": []}), good]),
    refused("choices empty, always", body_of({"choices": []}), why="choices is empty"),
    refused("choices null, always", body_of({"choices": None}), why="choices is empty"),
    Case("choices out of order, other indices", [shuffled]),
    Case("more choices than asked", [lambda b: httpx.Response(200, json={"choices": [choice(TEXTS[n % 4]) for n in range(9)]})]),
    Case("error body under 200, once", [body_of({"error": {"message": "overloaded", "code": 503}}), good]),
    refused("error body under 200, always", body_of({"error": {"message": "CUDA error"}}), why=r"500 \(CUDA error\), 4 tries"),
    refused("error body of vLLM under 200", body_of({"object": "error", "message": "too long", "code": 400}), why=r"400 \(too long\)"),
    refused("error as a string", body_of({"error": "queue is full"}), why="queue is full"),
    refused("400", said(400, "maximum context length is 8 tokens"), why="maximum context length"),
    refused("413", said(413, "too large"), why="413 .too large"),
    Case("500, twice", [said(500, "oops"), said(500, "oops"), good]),
    refused("500, always", said(500, "oops"), why=r"500 \(oops\), 4 tries, and answers another prompt"),
    refused("an HTML page under 200, always", HTML, why="another format than OpenAI's .*Sign in"),
    Case("an HTML page under 200, once", [HTML, good]),
    refused("a stream", lambda b: httpx.Response(200, text='data: {"choices": [{"delta": {"content": "Gold"}}]}\n\ndata: [DONE]\n'), why="it streams, which it was not asked to"),
    refused("no content", lambda b: httpx.Response(204), why="another format"),
    refused("a list under 200", body_of([1]), why="a list"),
    refused("text as message", body_of({"choices": [{"message": "Gold"}]}), why="another format"),
    refused("a number as content", each(5), why="content is a int"),
    Case("a closed connection, once", [raised(httpx.RemoteProtocolError("closed")), good]),
    refused("a closed connection, always", raised(httpx.RemoteProtocolError("closed")), why="closed"),
    Case("n refused", [without("n", "n > 1 is not supported")]),
    Case("max_tokens refused", [without("max_tokens", "'max_tokens' is unsupported, use 'max_completion_tokens'")]),
    Case("a field refused", [without("repetition_penalty", "unknown field repetition_penalty")]),
    Case("seed refused", [without("seed", 'Invalid JSON payload. Unknown name "seed": Cannot find field.')]),
    Case("top_p refused beside temperature", [without("top_p", "`temperature` and `top_p` cannot both be specified")]),
    Case("usage shows a cut prompt", [usage(1)]),
    Case("401", [said(401, "no")], stops="OPENAI_API_KEY"),
    Case("404 with a reason", [said(404, "no model m")], stops="no model m"),
    Case("429 that passes", [said(429, "You exceeded your current quota, retry in 1 s"), good]),
    Case("429 without credit", [lambda b: httpx.Response(429, json={"error": {"message": "quota", "code": "insufficient_quota"}})], stops="insufficient_quota"),
    Case("402", [said(402, "Insufficient Balance")], stops="Insufficient Balance"),
    Case("one answer at a time", [lambda b: httpx.Response(200, json={"choices": [choice(TEXTS[b.get("seed", 0) % 4])]})]),
    refused("a choice that is text", body_of({"choices": ["Gold"]}), why="another format"),
    refused("message null", body_of({"choices": [{"message": None, "finish_reason": "stop"}]}), why="another format"),
    unfinished("finish tool_calls", each("The answer is: Gold", "tool_calls"), "tool_calls"),
    Case("418", [said(418, "a teapot")], stops="a teapot"),
]  # fmt: skip


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def served(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[Case, httpx.MockTransport]:
    """The case, and its server: it misbehaves at prompts that hold the word "odd"."""
    monkeypatch.setattr(client, "_backoff", lambda tries: 0.0)
    monkeypatch.delenv(client.KEY_VARIABLE, raising=False)
    case: Case = request.param
    turns = iter(case.does)
    current: list[Make] = []

    def answer(asked: httpx.Request) -> httpx.Response:
        if asked.method == "GET":
            return httpx.Response(200, json={"data": [{"id": "m"}]})
        body = json.loads(asked.content)
        if "odd" not in body["messages"][-1]["content"]:
            return good(body)
        current[:] = [next(turns, *current)]
        reply = current[0](body)
        if isinstance(reply, Exception):
            raise reply
        return reply

    return case, httpx.MockTransport(answer)


def test_sampling(served: tuple[Case, httpx.MockTransport], write_rows: RowWriter) -> None:
    case, transport = served
    odd = [{"role": "user", "content": "odd"}]
    contexts = write_rows([asked_row(0), asked_row(1, prompt_short=odd, meta={"short_tokens": 900}), asked_row(2)])
    out = contexts.with_name("out.jsonl")

    def run() -> dict[str, Any]:
        return sample_pairs(
            PairSettings(contexts=contexts, out=out), SAMPLING,
            lambda given: ServerBackend(given, client.ServerClient(given.model, URL, concurrency=1, transport=transport)),
        )  # fmt: skip

    if case.stops:
        with pytest.raises(UserError, match=case.stops):
            run()
        return
    summary = run()
    assert summary["out"] == (2 if case.rule else 3)
    assert summary["dropped_by_rule"] == ({case.rule: 1} if case.rule else {})
    assert summary["not_whole"] == ({case.why: 4} if case.rule == "none_finished" else {})
    assert summary["cut_prompts"] == (case.name == "usage shows a cut prompt")
    with closing(sqlite3.connect(f"{out}.samples.sqlite")) as stored:
        whole = stored.execute("SELECT count(*) FROM samples WHERE id = 'q1' AND NOT cut AND text != ''").fetchone()[0]
    assert whole == (0 if case.rule else 4)
    if case.rule == "refused":
        (dropped,) = map(json.loads, out.with_name("out.jsonl.dropped.jsonl").read_text().splitlines())
        assert re.search(case.why, dropped["reason"]), dropped
        assert "\n" not in dropped["reason"] and sum(summary["refused"].values()) == 1


FACT = "Gold was found near the odd old mill by Mira Harbin, and nobody else."
QUESTION = json.dumps({"question": "What did Mira Harbin find?", "answer": "Gold", "quotes": [FACT]})


def test_questions(
    served: tuple[Case, httpx.MockTransport], tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server misbehaves where it is asked to write a question, and answers it well: with the passage only."""
    case, transport = served
    monkeypatch.setattr(sys.modules[__name__], "TEXTS", (QUESTION,) * 4)
    (tmp_path / "a.txt").write_text(f"{FACT} The mill stands by the river, and its wheel has not turned for years.")
    settings = QuestionSettings((tmp_path / "a.txt",), tmp_path / "out.jsonl", passage_tokens=512)

    def answer(request: httpx.Request) -> httpx.Response:
        prompt = "" if request.method == "GET" else json.loads(request.content)["messages"][-1]["content"]
        if "Question:" not in prompt:
            return transport.handle_request(request)
        reply = "The answer is: Gold" if "Passage 1" in prompt else "The answer is: coal"
        return httpx.Response(200, json={"choices": [choice(reply)] * 4})

    def run() -> dict[str, Any]:
        def make(given: Sampling) -> ServerBackend:
            opened = client.ServerClient("m", URL, concurrency=1, transport=httpx.MockTransport(answer))
            return ServerBackend(given, opened)

        return build_questions(settings, SAMPLING, TripletEncoder(tokenizer), make)

    if case.stops or case.rule:
        rule = {"none_finished": "not_whole"}.get(case.rule, case.rule)
        with pytest.raises(UserError, match=case.stops or rf"no question is kept \(1 {rule}\)"):
            run()
        assert not settings.out.exists()
        if case.rule:
            (dropped,) = map(json.loads, (tmp_path / "out.jsonl.dropped.jsonl").read_text().splitlines())
            assert dropped["rule"] == rule and re.search(
                case.why if rule == "refused" else "", dropped.get("reason", "")
            )
            report = json.loads((tmp_path / "out.jsonl.report.json").read_text())
            assert report["not_whole"] == ({} if rule == "refused" else {case.why: 1})
        return
    summary = run()
    assert (summary["out"], summary["dropped"]) == (1, 0)
    assert summary["cut_prompts"] == (case.name == "usage shows a cut prompt")


def test_evaluation(served: tuple[Case, httpx.MockTransport], tmp_path: Path) -> None:
    case, transport = served
    opened = client.ServerClient("m", URL, concurrency=1, transport=transport)
    opened.fingerprint()
    model = ServerModel(opened, {}, lambda prompt: 900 if "odd" in prompt else 5)
    requests: list[Any] = [
        SimpleNamespace(args=(json.dumps([{"role": "user", "content": text}]), {"max_gen_toks": 9}))
        for text in ("one", "odd", "two")
    ]
    with closing(AnswerCache(model, tmp_path / "answers.sqlite", "m")) as cache:
        if case.stops:
            with pytest.raises(UserError, match=case.stops):
                cache.generate_until(requests)
            return
        answers = cache.generate_until(requests)
        stored = len(cache._answers)
    assert [type(one) for one in answers] == [Answer] * 3
    assert answers[0] == answers[2] == TEXTS[0] and answers[0].reason == ""
    assert (answers[1].reason in ("", "length")) is case.scored
    assert stored == (3 if case.scored else 2), "what is no answer is not stored"
    if not case.rule:
        assert answers[1] in TEXTS
    assert model.cut_prompts == (case.name == "usage shows a cut prompt")
