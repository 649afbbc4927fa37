"""The samples file: nothing finished is lost, nothing of other settings is mixed in."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from pair_samples import RIGHT, SAMPLING, WRONG

from solopo_nemo.builders.pairs.backend import Sample, Sampling
from solopo_nemo.builders.pairs.source import Asked
from solopo_nemo.builders.pairs.store import SampleStore
from solopo_nemo.runtime.errors import RunFault, UserError


def asked(id_: str = "q0", prompt: str = "ask", answer: str = "Gold") -> Asked:
    return Asked(id_, {"short": prompt, "long": "long " + prompt}, (answer,), {})


SAMPLES = [Sample(RIGHT, cut=False), Sample(WRONG, cut=False), Sample(RIGHT + "!", cut=True), Sample("", cut=False)]


def filled(path: Path) -> Path:
    with SampleStore(path, SAMPLING) as store:
        for name in ("q0", "q1"):
            store.add(asked(name), "short", SAMPLES)
    return path


def test_samples_are_found_again(tmp_path: Path) -> None:
    path = filled(tmp_path / "new" / "s.sqlite")
    before = path.read_bytes()
    with SampleStore(path, SAMPLING) as store:
        for name in ("q0", "q1"):
            entry = store.finished(asked(name), "short")
            assert entry is not None
            assert (entry.verdict, entry.right, entry.finished, entry.cut, entry.unprefixed) == ("pair", 1, 2, 2, 0)
            assert store.texts(asked(name), "short") == ([RIGHT], [WRONG])
        assert store.finished(asked("q0"), "long") is None
        assert store.finished(asked("q2"), "short") is None
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("texts", "verdict"),
    [([RIGHT] * 4, "all_right"), ([WRONG, "", "", WRONG], "all_wrong"), ([""] * 4, "none_finished")],
)
def test_verdicts_that_drop_a_question(tmp_path: Path, texts: list[str], verdict: str) -> None:
    with SampleStore(tmp_path / "s.sqlite", SAMPLING) as store:
        store.add(asked(), "short", [Sample(text, cut=False) for text in texts])
        entry = store.finished(asked(), "short")
        assert entry is not None and entry.verdict == verdict


def test_a_prompt_is_finished_once_all_its_samples_are_there(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    for number, sample in enumerate(SAMPLES):
        with SampleStore(path, SAMPLING) as store:
            assert store.count(asked(), "short") == number
            assert store.finished(asked(), "short") is None
            store.add(asked("q1"), "short", [Sample(WRONG, cut=False)])
            store.add(asked(), "short", [sample])
    with SampleStore(path, SAMPLING) as store, SampleStore(filled(tmp_path / "at_once.sqlite"), SAMPLING) as other:
        entry, at_once = store.finished(asked(), "short"), other.finished(asked(), "short")
        assert entry is not None and at_once is not None
        assert entry == at_once
        assert store.texts(asked(), "short") == ([RIGHT], [WRONG])


WRITER = """
import sys
from pathlib import Path
from test_pairs_store import SAMPLES, SAMPLING, SampleStore, asked

with SampleStore(Path(sys.argv[1]), SAMPLING) as store:
    for number in range(int(sys.argv[2]), 10**6):
        store.add(asked(f"q{number}"), "short", SAMPLES)
        print(number, flush=True)
