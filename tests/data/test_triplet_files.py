"""Triplet files: every kind that is read gives the same samples, and a damaged one is named by file and row."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from samples import triplet_row

from solopo_nemo.data.triplets import Needs, read_triplets
from solopo_nemo.runtime.errors import UserError

SOLO = Needs(("short_chosen", "short_rejected", "long_chosen"))
LONG_PO = Needs(("long_chosen", "long_rejected"))
USER = {"role": "user", "content": "Where?"}


def one(**changes: Any) -> str:
    return json.dumps(triplet_row(**changes))


def vanilla(prompt: list[dict[str, Any]]) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": "Here.", "rejected": "There."}


def save_jsonl(rows: list[dict[str, Any]], path: Path) -> Path:
    path = path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    return path


def save_gzip(rows: list[dict[str, Any]], path: Path) -> Path:
    path = path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(json.dumps(row) for row in rows).encode("utf-8-sig")))
    return path


def save_parquet(rows: list[dict[str, Any]], path: Path) -> Path:
    path = path / "rows.parquet"
    datasets.Dataset.from_list(rows).to_parquet(path)
    return path


def save_dataset(rows: list[dict[str, Any]], path: Path) -> Path:
    datasets.Dataset.from_list(rows).save_to_disk(path / "saved")
    return path / "saved"


def save_dataset_dict(rows: list[dict[str, Any]], path: Path) -> Path:
    datasets.DatasetDict({"train": datasets.Dataset.from_list(rows)}).save_to_disk(path / "saved")
    return path / "saved"


def save_directory(rows: list[dict[str, Any]], path: Path) -> Path:
    (path / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[1:]))
    (path / "a.jsonl").write_text(json.dumps(rows[0]) + "\n")
    (path / "a.jsonl.rejects.jsonl").write_text('{"error": "..."}\n')
    (path / "notes.txt").write_text("not data")
    return path


def save_array(rows: list[dict[str, Any]], path: Path) -> Path:
    (path / "rows.json").write_text(json.dumps(rows, indent=2), encoding="utf-8-sig")
    return path / "rows.json"


def save_json_lines(rows: list[dict[str, Any]], path: Path) -> Path:
    return save_jsonl(rows, path).rename(path / "rows.json")


def save_clone(rows: list[dict[str, Any]], path: Path) -> Path:
    for name, part in (("train-00000-of-00002", rows[:2]), ("train-00001-of-00002", rows[2:]), ("test", rows[:1])):
        (path / "data").mkdir(exist_ok=True)
        datasets.Dataset.from_list(part).to_parquet(path / "data" / f"{name}.parquet")
    for file in ("README.md", "dataset_infos.json", ".git/rows.jsonl"):
        (path / file).parent.mkdir(exist_ok=True)
        (path / file).write_text("{}")
    return path


SAVERS = [
    *(save_jsonl, save_gzip, save_parquet, save_dataset, save_dataset_dict, save_directory),
    *(save_array, save_json_lines, save_clone),
]


@pytest.mark.parametrize("save", SAVERS)
def test_every_kind_of_file_gives_the_same_triplets(
    save: Callable[[list[dict[str, Any]], Path], Path], tmp_path: Path
) -> None:
    rows = [triplet_row(number, chosen=f"Göttingen {number}") for number in range(5)]
    triplets = list(read_triplets(save(rows, tmp_path), SOLO))
    assert [t.id for t in triplets] == [f"t{number}" for number in range(5)]
    for triplet, row in zip(triplets, rows, strict=True):
        assert {column: getattr(triplet, column) for column in SOLO.columns} == {c: row[c] for c in SOLO.columns}


@pytest.mark.parametrize("save", [save_parquet, save_dataset])
def test_nulls_that_arrow_writes(save: Callable[[list[dict[str, Any]], Path], Path], tmp_path: Path) -> None:
    def called(**arguments: str) -> list[dict[str, Any]]:
        call = {"function": {"name": "f", "arguments": arguments}}
        return [USER, {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "content": "x"}]

    first, second = read_triplets(save([vanilla([USER]), vanilla(called(x="1"))], tmp_path), LONG_PO)
    assert first.prompt_long == [USER]
    assert second.prompt_long == [USER, called(x="1")[1] | {"content": None}, called()[2]]
    (tmp_path / "other").mkdir()
    path = save([vanilla(called(x="1")), vanilla(called(y="1"))], tmp_path / "other")
    with pytest.raises(UserError, match=r"row 0: field prompt\[1\]\.tool_calls: holds null, which Arrow files write"):
        list(read_triplets(path, LONG_PO))


def test_broken_json_at_line_4711(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    lines = [one(id=f"t{number}") for number in range(5000)]
    lines[4710] = lines[4710][:-9]
    path.write_text("\n".join(lines))
    with pytest.raises(UserError, match=r"rows\.jsonl:4711: broken JSON at column \d+"):
        list(read_triplets(path, SOLO))


def test_wrong_encoding(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(
        (one() + "\n").encode() + json.dumps(triplet_row(1, chosen="é"), ensure_ascii=False).encode("latin-1")
    )
    with pytest.raises(UserError, match=r"rows\.jsonl:2: not UTF-8 text \(byte 0xe9"):
        list(read_triplets(path, SOLO))


@pytest.mark.parametrize("damage", [lambda data: data[:-40], lambda data: b"no gzip at all", lambda data: data[:20]])
def test_damaged_gzip(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(damage(gzip.compress("\n".join(one(id=f"t{n}") for n in range(300)).encode())))
    with pytest.raises(UserError, match=r"rows\.jsonl\.gz:\d+: truncated or damaged gzip"):
        list(read_triplets(path, SOLO))


@pytest.mark.parametrize("save", [save_parquet, save_dataset])
def test_arrow_errors_name_the_row(save: Callable[[list[dict[str, Any]], Path], Path], tmp_path: Path) -> None:
    rows = [triplet_row(0), triplet_row(1), triplet_row(2, chosen=" ")]
    with pytest.raises(UserError, match=r"row 2: field chosen: is empty"):
        list(read_triplets(save(rows, tmp_path), SOLO))


def test_paths_without_data(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "table.csv").write_text("a,b")
    (tmp_path / "bad.parquet").write_text("no parquet")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe.jsonl")
    splits = datasets.Dataset.from_list([triplet_row()])
    datasets.DatasetDict({"train": splits, "test": splits}).save_to_disk(tmp_path / "splits")
    cases = {
        "missing.jsonl": "no such file or directory",
        "empty.jsonl": "no samples in it",
        "table.csv": r"unknown kind of file: name it \.jsonl",
        "bad.parquet": "not a readable parquet file",
        "folder": "no data in this directory",
        "pipe.jsonl": "a pipe or a device",
        "splits": "holds several splits: give one of .*train",
    }
    for name, message in cases.items():
        with pytest.raises(UserError, match=message):
            list(read_triplets(tmp_path / name, SOLO))


def test_a_float_id_is_the_whole_number_that_pandas_made_it_from(tmp_path: Path) -> None:
    path = save_parquet([triplet_row(0, id=17.0), triplet_row(1, id=2.0**53)], tmp_path)
    assert [triplet.id for triplet in read_triplets(path, SOLO)] == ["17", "9007199254740992"]
