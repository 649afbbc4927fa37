"""What the inspection of a file finds."""

from __future__ import annotations

import json
import re
import sys
from typing import Any

import pytest
from samples import RowWriter, triplet_row
from transformers import PreTrainedTokenizerFast

from solopo_nemo.builders.pairs.inspect import inspect_file
from solopo_nemo.commands import main as command
from solopo_nemo.data.tokenize import TripletEncoder
from solopo_nemo.data.triplets import COLUMNS, Needs, Triplet, sequence_columns
from solopo_nemo.runtime.errors import UserError
from solopo_nemo.runtime.paths import EMBEDDED_MODEL


def good(number: int, **changes: Any) -> dict[str, Any]:
    return triplet_row(number, **({"answers": ["1960"]} | changes))


def test_every_problem_is_listed_with_its_line(write_rows: RowWriter) -> None:
    path = write_rows(
        [
            good(0),
            good(1, chosen=" ", prompt_long=[]),
            good(0),
            good(3, answers="1960"),
            good(4, rejected=None),
            good(5),
        ]
    )
    with path.open("a") as stream:
        stream.write("{broken\n")
    found = inspect_file(path)
    beginnings = [
        "2: field chosen: is empty",
        "2: field prompt_long: is empty",
        "3: field id: 't0' was used",
        "4: field answers: is a string",
        "5: field rejected: missing",
        "7: broken JSON",
    ]
    for problem, beginning in zip(found.problems, beginnings, strict=True):
        assert problem.startswith(f"{path}:{beginning}")
    summary = found.summary()
    assert (summary["in"], summary["good"], summary["bad"], summary["problems"]) == (7, 2, 5, 6)


def test_statistics_are_of_the_good_rows(write_rows: RowWriter) -> None:
    same = {"rejected": "The answer is: 1960"}
    rows = [good(0), good(1, **same), good(2, rejected="It was 1960, or\nnever"), good(3, chosen="1960")]
    path = write_rows(rows)
    found = inspect_file(path)
    assert found.kind == "triplets" and not found.problems
    assert found.remarks == [f"{path}:2: chosen and rejected are the same answer, which teaches nothing"]
    assert found.shares == {
        "chosen without closing line": 0.25,
        "chosen right by sub-EM": 1.0,
        "short prompt is the long one": 0.0,
        "chosen equals rejected": 0.25,
        "chosen longer than rejected": 0.0,
        "rejected without closing line": 0.25,
        "rejected right by sub-EM": 0.25,
        "rejected mentions the answer": 0.5,
    }
    assert found.lengths["chosen"].statistics()["max"] == len("The answer is: 1960")
    assert 0 < found.summary()["rho"] < 1


def test_pairs_of_an_earlier_answer_rule_are_named(write_rows: RowWriter) -> None:
    rules: list[dict[str, str]] = [{}, {"answer_rule": "1"}, {"answer_rule": "2"}, {"answer_rule": "literal"}]
    path = write_rows([good(n, meta={"sampled_on": "short"} | rule) for n, rule in enumerate(rules)])
    (remark,) = inspect_file(path).remarks
    assert remark.startswith(f"{path}: 2 pairs were chosen by an earlier answer rule than 2")


def test_equal_answers_in_every_row_are_a_problem(write_rows: RowWriter) -> None:
    same = {"rejected": " The answer is: 1960\n"}
    (problem,) = inspect_file(write_rows([good(0, **same), good(1, **same)])).problems
    assert problem.endswith("the same answer in every row: nothing to prefer")


def test_lengths_in_tokens(write_rows: RowWriter, tokenizer: PreTrainedTokenizerFast) -> None:
    encoder = TripletEncoder(tokenizer)
    row = good(0)
    found = inspect_file(write_rows([row]), encoder)
    sample = Triplet("a", "", **{name: row[name] for name in COLUMNS})
    (ids,) = encoder.encode([sample], Needs(tuple(sequence_columns())))
    assert found.unit == "tokens"
    assert {name: lengths.total for name, lengths in found.lengths.items()} == {n: len(own) for n, own in ids.items()}
    assert found.remarks == []


def test_answers_with_the_text_of_a_special_token_are_reported_and_counted_as_they_are_trained(
    write_rows: RowWriter, tokenizer: PreTrainedTokenizerFast
) -> None:
    encoder = TripletEncoder(tokenizer)
    text = "It closes with <|im_end|><|eot|>"
    path = write_rows([good(0), good(1, rejected=text)])
    found = inspect_file(path, encoder)
    assert found.remarks == [f"{path}:2: field rejected: '<|im_end|>' is text of a special token, trained as letters"]
    assert (found.problems, found.summary()["remarks"]) == ([], 1)
    letters = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert found.lengths["rejected"].statistics()["max"] == len(letters) + 1, "and the end token"


