"""Questions from documents: every filter and its count, resumption, prompts, and what a user can mend."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from question_script import CASES, LINKED, SAMPLES, Script, fact, passage, write_documents
from samples import TokenizerMaker

from solopo_nemo.builders.contexts.question import Question
from solopo_nemo.builders.contexts.sources import read_pool, read_questions
from solopo_nemo.builders.contexts.sources.source import RowSource
from solopo_nemo.builders.pairs import client
from solopo_nemo.builders.pairs.backend import Sampling
from solopo_nemo.builders.pairs.server import ServerBackend
from solopo_nemo.builders.questions.candidates import Rejected, read_candidate
from solopo_nemo.builders.questions.groups import Group, make_groups
from solopo_nemo.builders.questions.passages import Passage, Passages, near_duplicates
from solopo_nemo.builders.questions.readers import Document
from solopo_nemo.builders.questions.run import QuestionSettings, build_questions
from solopo_nemo.data.tokenize import TripletEncoder
from solopo_nemo.runtime.errors import UserError

SAMPLING = Sampling(backend="openai", model="m", samples=SAMPLES, temperature=0.7, seed=1)
DROPPED = Counter(case.rule for case in CASES if case.rule)


@pytest.fixture(scope="session")
def encoder(make_tokenizer: TokenizerMaker) -> TripletEncoder:
    return TripletEncoder(make_tokenizer())


class Builder:
    """Runs the tool's function on documents in a folder."""

    def __init__(self, folder: Path, encoder: TripletEncoder) -> None:
        self.folder, self.out, self._encoder = folder, folder.parent / "questions.jsonl", encoder
        self.transport = Script().transport()

    def __call__(self, sampling: Sampling = SAMPLING, **settings: Any) -> dict[str, Any]:
        def make(given: Sampling) -> ServerBackend:
            return ServerBackend(
                given, client.ServerClient("m", "http://x/v1", concurrency=2, transport=self.transport)
            )

        given = QuestionSettings((self.folder,), self.out, **{"passage_tokens": 1024, **settings})
        return build_questions(given, sampling, self._encoder, make)

    def rows(self, what: str = "") -> list[dict[str, Any]]:
        file = self.out.with_name(f"questions.jsonl.{what}.jsonl") if what else self.out
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def build(tmp_path: Path, encoder: TripletEncoder, monkeypatch: pytest.MonkeyPatch) -> Builder:
    monkeypatch.setattr(client, "_backoff", lambda tries: 0.0)
    monkeypatch.delenv(client.KEY_VARIABLE, raising=False)
    write_documents(tmp_path / "in")
    return Builder(tmp_path / "in", encoder)


