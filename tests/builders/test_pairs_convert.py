"""Conversion from and to the preference files of other projects."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from samples import RowWriter, triplet_row

from solopo_nemo.builders.pairs.convert import convert_file
from solopo_nemo.commands import main as command
from solopo_nemo.data.triplets import Needs, read_triplets
from solopo_nemo.runtime.errors import UserError

ASK = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "ask"}]
VANILLA = {"prompt": ASK, "chosen": "good", "rejected": "bad"}
RANKED = [{"rank": rank, "completion": [{"role": "assistant", "content": text}]} for rank, text in enumerate("abc")]
LONGPO = {
    "prompt": "a long text",
    "questions": ["who?", "when?"],
    "short_prompts": ["text 1", "text 2"],
    "chosens": ["A", "B"],
    "rejecteds": ["C", "D"],
}


def said(content: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": content}]


def asked(content: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": content}]


def converted(source: Path, to: str, **options: Any) -> list[dict[str, Any]]:
    out = source.with_name(f"{to}-{source.name}")
    counts = convert_file(source, out, to, **options)
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert counts["in"] == counts["converted"] + counts["rejected"]
    assert counts["out"] == len(rows)
    return rows


def test_what_a_row_gives_its_template_goes_on_or_is_refused(write_rows: RowWriter) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    path = write_rows([{"context": ASK, "completions": RANKED, "tools": tools}])
    assert converted(path, "trl")[0]["tools"] == tools
    assert converted(path, "triplets")[0]["tools"] == tools
    for to in ("nemo_rl", "longpo"):
        with pytest.raises(UserError, match=r"rows\.jsonl:1: field tools: has no place in this format"):
            converted(path, to)


def test_trl(write_rows: RowWriter) -> None:
    row = triplet_row()
    path = write_rows([row])
    assert converted(path, "trl", side="long") == [
        {"prompt": row["prompt_long"], "chosen": said(row["chosen"]), "rejected": said(row["rejected"])}
    ]
    trl = path.with_name("trl-rows.jsonl")
    assert converted(trl, "triplets") == [
        {"id": "row-0", "prompt": row["prompt_long"], "chosen": row["chosen"], "rejected": row["rejected"]}
    ]
    plain = [{"prompt": "ask", "chosen": "a", "rejected": "b"}]
    assert converted(write_rows(plain, "plain.jsonl"), "trl") == plain


def test_trl_with_the_prompt_inside_the_answers(write_rows: RowWriter) -> None:
    path = write_rows([{"id": 7, "chosen": ASK + said("good"), "rejected": ASK + said("bad")}])
    assert converted(path, "triplets") == [{"id": "7", **VANILLA}]


def test_nemo_rl(write_rows: RowWriter) -> None:
    path = write_rows([triplet_row()])
    row = triplet_row()
    rows = converted(path, "nemo_rl", side="short")
    assert rows == [
        {
            "context": row["prompt_short"],
            "completions": [
                {"rank": 0, "completion": said(row["chosen"])},
                {"rank": 1, "completion": said(row["rejected"])},
            ],
        }
    ]


def test_of_many_completions_the_best_and_the_worst_are_taken(write_rows: RowWriter) -> None:
    path = write_rows([{"context": ASK, "completions": RANKED[::-1]}])
    assert converted(path, "triplets") == [{"id": "row-0", "prompt": ASK, "chosen": "a", "rejected": "c"}]


def test_turns_and_several_rejected_answers(write_rows: RowWriter) -> None:
    talk = [*said("a"), *asked("why?"), *said("b")]
    row = {"id": "x", "prompt": ASK, "chosen": talk, "rejected": [said("c"), talk[:2] + said("d")]}
    path = write_rows([row])
    assert converted(path, "triplets") == [row]
    completions = [{"rank": 0, "completion": talk}, *({"rank": 1, "completion": c} for c in row["rejected"])]
    assert converted(path, "nemo_rl") == [{"context": ASK, "completions": completions}]
    with pytest.raises(UserError, match="field rejected: has several answers, and this format one"):
        converted(path, "trl")
    path = write_rows([row | {"rejected": "c"}])
    assert converted(path, "trl") == [{"prompt": ASK, "chosen": talk, "rejected": said("c")}]
    (triplet,) = converted(write_rows([triplet_row(chosen=talk)]), "triplets")
    assert triplet["chosen"] == talk


def test_each_question_of_longpo_is_a_triplet(write_rows: RowWriter) -> None:
    path = write_rows([LONGPO])
    rows = converted(path, "triplets")
    assert rows == [
        {
            "id": f"row-0-{index}",
            "prompt_short": asked(f"{short}\n\n{question}"),
            "prompt_long": asked(f"a long text\n\n{question}"),
            "chosen": chosen,
            "rejected": rejected,
        }
        for index, (question, short, chosen, rejected) in enumerate(
            [("who?", "text 1", "A", "C"), ("when?", "text 2", "B", "D")]
        )
    ]
    back = converted(path.with_name("triplets-rows.jsonl"), "longpo")
    assert [(row["prompt"], row["questions"], row["short_prompts"]) for row in back] == [
        ("a long text", ["who?"], ["text 1"]),
        ("a long text", ["when?"], ["text 2"]),
    ]


def test_triplets_survive_longpo(write_rows: RowWriter) -> None:
    closing = "Question: Who?\n\nThink step by step."
    row = triplet_row(prompt_short=asked(f"One.\n\nTwo.\n\n{closing}"), prompt_long=asked(f"One.\n\nX.\n\n{closing}"))
    path = write_rows([row])
    assert converted(path, "longpo")[0]["questions"] == [closing]
    assert converted(path.with_name("longpo-rows.jsonl"), "triplets") == [row]


@pytest.mark.parametrize("to", ["triplets", "trl", "nemo_rl"])
def test_what_is_written_is_what_the_recipes_read(write_rows: RowWriter, to: str) -> None:
    path = write_rows(triplet_row(number) for number in range(3))
    converted(path, to, side="long")
    result = path.with_name(f"{to}-rows.jsonl")
    if to == "nemo_rl":
        converted(result, "triplets")
        result = path.with_name("triplets-nemo_rl-rows.jsonl")
    needs = Needs(("long_chosen", "long_rejected"))
    read, wanted = list(read_triplets(result, needs)), list(read_triplets(path, needs))
    assert [(t.prompt_long, t.chosen, t.rejected) for t in read] == [
        (t.prompt_long, t.chosen, t.rejected) for t in wanted
    ]


@pytest.mark.parametrize(
    ("row", "to", "message"),
    [
        (triplet_row(rejected=None), "triplets", "field rejected: missing"),
        (triplet_row(), "trl", "--side short or --side long"),
        (triplet_row(), "longpo", "field prompt_short: has no blank line"),
        (triplet_row(prompt_short=asked("a\n\nb"), prompt_long=asked("a\n\nc")), "longpo", "another question"),
        (triplet_row(prompt_short="a\n\nb", prompt_long="c\n\nb"), "longpo", "one user message"),
        (VANILLA, "longpo", "needs a short and a long prompt"),
        ({"context": ASK, "completions": RANKED[:1]}, "trl", "no two ranks"),
        ({"context": ASK, "completions": [{"rank": "best"}]}, "trl", r"completions\[0\]\.rank"),
        ({"context": ASK, "completions": [{"rank": float("nan")}]}, "trl", r"completions\[0\]\.rank"),
        ({"completions": RANKED}, "trl", "field context: missing"),
        (LONGPO | {"rejecteds": ["C"]}, "triplets", "as many as"),
        (LONGPO | {"prompt": None}, "triplets", "field prompt: missing"),
    ],
)
def test_bad_rows_stop_or_are_listed(write_rows: RowWriter, row: dict[str, Any], to: str, message: str) -> None:
    good = [triplet_row(8, prompt_short=asked("a\n\nb"), prompt_long=asked("c\n\nb"))] if to == "longpo" else [VANILLA]
    path = write_rows([*good, row])
    with pytest.raises(UserError, match=rf"rows\.jsonl:2: .*{message}.*--skip-bad"):
        converted(path, to)
    assert not path.with_name(f"{to}-rows.jsonl").exists()
    assert len(converted(path, to, skip_bad=True)) == 1
    rejects = path.with_name(f"{to}-rows.jsonl.rejects.jsonl").read_text().splitlines()
    assert len(rejects) == 1 and "rows.jsonl:2" in rejects[0]


def test_command(write_rows: RowWriter, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_rows([LONGPO])
    arguments = [
        "convert_pairs.py",
        str(path),
        str(path.with_name("out.jsonl")),
        "--to",
        "nemo_rl",
        "--side",
        "short",
        "--json",
    ]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as exit_:
        command("convert_pairs")
    assert exit_.value.code == 0
    assert json.loads(capsys.readouterr().out) == {"in": 1, "converted": 1, "rejected": 0, "out": 2}