"""


def test_kill_loses_nothing_that_was_confirmed(tmp_path: Path) -> None:
    path, kept = tmp_path / "s.sqlite", 0
    folders = (Path(__file__).parent, Path(__file__).parents[1] / "support", Path(__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": ":".join(map(str, folders))}
    for confirmed in (1, 7, 30):
        command = [sys.executable, "-c", WRITER, str(path), str(kept)]
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            last = [int(writer.stdout.readline()) for _ in range(confirmed)][-1]
            writer.kill()
        with SampleStore(path, SAMPLING) as store:
            while store.finished(asked(f"q{kept}"), "short"):
                assert store.texts(asked(f"q{kept}"), "short") == ([RIGHT], [WRONG])
                kept += 1
            assert kept > last
            assert not store.count(asked(f"q{kept}"), "short"), "a batch is kept as a whole or not at all"


EARLIER = (
    {"format": 1, "sampling": asdict(SAMPLING)},
    *(
        {
            "id": f"q{number}",
            "side": "short",
            "digest": asked(f"q{number}").digest("short"),
            "samples": [
                {"text": RIGHT, "answer": "Gold", "prefixed": True, "right": True, "cut": False},
                {"text": WRONG, "answer": "Tin", "prefixed": True, "right": False, "cut": False},
                {"text": RIGHT + "!", "answer": "Gold!", "prefixed": True, "right": True, "cut": True},
                {"text": "", "answer": "", "prefixed": False, "right": False, "cut": False},
            ],
        }
        for number in range(2)
    ),
)
"""Lines as version 0.1 wrote them."""


def test_the_samples_of_version_0_1_are_taken_over_once_however_its_file_was_cut(tmp_path: Path) -> None:
    lines = [json.dumps(line, ensure_ascii=False).encode() + b"\n" for line in EARLIER]
    ends = [sum(map(len, lines[: number + 1])) for number in range(3)]
    for size in (*range(0, ends[-1], 97), ends[-1] - 1, *ends):
        path = tmp_path / str(size) / "s.sqlite"
        path.parent.mkdir(exist_ok=True)
        path.with_suffix(".jsonl").write_bytes(b"".join(lines)[:size])
        for _ in range(2):
            with SampleStore(path, SAMPLING) as store:
                for number in range(2):
                    found = store.finished(asked(f"q{number}"), "short")
                    assert (found is not None) == (size >= ends[number + 1])
        assert path.with_suffix(".jsonl").stat().st_size == size
    with SampleStore(filled(tmp_path / "s.sqlite"), SAMPLING) as now, SampleStore(path, SAMPLING) as before:
        for number in range(2):
            assert now.finished(asked(f"q{number}"), "short") == before.finished(asked(f"q{number}"), "short")
            assert now.texts(asked(f"q{number}"), "short") == before.texts(asked(f"q{number}"), "short")


def test_samples_of_an_earlier_rule_are_scored_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "s.sqlite"
    texts = ("The answer is: No answer.", "The answer is: No.", "The answer is: Norway", "<think>No")
    no = asked(answer="no")
    with SampleStore(path, SAMPLING) as store:
        store.add(no, "short", [Sample(text, cut=False) for text in texts])
    with closing(sqlite3.connect(path)) as earlier:  # as format 2 had it: no rule, and all that holds "no" is right
        earlier.executescript(
            "ALTER TABLE samples DROP COLUMN rule; ALTER TABLE samples DROP COLUMN reason;"
            "PRAGMA user_version = 2; UPDATE samples SET correct = 1"
        )
    for literal, rule, right, finished in ((False, "1", 1, 3), (True, "2", 3, 3), (False, "literal", 1, 3)):
        with SampleStore(path, SAMPLING, literal=literal) as store:
            entry = store.finished(no, "short")
            assert entry is not None and (entry.right, entry.finished) == (right, finished)
        assert f"samples scored by answer rule {rule} are scored again by rule {store.rule}" in capsys.readouterr().err
    with SampleStore(path, SAMPLING):
        assert capsys.readouterr().err == ""


def test_samples_of_version_0_1_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    lines = [json.dumps(line) + "\n" for line in EARLIER]
    path.with_suffix(".jsonl").write_text("".join(lines))
    for _ in range(2):
        with pytest.raises(UserError, match=r"s\.jsonl: holds samples of other settings, seed 3 \(now 4\)"):
            SampleStore(path, replace(SAMPLING, seed=4))
    for damaged in ('{"id": 1}\n', "[]\n", "{\n"):
        path.with_suffix(".jsonl").write_text(lines[0] + damaged + lines[2])
        with pytest.raises(UserError, match=r"s\.jsonl:2: "):
            SampleStore(path, SAMPLING)


@pytest.mark.parametrize(
    "change", [{"model": "other"}, {"temperature": 1.0}, {"samples": 8}, {"seed": 4}, {"batch": 2}]
)
def test_other_settings_are_refused(tmp_path: Path, change: dict[str, object]) -> None:
    path = filled(tmp_path / "s.sqlite")
    name = next(iter(change))
    with pytest.raises(UserError, match=rf"other settings, {name} .* \(now .*another --out"):
        SampleStore(path, replace(SAMPLING, **change))  # type: ignore[arg-type]


def test_settings_bind_only_once_there_are_samples(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    with SampleStore(path, replace(SAMPLING, model="mistyped")):
        pass
    with SampleStore(filled(path), SAMPLING) as store:
        assert store.finished(asked(), "short")


@pytest.mark.parametrize("other", [asked(prompt="changed"), asked(answer="Tin")])
def test_another_prompt_or_answer_under_the_same_id_is_refused(tmp_path: Path, other: Asked) -> None:
    with SampleStore(filled(tmp_path / "s.sqlite"), SAMPLING) as store, pytest.raises(UserError, match="'q0'"):
        store.finished(other, "short")


def test_what_is_no_samples_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    path.write_text("notes" * 1000)
    with pytest.raises(UserError, match=r"s\.sqlite: cannot hold samples \(file is not a database\)"):
        SampleStore(path, SAMPLING)
    filled(tmp_path / "later.sqlite")
    with closing(sqlite3.connect(tmp_path / "later.sqlite")) as later:
        later.execute("PRAGMA user_version = 99")
    with pytest.raises(UserError, match="later version"):
        SampleStore(tmp_path / "later.sqlite", SAMPLING)


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    with (
        pytest.raises(RunFault, match=r"s\.sqlite: database or disk is full: free space"),
        SampleStore(tmp_path / "s.sqlite", SAMPLING) as store,
    ):
        store._db.execute("PRAGMA max_page_count = 10")
        store.add(asked(), "short", [Sample(RIGHT * 4096, cut=False)])


def test_two_processes_do_not_share_a_file(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    for _ in range(2):  # without samples, and with some
        with SampleStore(path, SAMPLING), pytest.raises(UserError, match="another process"):
            SampleStore(path, SAMPLING)
        filled(path)


@pytest.mark.parametrize(
    "change",
    [
        {"samples": 0},
        {"temperature": 0.0},
        {"top_p": 0.0},
        {"max_new_tokens": 0},
        {"batch": -1},
        {"top_k": 0},
        {"extra_body": {"min_p": 0.1}},
    ],
)
def test_settings_that_cannot_work(change: dict[str, object]) -> None:
    with pytest.raises(UserError, match="--" + next(iter(change)).replace("_", "-")):
        Sampling(backend="hf", model="m", **change)  # type: ignore[arg-type]
