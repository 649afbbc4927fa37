"""From questions to datasets: choice, counts, restarts and bad rows, without a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pair_samples import RIGHT, SAMPLING, WRONG, FakeBackend, asked_row
from samples import RowWriter

from solopo_nemo.builders.pairs.run import PairSettings, sample_pairs
from solopo_nemo.data.triplets import Needs, read_triplets
from solopo_nemo.runtime.errors import UserError

# one of each verdict, and pairs
MIXED = [
    asked_row(0),
    asked_row(1, short="rrrr"),
    asked_row(2, short="wwww"),
    asked_row(3, short="rcew", long="cccc"),
    asked_row(4, short="cece"),
    asked_row(5, short="refuse"),
    asked_row(6, short="lwww", long="refuse"),
    asked_row(7, long="wwww"),
]
NEEDS = Needs(("short_chosen", "short_rejected", "long_chosen"))


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def sampled(contexts: Path, backend: FakeBackend | None = None, **settings: Any) -> dict[str, Any]:
    out = contexts.with_name("out.jsonl")
    backend = backend or FakeBackend()
    summary = sample_pairs(PairSettings(contexts=contexts, out=out, **settings), SAMPLING, lambda _: backend)
    for counts in [summary, *summary["sides"].values()]:
        assert counts["in"] == counts["out"] + counts["rejected"] + counts["dropped"]
        assert counts["dropped"] == sum(counts["dropped_by_rule"].values())
    assert len(rows_of(out)) == summary["out"]
    assert backend.closed
    return summary


def test_one_right_and_one_wrong_answer_of_each_mixed_question(write_rows: RowWriter) -> None:
    contexts = write_rows(MIXED)
    summary = sampled(contexts)
    rows = rows_of(contexts.with_name("out.jsonl"))
    assert [row["id"] for row in rows] == ["q0", "q3", "q6", "q7"]
    assert summary["dropped_by_rule"] == {"all_right": 1, "all_wrong": 1, "none_finished": 1, "refused": 1}
    # the empty ones have no last line that is scored
    assert summary["samples"]["without_closing_line"] == 1
    for row, question in zip(rows, [MIXED[0], MIXED[3], MIXED[6], MIXED[7]], strict=True):
        assert row["chosen"].endswith(RIGHT) or row["chosen"].endswith("Then Gold")
        assert row["rejected"].endswith(WRONG)
        assert {name: row[name] for name in ("prompt_short", "prompt_long", "answers")} == {
            name: question[name] for name in ("prompt_short", "prompt_long", "answers")
        }
        assert row["meta"]["short_tokens"] == 3 and row["meta"]["sampled_on"] == "short"
    assert rows[1]["chosen"].startswith("0. "), "the cut and the empty samples are never chosen"
    assert len(list(read_triplets(contexts.with_name("out.jsonl"), NEEDS))) == 4
    dropped = rows_of(contexts.with_name("out.jsonl.dropped.jsonl"))
    assert [(row["id"], row["rule"]) for row in dropped] == [
        ("q1", "all_right"),
        ("q2", "all_wrong"),
        ("q4", "none_finished"),
        ("q5", "refused"),
    ]


def test_both_sides_prefer_questions_that_yield_pairs_on_both(write_rows: RowWriter) -> None:
    contexts = write_rows(MIXED)
    summary = sampled(contexts, on="both", size=3)
    ids = {
        name: {row["id"] for row in rows_of(contexts.with_name(f"out.{name}.jsonl"))}
        for name in ("sft_short", "po_short", "sft_long", "po_long")
    }
    # only q0 is mixed on both; q3, q6, q7 on the short prompt; q1, q2, q4, q5 on the long one
    assert summary["on_both"] == 1
    assert "q0" in ids["po_short"] & ids["po_long"]
    assert ids["po_short"] == ids["sft_short"] and len(ids["po_short"]) == 3
    assert ids["po_long"] == ids["sft_long"] and len(ids["po_long"]) == 3
    assert ids["po_short"] - {"q0"} < {"q3", "q6", "q7"}
    assert ids["po_long"] - {"q0"} < {"q1", "q2", "q4", "q5"}
    assert summary["sides"]["short"]["dropped_by_rule"]["beyond_size"] == 1
    solo = {row["id"]: row for row in rows_of(contexts.with_name("out.jsonl"))}
    assert set(solo) == ids["po_short"]
    for name, fields in {"po_short": ("chosen", "rejected"), "sft_short": ("chosen",)}.items():
        for row in rows_of(contexts.with_name(f"out.{name}.jsonl")):
            assert row["prompt"] == solo[row["id"]]["prompt_short"]
            assert {field for field in ("chosen", "rejected") if field in row} == set(fields)
            assert all(row[field] == solo[row["id"]][field] for field in fields)
    needs = {"po_long": Needs(("long_chosen", "long_rejected")), "sft_long": Needs(("long_chosen",))}
    for name, need in needs.items():
        assert {t.id for t in read_triplets(contexts.with_name(f"out.{name}.jsonl"), need)} == ids[name]


def test_on_long_samples_the_long_prompt_only(write_rows: RowWriter) -> None:
    backend = FakeBackend()
    summary = sampled(write_rows(MIXED), backend, on="long")
    assert {side for _, side in backend.requests} == {"long"}
    assert summary["out"] == 5 and set(summary["sides"]) == {"long"}


def test_the_result_does_not_depend_on_concurrency(write_rows: RowWriter, tmp_path: Path) -> None:
    rows = [asked_row(n, short="rrrr" if n % 3 else "rwrw") for n in range(60)]
    files = []
    for concurrency in (1, 7):
        (tmp_path / str(concurrency)).mkdir()
        contexts = write_rows(rows, f"{concurrency}/rows.jsonl")
        backend = FakeBackend(concurrency)
        summary = sampled(contexts, backend, size=8)
        assert summary["out"] == 8
        assert len(backend.requests) < 60, "it stops when it has enough"
        files.append(contexts.with_name("out.jsonl").read_bytes())
    assert files[0] == files[1]
    numbers = [int(json.loads(line)["id"][1:]) for line in files[0].splitlines()]
    assert numbers == sorted(numbers) and max(numbers) > 30, "file order, from everywhere in the file"


def test_a_stopped_run_goes_on_and_pays_nothing_twice(write_rows: RowWriter) -> None:
    contexts = write_rows(MIXED)
    sampled(contexts, on="both")
    out = contexts.with_name("out.jsonl")
    whole = out.read_bytes()
    for file in contexts.parent.glob("out*"):
        file.unlink()
    paid: list[tuple[str, str]] = []
    for stop in (0, 3, 4, 5):
        backend = FakeBackend(stop_after=stop)
        with pytest.raises(KeyboardInterrupt):
            sampled(contexts, backend, on="both")
        assert backend.closed and not out.exists()
        paid += backend.requests
    last = FakeBackend()
    summary = sampled(contexts, last, on="both")
    # a refused prompt cost nothing and is asked again
    sampled_twice = {request for request in paid if request in last.requests or paid.count(request) > 1}
    assert sampled_twice <= {("q5", "short"), ("q6", "long")}
    assert summary["prompts"]["reused"] + summary["prompts"]["sampled"] == 14
    assert out.read_bytes() == whole


def test_answers_that_come_few_at_once_are_kept_one_by_one(write_rows: RowWriter) -> None:
    contexts = write_rows(MIXED)
    sampled(contexts)
    out = contexts.with_name("out.jsonl")
    whole = out.read_bytes()
    for file in contexts.parent.glob("out*"):
        file.unlink()
    paid = 0
    stops = 0
    while not out.exists():
        # each process gets three requests further; a prompt takes four, and the refused one is asked again each time
        backend = FakeBackend(concurrency=1, stop_after=3, at_once=1)
        try:
            summary = sampled(contexts, backend)
        except KeyboardInterrupt:
            stops += 1
        paid += sum(id_ != "q5" for id_, _ in backend.requests)
    assert stops > 7
    assert paid == 7 * SAMPLING.samples == summary["samples"]["all"]
    assert out.read_bytes() == whole
    # many at once, each a part of its answers
    (contexts.parent / "other").mkdir()
    sampled(write_rows(MIXED, "other/rows.jsonl"), FakeBackend(concurrency=5, at_once=3))
    assert (contexts.parent / "other" / "out.jsonl").read_bytes() == whole


def test_a_longer_list_of_questions_reuses_the_samples(write_rows: RowWriter) -> None:
    sampled(write_rows(MIXED[:4]))
    backend = FakeBackend()
    summary = sampled(write_rows(MIXED), backend)
    assert summary["prompts"] == {"sampled": 3, "reused": 4}
    assert {id_ for id_, _ in backend.requests} == {"q4", "q5", "q6", "q7"}


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"answers": None}, "answers"),
        ({"answers": []}, "answers"),
        ({"answers": ["?!"]}, r"answers\[0\]"),
        ({"prompt_long": None}, "prompt_long"),
        ({"prompt_short": " "}, "prompt_short"),
        ({"id": "q0"}, "id"),
        ({"meta": [1]}, "meta"),
        ({"tools": [{"name": "f"}]}, "tools"),
        ({"system": "Be brief."}, "system"),
    ],
)
def test_bad_rows_stop_before_sampling_or_are_listed(
    write_rows: RowWriter, changes: dict[str, Any], field: str
) -> None:
    contexts = write_rows([asked_row(0), asked_row(1, **changes), asked_row(2)])
    backend = FakeBackend()
    with pytest.raises(UserError, match=rf"rows\.jsonl:2: field {field}: .*--skip-bad"):
        sampled(contexts, backend)
    assert not backend.requests and not list(contexts.parent.glob("out*"))
    summary = sampled(contexts, skip_bad=True)
    assert (summary["in"], summary["out"], summary["rejected"]) == (3, 2, 1)
    rejects = rows_of(contexts.with_name("out.jsonl.rejects.jsonl"))
    assert len(rejects) == 1 and "rows.jsonl:2" in rejects[0]["error"]


def test_without_any_pair_there_is_no_file(write_rows: RowWriter) -> None:
    contexts = write_rows([asked_row(0, short="rrrr"), asked_row(1, short="wwww")])
    with pytest.raises(UserError, match=r"1 all_right, 1 all_wrong.*with another --out"):
        sampled(contexts)
    assert not contexts.with_name("out.jsonl").exists()


@pytest.mark.parametrize("skip_bad", [False, True])
def test_a_file_of_another_kind_is_told_from_one_with_bad_rows(write_rows: RowWriter, skip_bad: bool) -> None:
    contexts = write_rows([{"id": "q0", "question": "Who?", "paragraphs": []}] * 2)
    with pytest.raises(UserError, match=r"rows\.jsonl:1: field prompt_short: .*give the output of build_contexts"):
        sampled(contexts, skip_bad=skip_bad)


def test_a_backend_that_refuses_everything_ends_the_run_early(write_rows: RowWriter) -> None:
    backend = FakeBackend()
    with pytest.raises(UserError, match="all refused: too long"):
        sampled(write_rows(asked_row(n, short="refuse") for n in range(50)), backend)
    assert len(backend.requests) == 8


def test_settings_that_cannot_work(tmp_path: Path) -> None:
    for change, message in (({"size": 0}, "--size"), ({"out": tmp_path / "o.txt"}, "--out")):
        with pytest.raises(UserError, match=message):
            PairSettings(**({"contexts": tmp_path, "out": tmp_path / "o.jsonl"} | change))