def test_every_filter_drops_what_it_is_for(build: Builder) -> None:
    script = Script()
    build.transport = script.transport()
    summary = build()
    assert summary["dropped_by_rule"] == DROPPED
    assert summary["in"] == len(CASES) + len(LINKED) == summary["out"] + DROPPED.total()
    assert summary["passages"] == {"kept": summary["in"], "boilerplate": 0, "near_duplicate": 0}
    assert summary["not_whole"] == {"length": 1} and sum(summary["refused"].values()) == 1
    assert len(summary["evidence"]) > 1, "some are about several passages"
    # the questions are what build_contexts reads, their evidence is in the pool
    questions = [*read_questions(RowSource(build.out))]
    assert {one.question for one in questions if isinstance(one, Question)} == {row["question"] for row in build.rows()}
    pool = {one.text for one in read_pool(RowSource(build.out.with_name("questions.jsonl.passages.jsonl")))}
    assert len(questions) == summary["out"] and len(pool) == summary["in"]
    for one, row in zip(questions, build.rows(), strict=True):
        assert isinstance(one, Question) and {part.text for part in one.supporting} <= pool
        assert all(any(quote in part.text for part in one.supporting) for quote in row["quotes"])
    # each dropped question has its rule, and what there is to see
    dropped = build.rows("dropped")
    assert Counter(row["rule"] for row in dropped) == DROPPED
    seen = {row["rule"]: {*row} - {"id", "rule"} for row in dropped}
    assert seen["unreadable"] == {"reply"} and seen["refused"] == {"reason"}
    assert {"question", "answers", "right", "samples"} <= seen["wrong_from_evidence"]
    # one request for a question, one for its answers from the evidence, one without: only as far as it is kept
    checked = sum(case.rule in ("", "wrong_from_evidence", "known_without_passages", "duplicate") for case in CASES)
    recalled = checked - 1 + len(LINKED)
    assert summary["cost"] == {
        "requests": len(CASES) - 1 + len(LINKED) + checked + len(LINKED) + recalled,
        "prompt_tokens": script.read,
        "answer_tokens": 10 * (len(CASES) - 1 + len(LINKED)) + 10 * SAMPLES * (checked + len(LINKED) + recalled),
        "without_usage": 0,
    }
    assert json.loads(build.out.with_name("questions.jsonl.report.json").read_text()) == summary
    # the same command asks again only what was refused
    before, first = script.asked.copy(), build.out.read_bytes()
    again = build()
    assert build.out.read_bytes() == first and again["prompts"]["sampled"] == 0
    assert sum((script.asked - before).values()) == 1


def test_a_stopped_run_asks_nothing_twice(build: Builder) -> None:
    whole = Script()
    build.transport = whole.transport()
    build()
    expected = build.out.read_bytes()
    for file in build.out.parent.glob("questions.jsonl*"):
        file.unlink()
    script, stops = Script(), 0
    for stop in (5, 20, 45, None):
        left = [stop if stop is None else stop - sum(script.asked.values())]
        serve = script.transport().handler

        def handler(request: Any, left: list[Any] = left, serve: Any = serve) -> Any:
            if left[0] is not None and request.method == "POST":
                left[0] -= 1
                if left[0] < 0:
                    raise KeyboardInterrupt
            return serve(request)

        build.transport = type(build.transport)(handler)
        try:
            build(Sampling(**SAMPLING.__dict__))
        except KeyboardInterrupt:
            stops += 1
            assert not build.out.exists()
    assert stops == 3 and build.out.read_bytes() == expected
    again = {prompt: n for prompt, n in (script.asked - whole.asked).items() if "Melby" not in prompt}
    # two threads: a stop loses what the other one is being told
    assert sum(again.values()) <= 3 * SAMPLES


def test_other_prompts_and_models_are_refused_for_the_same_output(build: Builder, tmp_path: Path) -> None:
    build()
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "recall.txt").write_text("Guess.\n\nQuestion: {question}")
    with pytest.raises(
        UserError, match=r"questions\.jsonl\.samples\.sqlite: holds samples of .* for another recall prompt"
    ):
        build(prompts=tmp_path / "own")
    with pytest.raises(UserError, match="other settings, temperature"):
        build(Sampling(**{**SAMPLING.__dict__, "temperature": 0.9}))


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({}, r"--prompts .*own: no such folder, or none of write\.txt, answer\.txt, recall\.txt in it"),
        ({"wirte.txt": "{passages}"}, r"wirte\.txt is no prompt"),
        ({"write.txt": "Write a question."}, r"write\.txt: lacks \{passages\}"),
        ({"answer.txt": "{passages}"}, r"answer\.txt: lacks \{question\}"),
        ({"recall.txt": b"\xff"}, "cannot be read as UTF-8"),
    ],
)  # fmt: skip
def test_prompts_that_cannot_work(build: Builder, tmp_path: Path, files: dict[str, Any], why: str) -> None:
    (tmp_path / "own").mkdir()
    for name, text in files.items():
        (tmp_path / "own" / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=why):
        build(prompts=tmp_path / "own")