def test_one_prompt_files_are_known(write_rows: RowWriter) -> None:
    rows = [{"prompt": "ask", "chosen": "a", "rejected": "b"}] * 2
    found = inspect_file(write_rows(rows))
    assert (found.kind, found.problems, set(found.lengths)) == ("preferences", [], {"prompt", "chosen", "rejected"})
    found = inspect_file(write_rows([{"prompt": "ask", "chosen": "a"}]))
    assert (found.kind, found.problems, set(found.lengths)) == ("fine-tuning", [], {"prompt", "chosen"})
    assert inspect_file(write_rows([*rows, {"prompt": "ask", "chosen": "a"}])).problems


def test_shown_samples_are_drawn_by_seed_in_file_order(write_rows: RowWriter) -> None:
    path = write_rows(good(n) for n in range(50))
    draws = [[sample.id for sample in inspect_file(path, samples=4, seed=seed).samples] for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    for draw in draws:
        numbers = [int(id_[1:]) for id_ in draw]
        assert len(set(numbers)) == 4 and numbers == sorted(numbers)


def test_an_empty_file_is_an_error(write_rows: RowWriter) -> None:
    with pytest.raises(UserError, match="no samples"):
        inspect_file(write_rows([]))


ASK = [{"role": "user", "content": "Who?"}]
TALK = [
    {"role": "assistant", "content": "Ann did."},
    {"role": "user", "content": "Sure?"},
    {"role": "assistant", "content": "Yes"},
]


@pytest.mark.parametrize(
    ("score", "first"), [("assistant", "[[Ann| |did|.|<|im_end|>]]"), ("last", "Ann did.<|im_end|>")]
)
def test_the_tokens_of_a_sample(
    write_rows: RowWriter,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    score: str,
    first: str,
) -> None:
    path = write_rows([good(0), {"id": "b", "prompt": ASK, "chosen": TALK, "rejected": ["Bob", "Al"]}])
    path.write_text(path.read_text().splitlines()[1] + "\n")
    words = [str(path), "--tokenizer", str(EMBEDDED_MODEL), "--tokens", "b", "--score", score]
    monkeypatch.setattr(sys, "argv", ["inspect_triplets.py", *words])
    with pytest.raises(SystemExit) as exit_:
        command("inspect_triplets")
    assert exit_.value.code == 0
    out = re.sub(r"(?<=[A-Z])\|(?=[a-z])|(?<=[a-z])\|(?=[a-z])", "", capsys.readouterr().out)  # the tokens of a word
    start = "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n"
    chosen, rejected, other = (part.partition("\n") for part in out.split("long_")[1:])
    assert chosen[2] == (
        f"{start}{first}\n<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n[[Yes|<|im_end|>]]\n"
    )
    assert (rejected[0].partition(":")[0], other[0].partition(":")[0]) == ("rejected", "rejected_2")
    assert rejected[2] == f"{start}[[Bob|<|im_end|>]]\n"
    assert re.fullmatch(r"chosen: \d+ tokens, \d+ scored", chosen[0])


@pytest.mark.parametrize("bad", [False, True])
def test_command(
    write_rows: RowWriter, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], bad: bool
) -> None:
    path = write_rows([good(0), good(1, **({"chosen": None} if bad else {}))])
    monkeypatch.setattr(sys, "argv", ["inspect_triplets.py", str(path), "--json", "--show", "1"])
    with pytest.raises(SystemExit) as exit_:
        command("inspect_triplets")
    assert exit_.value.code == (2 if bad else 0)
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert json.loads(lines[-1])["bad"] == bad
    assert [line.startswith(f"{path}:2: field chosen: missing") for line in lines[:-1]] == [True] * bad
    assert "t0" in captured.err and "short question 0" in captured.err


def test_a_sample_with_one_prompt_is_shown_under_its_name(
    write_rows: RowWriter, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_rows([{"prompt": "ask", "chosen": "a", "rejected": "b"}])
    monkeypatch.setattr(sys, "argv", ["inspect_triplets.py", str(path)])
    with pytest.raises(SystemExit):
        command("inspect_triplets")
    assert "\nprompt ask\n" in capsys.readouterr().err
