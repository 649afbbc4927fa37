"""Files and columns that a reader does not take as they are: refused with a way, or said."""

from __future__ import annotations

import json
import logging
import tracemalloc
from datetime import datetime
from pathlib import Path

import datasets
import pytest
from samples import RowWriter, triplet_row

from solopo_nemo.data.rows import data_files
from solopo_nemo.data.triplets import Needs, read_triplets
from solopo_nemo.runtime.errors import UserError

SOLO = Needs(("short_chosen", "short_rejected", "long_chosen"))
USER = {"role": "user", "content": "Where?"}

OTHER_FILES: dict[str, tuple[dict[str, str], str, str]] = {
    "csv": (
        {"a.csv": "id\n"},
        "a.csv",
        r"unknown kind .* pandas.read_csv\('a.csv', dtype=str, keep_default_na=False",
    ),
    "csv in a folder": (
        {"a.csv": "id\n"},
        "",
        r"no data in this directory: .* pandas.read_csv\('a.csv'",
    ),
    "two configurations": ({"en/train.jsonl": "", "fr/train.jsonl": ""}, "", r"several folders \(en, fr\): give one"),
    "pointer of git": ({"a.jsonl": "version https://git-lfs.github.com/spec/v1\n"}, "", "git lfs pull"),
    "two arrays": ({"a.json": "[]\n[]"}, "a.json", r"text after the array: '\[\]': remove it"),
    "name on the hub": ({}, "../user/data", "hf download --repo-type dataset user/data"),
}


@pytest.mark.parametrize("case", OTHER_FILES)
def test_other_files_are_refused_with_a_way(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, name, words = OTHER_FILES[case]
    monkeypatch.chdir(tmp_path)
    for file, content in files.items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(content)
    with pytest.raises(UserError, match=words):
        list(read_triplets("user/data" if case == "name on the hub" else tmp_path / name, SOLO))


def test_hidden_files_are_no_data(tmp_path: Path, write_rows: RowWriter) -> None:
    rows = write_rows([triplet_row()])
    for name in ("data/a.jsonl", "data/._a.jsonl", "data/.ipynb_checkpoints/a.jsonl", ".cache/a.jsonl"):
        (tmp_path / ".root" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / ".root" / name).write_bytes(rows.read_bytes())
    assert data_files(tmp_path / ".root") == [tmp_path / ".root/data/a.jsonl"]
    assert data_files(tmp_path / ".root/data") == [tmp_path / ".root/data/a.jsonl"]


def test_columns_that_are_not_read_are_said(write_rows: RowWriter, said: list[str]) -> None:
    row = triplet_row(prompt="p", tool_choice="auto", source="web", meta={}, score=None)
    for _ in range(2):
        list(read_triplets(write_rows([row]), SOLO))
    assert [message.partition(": ")[2] for message in said] == [
        "prompt, tool_choice: not read, though the name may be a prompt's: what belongs into it goes there",
        "columns that are not read: source",
    ]


def test_times_in_messages_are_iso_text(tmp_path: Path) -> None:
    when = datetime(2026, 11, 29, 12, 30)
    messages = [USER | {"name": when, "at": when}]
    datasets.Dataset.from_list([triplet_row(prompt_long=messages)]).to_parquet(tmp_path / "rows.parquet")
    (triplet,) = read_triplets(tmp_path, Needs(("long_chosen",)))
    assert triplet.prompt_long == [USER | {"name": "2026-11-29T12:30:00", "at": "2026-11-29T12:30:00"}]


def test_the_training_split_of_folders_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("solopo_nemo").propagate = True
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        datasets.Dataset.from_list([triplet_row()]).to_parquet(tmp_path / split / "rows.parquet")
    assert len(list(read_triplets(tmp_path, SOLO))) == 1
    assert "the training split is read (train/rows.parquet), and not test/rows.parquet" in caplog.text


@pytest.mark.parametrize(
    ("files", "read"),
    [
        ("train.jsonl validation.jsonl test.jsonl", "train.jsonl"),
        ("train-1.jsonl train-2.jsonl dev.jsonl", "train-1.jsonl train-2.jsonl"),
        ("My_Training.jsonl eval_0.jsonl", "My_Training.jsonl"),
        ("train-00000-of-00002.parquet train-00001-of-00002.parquet test-00000-of-00001.parquet", "train-0000*"),
        ("train.jsonl more.jsonl", "*"),
        ("test.jsonl", "*"),
        ("a.jsonl b.jsonl contest.jsonl", "*"),
        ("a.jsonl test.jsonl", None),
        ("train.jsonl a.jsonl test.jsonl", None),
        ("train_sft-00000-of-00001.parquet train_prefs-00000-of-00001.parquet", None),
    ],
)
def test_the_training_split_of_a_folder_is_read_and_the_others_are_named(
    files: str, read: str | None, tmp_path: Path, said: list[str]
) -> None:
    for name in files.split():
        (tmp_path / name).touch()
    if read is None:
        with pytest.raises(UserError, match=r"holds files of several splits \(.*\): give one file"):
            data_files(tmp_path)
        return
    found = {file for pattern in read.split() for file in tmp_path.glob(pattern)}
    assert set(data_files(tmp_path)) == set(data_files(tmp_path)) == found
    left = {name for name in files.split() if tmp_path / name not in found}
    assert len(said) == bool(left)
    assert all(name in said[0].partition("and not")[2] for name in left)


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with path.open("w") as stream:
        stream.writelines(json.dumps(triplet_row(number, chosen="word " * 20_000)) + "\n" for number in range(300))
    tracemalloc.start()
    assert sum(1 for _ in read_triplets(path, SOLO)) == 300
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert path.stat().st_size > 25 * 2**20
    assert peak < 3 * 2**20


def test_nan_stands_for_no_value(tmp_path: Path) -> None:
    row = triplet_row(0, system=float("nan"), tools=float("nan"))
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")  # of DataFrame.to_dict("records")
    (triplet,) = read_triplets(tmp_path / "rows.jsonl", SOLO)
    assert triplet.template == {}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row | {"chosen": float("nan")}) + "\n")
    with pytest.raises(UserError, match="field chosen: missing"):
        list(read_triplets(tmp_path / "rows.jsonl", SOLO))
