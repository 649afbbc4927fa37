from __future__ import annotations

import json
import logging
from pathlib import Path

import datasets
import pytest
from samples import RowWriter, TokenizerMaker, triplet_row
from transformers import PreTrainedTokenizerFast

from solopo_nemo.data import prepared as module
from solopo_nemo.data.prepared import PreparedDataset, TooLong, load_prepared, prepare_dataset
from solopo_nemo.data.triplets import Needs
from solopo_nemo.runtime.errors import UserError

NEEDS = Needs(("short_chosen", "short_rejected", "long_chosen"))


def prepare(
    path: Path,
    tokenizer: PreTrainedTokenizerFast,
    out: Path,
    *,
    needs: Needs = NEEDS,
    max_tokens: int = 1000,
    too_long: TooLong = "error",
    vocab_size: int = 1000,
    trained: str | None = None,
) -> PreparedDataset:
    return prepare_dataset(
        path,
        tokenizer,
        needs,
        max_tokens,
        too_long,
        out,
        "test-tokenizer",
        vocab_size=vocab_size,
        trained=trained,
    )


def test_columns_hold_the_ids_and_the_counts_add_up(
    write_rows: RowWriter, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    path = write_rows(triplet_row(number) for number in range(70))
    result = prepare(path, tokenizer, tmp_path / "out")
    assert result.dataset.column_names == ["id", *NEEDS.columns]
    assert result.dataset.features["chosen"].feature.dtype == "int32"
    assert len(result.dataset) == 70
    row = result.dataset[69]
    assert row["id"] == "t69"
    assert tokenizer.decode(row["chosen"]) == "The answer is: 1960<|im_end|>"
    assert "short question 69" in tokenizer.decode(row["prompt_short"])
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["in"], summary["kept"], summary["dropped"]) == (70, 70, 0)
    assert summary["tokenizer"] == "test-tokenizer"
    short, long = ([len(r[name]) for r in result.dataset] for name in ("prompt_short", "prompt_long"))
    assert summary["tokens"]["prompt_short"]["mean"] == round(sum(short) / 70, 2)
    assert summary["tokens"]["prompt_long"]["max"] == max(long)
    assert summary["rho"] == round(sum(short) / sum(long), 4)
    assert load_prepared(tmp_path / "out").dataset[69] == row
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out", "rows.jsonl"]


