"""Contexts in natural order: the document of the evidence, windows of it, and other documents around it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from random import Random
from typing import Any

import pytest
from samples import RowWriter
from transformers import PreTrainedTokenizerFast

from solopo_nemo.builders.contexts.build import build_contexts
from solopo_nemo.builders.contexts.settings import BuildSettings
from solopo_nemo.data.tokenize import TripletEncoder
from solopo_nemo.runtime.errors import UserError

LENGTHS = {"a": 30, "b": 4, "c": 12, "d": 9}
WORDS = ["amber", "basin", "cedar", "delta", "ember", "fjord", "grove", "haven", "islet", "kiln", "ledge", "marsh"]
LEAK = ("d", 5)


def text(name: str, number: int) -> str:
    rest = " ".join(Random(f"{name}{number}").choices(WORDS, k=12))
    return f"Part {number} of {name}: {rest}{' key 77' if (name, number) == LEAK else ''}.\n\n"


def passage(name: str, number: int) -> dict[str, Any]:
    return {"document": name, "number": number, "title": f"Book {name}", "text": text(name, number)}


POOL = [passage(name, number) for name, size in LENGTHS.items() for number in range(size)]


def question(id_: str, *places: tuple[str, int], answer: str = "77") -> dict[str, Any]:
    supporting = [{name: passage(*place)[name] for name in ("title", "text")} for place in places]
    return {"id": id_, "question": f"What of {id_}?", "answers": [answer], "supporting": supporting}


def found(prompt: list[dict[str, str]]) -> list[list[tuple[str, int]]]:
    """The places of each passage of a prompt, which is a text of one document with all that stands between."""
    body = prompt[0]["content"].split("\n\nQuestion: ")[0]
    runs = []
    for block in re.split(r"(?:^|\n\n)Passage \d+:\n", body)[1:]:
        title, _, rest = block.partition("\n")
        places = [(name, int(number)) for number, name in re.findall(r"Part (\d+) of (\w):", rest)]
        assert title == f"Book {places[0][0]}" and rest == "".join(text(*place) for place in places).rstrip()
        runs.append(places)
    return runs


@pytest.fixture
def build(write_rows: RowWriter, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Any:
    def run(
        questions: list[dict[str, Any]], long: int | str, pool: list[dict[str, Any]] = POOL, **settings: Any
    ) -> Any:
        given = {"short_tokens": 700, "long": "document", "pool": (write_rows(pool, "pool.jsonl"),), **settings}
        out = tmp_path / "out.jsonl"
        summary = build_contexts(
            BuildSettings(write_rows(questions), out, long_tokens=long, **given), TripletEncoder(tokenizer)
        )
        return summary, [json.loads(line) for line in out.read_text().splitlines()]

    return run


def one(place: tuple[str, int], number: int = 0) -> dict[str, Any]:
    return question(f"q{place[0]}{place[1]}{number}", place, answer=f"Part {place[1]} of {place[0]}")


def test_a_window_is_the_documents_own_text_around_the_evidence(build: Any) -> None:
    questions = [one(("a", 15), number) for number in range(12)]
    summary, rows = build(questions, 1200)
    assert len(rows) == 12
    starts = set()
    for row in rows:
        (short,), (long,) = found(row["prompt_short"]), found(row["prompt_long"])
        for run in (short, long):
            assert run == [("a", number) for number in range(run[0][1], run[-1][1] + 1)] and ("a", 15) in run
        assert {*short} < {*long}
        starts.add(15 - long[0][1])
        assert 700 - 90 < row["meta"]["short_tokens"] <= 700 and 1200 - 90 < row["meta"]["long_tokens"] <= 1200
    assert len(starts) > 4, "the evidence is not always in the middle"
    assert summary["lengths"]["1200"]["evidence_position"]["mean"] == pytest.approx(0.5, abs=0.25)


def test_other_documents_stand_around_a_short_one(build: Any) -> None:
    rows = build([one(("b", 2), number) for number in range(8)], 1500)[1]
    sides = set()
    for row in rows:
        runs = found(row["prompt_long"])
        own = next(index for index, run in enumerate(runs) if run[0][0] == "b")
        assert runs[own] == [("b", number) for number in range(4)], "the document is whole"
        assert len({run[0][0] for run in runs}) == len(runs) > 1
        for run in runs[:own] + runs[own + 1 :]:
            assert run == [(run[0][0], number) for number in range(len(run))], "from its beginning, without a gap"
        whole = [run for run in runs if len(run) == LENGTHS[run[0][0]]]
        assert len(whole) >= len(runs) - 1
        sides.add(bool(own))
    assert sides == {True, False}


def test_evidence_in_several_places(build: Any) -> None:
    answers = {"answer": "Part 20 of a"}
    near, far, two = (
        question("near", ("a", 18), ("a", 20), **answers),
        question("far", ("a", 2), ("a", 20), **answers),
        question("two", ("b", 1), ("a", 20), **answers),
    )
    _, rows = build([near, far, two], 1100)
    runs = {row["id"]: found(row["prompt_long"]) for row in rows}
    assert len(runs["near"]) == 1 and {("a", 18), ("a", 20)} <= {*runs["near"][0]}
    assert (
        [run[0][0] for run in runs["far"]] == ["a", "a"] and ("a", 2) in runs["far"][0] and ("a", 20) in runs["far"][1]
    )
    assert [run[0][0] for run in runs["two"]] == ["a", "b"], "in the order of the documents"


def test_a_passage_of_another_document_that_holds_the_answer_is_left_out(build: Any) -> None:
    answers = {"answers": ["key 77", "Part 2 of b"]}
    questions = [question(f"q{number}", ("b", 2), answer="Part 2 of b") | answers for number in range(6)]
    for leak in (False, True):
        rows = build(questions, 1900, allow_answer_leak=leak)[1]
        taken = [place for row in rows for run in found(row["prompt_long"]) for place in run]
        assert (LEAK in taken) is leak and ("d", LEAK[1] + 1) in taken


def test_gold_pairs_and_several_lengths(build: Any, tmp_path: Path) -> None:
    (tmp_path / "out.jsonl").touch()
    summary, _ = build([one(("a", number)) for number in range(4)], "900,1500", gold_pairs=True)
    assert summary["out"] == 4
    for middle, long in zip(
        *[map(json.loads, (tmp_path / f"out.{label}.jsonl").read_text().splitlines()) for label in (900, 1500)],
        strict=True,
    ):
        assert {place for run in found(middle["prompt_long"]) for place in run} < {
            place for run in found(long["prompt_long"]) for place in run
        }
        assert long["rejected"] and "Part" in long["chosen"]


def test_what_is_dropped_or_refused(build: Any) -> None:
    alien = {"id": "x", "question": "?", "answers": ["text"], "supporting": ["A text of nowhere."]}
    summary, _ = build([one(("a", 3)), alien], 1200)
    assert summary["dropped_by_rule"] == {"not_in_documents": 1}
    for questions, long, pool, settings, why in (
        ([alien], 1200, POOL, {}, "evidence 'A text of nowhere. ...' is no passage of the --pool"),
        ([one(("a", 3))], 1200, POOL, {"short_tokens": 40}, "with its evidence alone"),
        ([one(("a", 3))], 90000, POOL, {}, "too few for it"),
        ([one(("a", 3))], 1200, [{"title": "T", "text": "t"}], {}, r"pool\.jsonl:1: field document: missing"),
        ([one(("a", 3))], 1200, POOL[::-1], {}, r"pool\.jsonl:2: field number: \d+ is not above the one before it in"),
    ):
        with pytest.raises(UserError, match=why):
            build(questions, long, pool, **settings)
    with pytest.raises(UserError, match="--long document: give --pool"):
        BuildSettings("a.jsonl", Path("b.jsonl"), 1, 2, long="document")
