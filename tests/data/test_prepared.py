from __future__ import annotations

import json
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
) -> PreparedDataset:
    return prepare_dataset(path, tokenizer, needs, max_tokens, too_long, out, "test-tokenizer")


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
    fingerprints = {
        first.fingerprint,
        prepare(path, tokenizer, out, max_tokens=999).fingerprint,
        prepare(path, tokenizer, out, too_long="drop").fingerprint,
        prepare(path, tokenizer, out, needs=Needs(("long_chosen",))).fingerprint,
        prepare(path, make_tokenizer("llama"), out).fingerprint,
        prepare(write_rows([triplet_row(1)]), tokenizer, out).fingerprint,
    }
    assert len(fingerprints) == 6
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