def test_only_what_the_objective_needs(
    write_rows: RowWriter, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    result = prepare(write_rows([triplet_row()]), tokenizer, tmp_path / "out", needs=Needs(("long_chosen",)))
    assert result.dataset.column_names == ["id", "prompt_long", "chosen"]
    assert result.summary["rho"] is None


def test_a_sample_that_is_too_long(write_rows: RowWriter, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    rows = [triplet_row(number) for number in range(5)]
    rows[3]["chosen"] = "word " * 300
    path = write_rows(rows)
    with pytest.raises(
        UserError, match=r"rows\.jsonl:4: sample 't3': long_chosen has \d+ tokens.*data\.max_tokens=400"
    ):
        prepare(path, tokenizer, tmp_path / "out", max_tokens=400)
    assert not (tmp_path / "out").exists()
    result = prepare(path, tokenizer, tmp_path / "out", max_tokens=400, too_long="drop")
    assert result.dataset["id"][:] == ["t0", "t1", "t2", "t4"]
    assert (result.summary["in"], result.summary["kept"], result.summary["dropped"]) == (5, 4, 1)
    (dropped,) = [json.loads(line) for line in (tmp_path / "out" / "dropped.jsonl").read_text().splitlines()]
    assert dropped["id"] == "t3"
    assert "data.max_tokens=400" in dropped["reason"]
    with pytest.raises(UserError, match="none of the 5 samples fits"):
        prepare(path, tokenizer, tmp_path / "out", max_tokens=5, too_long="drop")


def test_the_limit_is_exact_and_looks_only_at_sequences_that_run(
    write_rows: RowWriter, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    # a long rejected answer, which SoLo with align=chosen never puts after the long prompt
    path = write_rows([triplet_row(rejected="word " * 20)])
    row = prepare(path, tokenizer, tmp_path / "out").dataset[0]
    pairs = [("prompt_short", "rejected"), ("prompt_long", "chosen")]
    longest = max(len(row[prompt]) + len(response) for prompt, response in ((p, row[r]) for p, r in pairs))
    assert longest < len(row["prompt_long"]) + len(row["rejected"])
    prepare(path, tokenizer, tmp_path / "out", max_tokens=longest)
    with pytest.raises(UserError, match=r"data\.max_tokens"):
        prepare(path, tokenizer, tmp_path / "out", max_tokens=longest - 1)


def test_the_same_inputs_are_not_tokenized_again(
    write_rows: RowWriter, make_tokenizer: TokenizerMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, tokenizer, out = write_rows([triplet_row()]), make_tokenizer("qwen"), tmp_path / "out"
    first = prepare(path, tokenizer, out)
    with monkeypatch.context() as patch:
        patch.setattr(module, "_write", lambda *_: pytest.fail("worked again"))
        assert prepare(path, make_tokenizer("qwen"), out).fingerprint == first.fingerprint
    inputs = [
        first.summary["inputs"],
        prepare(path, tokenizer, out, max_tokens=999).summary["inputs"],
        prepare(path, tokenizer, out, too_long="drop").summary["inputs"],
        prepare(path, tokenizer, out, needs=Needs(("long_chosen",))).summary["inputs"],
        prepare(path, make_tokenizer("llama"), out).summary["inputs"],
        prepare(write_rows([triplet_row(1)]), tokenizer, out).summary["inputs"],
    ]
    assert len(set(inputs)) == 6
    assert load_prepared(out).dataset["id"][:] == ["t1"]


def test_a_killed_run_leaves_nothing_half(
    write_rows: RowWriter, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = write_rows([triplet_row()]), tmp_path / "out"
    prepare(path, tokenizer, out)
    (tmp_path / ".out.tmp").mkdir()
    (tmp_path / ".out.tmp" / "left by a kill").touch()
    with monkeypatch.context() as patch:
        patch.setattr(module.json, "dumps", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            prepare(path, tokenizer, out, max_tokens=999)
    assert len(load_prepared(out).dataset) == 1
    prepare(path, tokenizer, out, max_tokens=999)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out", "rows.jsonl"]


def test_folders_that_hold_something_else(
    write_rows: RowWriter, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").touch()
    with pytest.raises(UserError, match="holds other files"):
        prepare(write_rows([triplet_row()]), tokenizer, tmp_path / "thesis")
    with pytest.raises(UserError, match="no prepared data set"):
        load_prepared(tmp_path / "thesis")


def test_bad_data_stops_before_anything_is_tokenized(
    write_rows: RowWriter, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_rows([*(triplet_row(number) for number in range(100)), triplet_row(100, chosen="")])
    monkeypatch.setattr(module.TripletEncoder, "encode", lambda *_: pytest.fail("tokenized"))
    with pytest.raises(UserError, match=r"rows\.jsonl:101: field chosen: is empty"):
        prepare(path, tokenizer, tmp_path / "out")


def test_a_saved_dataset_is_read_like_a_file(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    rows = [triplet_row(number) for number in range(3)]
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    assert len(prepare(tmp_path / "saved", tokenizer, tmp_path / "out").dataset) == 3


def test_the_fingerprint_is_of_the_token_ids_alone(
    write_rows: RowWriter, make_tokenizer: TokenizerMaker, tmp_path: Path
) -> None:
    rows = [triplet_row(number) for number in range(40)]
    tokenizer = make_tokenizer("qwen")
    first = prepare(write_rows(rows), tokenizer, tmp_path / "a").fingerprint
    described = [row | {"note": "a field that nobody reads"} for row in rows]
    assert prepare(write_rows(described, "other.jsonl"), tokenizer, tmp_path / "b", max_tokens=999).fingerprint == first
    others = [rows[::-1], rows[:-1], [*rows[:-1], triplet_row(39, chosen="1961")], [triplet_row(7), *rows[1:7]]]
    fingerprints = [prepare(write_rows(r), tokenizer, tmp_path / "c").fingerprint for r in others]
    fingerprints.append(prepare(write_rows(rows), make_tokenizer("llama"), tmp_path / "c").fingerprint)
    assert len({first, *fingerprints}) == 6


def test_a_run_in_progress_keeps_its_token_ids(
    write_rows: RowWriter, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    path, out = write_rows([triplet_row(number) for number in range(3)]), tmp_path / "out"
    prepare(path, tokenizer, out)
    # as earlier versions wrote it: under a hash of the inputs and of source code
    summary = json.loads((out / "summary.json").read_text())
    old = {key: value for key, value in summary.items() if key not in ("inputs", "largest_id", "special_text")}
    (out / "summary.json").write_text(json.dumps(old | {"fingerprint": "of an earlier version"}))
    again = prepare(path, tokenizer, out, trained="")
    assert again.fingerprint == "of an earlier version", "its reference scores are found again"
    assert again.summary["largest_id"] == summary["largest_id"]
    assert prepare(path, tokenizer, out, trained="").fingerprint == again.fingerprint
    changed = write_rows([triplet_row(number, chosen="It is 1961.") for number in range(3)])
    with pytest.raises(UserError, match=r"other token ids than this run was trained on .*trainer\.resume=never"):
        prepare(changed, tokenizer, out, trained="")
    assert load_prepared(out).dataset[2] == again.dataset[2]
    assert prepare(changed, tokenizer, out, trained=prepare(changed, tokenizer, tmp_path / "other").fingerprint)
    prepare(path, tokenizer, out)
    assert prepare(changed, tokenizer, out).fingerprint not in (again.fingerprint, summary["fingerprint"])


def test_a_token_id_beyond_the_vocabulary(
    write_rows: RowWriter, make_tokenizer: TokenizerMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = make_tokenizer("qwen")
    size = len(tokenizer)
    tokenizer.add_tokens(["<|tool|>", "<|unused|>"], special_tokens=True)
    tokenizer.pad_token = "<|unused|>"  # padding is seen by nothing
    rows = [triplet_row(number) for number in range(50)]
    rows[40]["prompt_long"] = [{"role": "user", "content": "Use <|tool|> here"}]
    path, out = write_rows(rows), tmp_path / "out"
    error = rf"rows\.jsonl:41: field prompt_long: token '<\|tool\|>' has id {size}, .*vocab_size={size}:"
    with pytest.raises(UserError, match=error):
        prepare(path, tokenizer, out, vocab_size=size)
    assert not out.exists()
    prepare(path, tokenizer, out, vocab_size=size + 1)
    with monkeypatch.context() as patch:
        patch.setattr(module, "_write", lambda *_: pytest.fail("worked again"))
        with pytest.raises(UserError, match=error):
            prepare(path, tokenizer, out, vocab_size=size)
    # a row that is left out, and one that the objective does not read, need no embedding
    rows[40]["prompt_long"][0]["content"] += " word" * 500
    kept = prepare(write_rows(rows), tokenizer, tmp_path / "kept", vocab_size=size, max_tokens=400, too_long="drop")
    assert kept.summary["dropped"] == 1
    prepare(write_rows(rows), tokenizer, tmp_path / "short", vocab_size=size, needs=Needs(("short_chosen",)))


def test_an_end_token_beyond_the_vocabulary_and_a_larger_tokenizer(
    write_rows: RowWriter, make_tokenizer: TokenizerMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = make_tokenizer(None)
    size = len(tokenizer)
    tokenizer.add_tokens(["<|done|>"], special_tokens=True)
    tokenizer.eos_token = "<|done|>"
    path = write_rows([{"id": 1, "prompt_short": "a", "prompt_long": "b", "chosen": "c", "rejected": "d"}])
    with pytest.raises(UserError, match=rf"rows\.jsonl:1: field chosen: token '<\|done\|>' has id {size},"):
        prepare(path, tokenizer, tmp_path / "out", vocab_size=size)
    last = tokenizer.convert_ids_to_tokens(size - 1)
    monkeypatch.setattr(module, "_hash_files", lambda *_: pytest.fail("read the data"))
    with pytest.raises(UserError, match=rf"tokenizer of test-tokenizer: token '{last}' has id {size - 1}, beyond"):
        prepare(path, tokenizer, tmp_path / "out", vocab_size=size - 1)


def test_equal_answers_are_counted_and_named_and_refused_where_there_are_no_others(
    write_rows: RowWriter, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [triplet_row(number) for number in range(4)]
    rows[1]["rejected"] = rows[1]["chosen"]
    rows[3]["rejected"] = rows[3]["chosen"] + " "
    path = write_rows(rows)
    assert prepare(path, tokenizer, tmp_path / "out").summary["same_answers"] == 2
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("data: 2 samples have the same answer as chosen and as rejected")
    assert line.endswith(f": {path}:2; {path}:4")
    same = write_rows([rows[1], rows[3]])
    with pytest.raises(UserError, match=rf"{same}: chosen and rejected are the same answer in every row, .*:1"):
        prepare(same, tokenizer, tmp_path / "same")
    assert not (tmp_path / "same").exists()
    prepare(same, tokenizer, tmp_path / "sft", needs=Needs(("long_chosen",)))


def test_the_text_of_special_tokens_in_answers_is_counted_and_named(
    write_rows: RowWriter, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [triplet_row(number) for number in range(9)]
    for number in (2, 4, 5, 7):
        rows[number]["rejected"] = f"It <|im_end|> is {number}"
    prompt = {"prompt_short": [{"role": "user", "content": "What does <|eot|> mean?"}]}
    prepare(write_rows([*rows, triplet_row(9, **prompt)]), tokenizer, tmp_path / "out")
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("data: 4 answers hold the text of a special token, which is trained as letters: ")
    named = [f"{tmp_path / 'rows.jsonl'}:{number + 1}: field rejected: '<|im_end|>'" for number in (2, 4, 5)]
    assert line.endswith("; ".join([*named, "…"]))
    assert load_prepared(tmp_path / "out").summary["special_text"] == 4


def test_long_prompts_that_are_not_longer_are_warned_of(
    write_rows: RowWriter, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("solopo_nemo").propagate = True
    prompt = triplet_row(0)["prompt_short"]
    path = write_rows([triplet_row(0), triplet_row(1, prompt_short=prompt, prompt_long=prompt)])
    prepare(path, tokenizer, tmp_path / "out")
    assert f"data: 1 samples have a long prompt that is no longer than the short one: {path}:2" in caplog.text