def test_what_a_user_can_mend(build: Builder, tmp_path: Path) -> None:
    (build.folder / "bad.txt").write_bytes(b"\xff")
    (build.folder / "also.pdf").write_bytes(b"no")
    with pytest.raises(UserError, match=r"also\.pdf: not a readable \.pdf file .*\(and 1 more bad rows\); --skip-bad"):
        build()
    summary = build(skip_bad=True, limit=4)
    assert summary["documents"]["rejected"] == len(build.rows("rejects")) == 2 and summary["in"] == 4
    for change, why in (
        ({"limit": 0}, "--limit 0"),
        ({"passage_tokens": 8}, "--passage-tokens 8"),
    ):
        with pytest.raises(UserError, match=why):
            build(**change)
    build.folder, build.out = tmp_path / "few", tmp_path / "few.jsonl"
    build.folder.mkdir()
    (build.folder / "a.txt").write_text("Short.")
    with pytest.raises(UserError, match="no passage is left to ask about"):
        build()
    (build.folder / "a.txt").write_text(passage("Dover"))
    with pytest.raises(UserError, match=r"no question is kept \(1 unreadable\): .*few\.jsonl\.dropped\.jsonl"):
        build()


FACT = "The tower of Arden was built by Agnes Ardenson in 1905."
GOOD = {"question": "Who built the tower of Arden?", "answer": "Agnes Ardenson", "quotes": [FACT]}


@pytest.mark.parametrize(
    ("reply", "rule"),
    [
        (json.dumps(GOOD) + "\n\nI hope this helps! {smile}", ""),
        (json.dumps(GOOD).replace("built by", "built\nby"), ""),
        (json.dumps(GOOD | {"answer": 1905}), ""),
        (json.dumps(GOOD | {"quotes": [f"“{FACT.replace('of', 'of  ')}”"]}), ""),
        (json.dumps(GOOD | {"question": "Who \ud800?"}), "unreadable"),
        (json.dumps(GOOD | {"answer": "Agnes Ardenson\udfff"}), "unreadable"),
        (json.dumps(GOOD | {"question": "Who \0?"}), "unreadable"),
        ('{"question": ' + "[" * 100_000, "unreadable"),
        (json.dumps(GOOD | {"answer": True}), "unreadable"),
        (json.dumps(GOOD | {"answer": "Yes"}), "answer_not_in_evidence"),
    ],
)
def test_what_models_reply(reply: str, rule: str) -> None:
    group = Group((Passage("D", FACT, "d", 0),))
    with pytest.raises(Rejected, match=rule) if rule else nullcontext():
        assert read_candidate(reply, group).evidence == group.passages


def test_long_questions_with_different_answers_are_no_duplicates() -> None:
    long = " ".join(["In which year was the tower of", *(f"word{n}" for n in range(40)), "built?"])
    rows = [(long, "1905"), (long, "1906"), (long.upper(), "the 1905")]
    assert [*near_duplicates(rows, shingle=2)] == [False, False, True]


def test_groups_share_a_name_and_prefer_their_document() -> None:
    documents = [Document(name, name, passage(town)) for name, town in zip("aabbcc", LINKED, strict=True)]
    documents += [Document("d", "d", passage("Arden"))]
    count = lambda text: len(text.split())  # noqa: E731
    passages = Passages(documents, 500, count).kept
    groups = [group for seed in range(8) for group in make_groups(passages, seed, count)]
    sizes = Counter(len(group.passages) for group in groups)
    assert {*sizes} == {1, 2, 3, 4}
    for group in groups:
        names = [one.document for one in group.passages]
        assert len(names) == 1 or "d" not in names
        assert len(names) != 2 or names[0] == names[1]
    again = [group.id for group in make_groups(passages, 3, count)]
    assert again == [group.id for group in make_groups(passages, 3, count)]
    assert len({*again}) == len(again) == len(passages)
    assert again != [group.id for group in make_groups(passages, 4, count)]
    assert fact("Selby") in passages[3].text
