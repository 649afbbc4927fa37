"""The samples file: nothing finished is lost, nothing of other settings is mixed in."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from pair_samples import RIGHT, SAMPLING, WRONG

from solopo_nemo.builders.pairs.backend import Sample, Sampling
from solopo_nemo.builders.pairs.source import Asked
from solopo_nemo.builders.pairs.store import SampleStore
from solopo_nemo.runtime.errors import UserError


def asked(id_: str = "q0", prompt: str = "ask", answer: str = "Gold") -> Asked:
    return Asked(id_, {"short": prompt, "long": "long " + prompt}, (answer,), {})


SAMPLES = [Sample(RIGHT, cut=False), Sample(WRONG, cut=False), Sample(RIGHT + "!", cut=True), Sample("", cut=False)]


def filled(path: Path) -> Path:
    with SampleStore(path, SAMPLING) as store:
        for name in ("q0", "q1"):
            store.add(asked(name), "short", SAMPLES)
    return path


def test_samples_are_found_again(tmp_path: Path) -> None:
    path = filled(tmp_path / "new" / "samples.jsonl")
    before = path.read_bytes()
    with SampleStore(path, SAMPLING) as store:
        for name in ("q0", "q1"):
            entry = store.finished(asked(name), "short")
            assert entry is not None
            assert (entry.verdict, entry.right, entry.finished, entry.cut, entry.unprefixed) == ("pair", 1, 2, 2, 1)
            assert store.texts(asked(name), "short") == ([RIGHT], [WRONG])
        assert store.finished(asked("q0"), "long") is None
        assert store.finished(asked("q2"), "short") is None
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("texts", "verdict"),
    [([RIGHT] * 4, "all_right"), ([WRONG, "", "", WRONG], "all_wrong"), ([""] * 4, "none_finished")],
)
def test_verdicts_that_drop_a_question(tmp_path: Path, texts: list[str], verdict: str) -> None:
    with SampleStore(tmp_path / "s.jsonl", SAMPLING) as store:
        store.add(asked(), "short", [Sample(text, cut=False) for text in texts])
        entry = store.finished(asked(), "short")
        assert entry is not None and entry.verdict == verdict


def test_a_prompt_is_finished_once_all_its_samples_are_there(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    for number, sample in enumerate(SAMPLES):
        with SampleStore(path, SAMPLING) as store:
            assert store.count(asked(), "short") == number
            assert store.finished(asked(), "short") is None
            store.add(asked("q1"), "short", [Sample(WRONG, cut=False)])
            store.add(asked(), "short", [sample])
    with SampleStore(path, SAMPLING) as store, SampleStore(filled(tmp_path / "at_once.jsonl"), SAMPLING) as other:
        entry, at_once = store.finished(asked(), "short"), other.finished(asked(), "short")
        assert entry is not None and at_once is not None
        assert replace(entry, offsets=()) == replace(at_once, offsets=())
        assert store.texts(asked(), "short") == ([RIGHT], [WRONG])


def test_a_file_cut_anywhere_keeps_its_whole_lines_and_ends_the_same(tmp_path: Path) -> None:
    whole = filled(tmp_path / "whole.jsonl").read_bytes()
    ends = [index + 1 for index, byte in enumerate(whole) if byte == ord("\n")]
    path = tmp_path / "cut.jsonl"
    for size in range(0, len(whole) + 1, 7):
        path.write_bytes(whole[:size])
        with SampleStore(path, SAMPLING) as store:
            for number in range(2):
                found = store.finished(asked(f"q{number}"), "short")
                assert (found is not None) == (size >= ends[number + 1])
                if found is None:
                    store.add(asked(f"q{number}"), "short", SAMPLES)
        assert path.read_bytes() == whole


@pytest.mark.parametrize(
    "change", [{"model": "other"}, {"temperature": 1.0}, {"samples": 8}, {"seed": 4}, {"batch": 2}]
)
def test_other_settings_are_refused(tmp_path: Path, change: dict[str, object]) -> None:
    path = filled(tmp_path / "s.jsonl")
    name = next(iter(change))
    with pytest.raises(UserError, match=rf"other settings, {name} .* \(now .*another --out"):
        SampleStore(path, replace(SAMPLING, **change))  # type: ignore[arg-type]


def test_settings_bind_only_once_there_are_samples(tmp_path: Path) -> None:
    header = filled(tmp_path / "whole.jsonl").read_bytes().splitlines(keepends=True)[0]
    path = tmp_path / "s.jsonl"
    for start in (b"", header):
        path.write_bytes(start)
        with SampleStore(path, replace(SAMPLING, model="mistyped")):
            pass
        assert filled(path).read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


@pytest.mark.parametrize("other", [asked(prompt="changed"), asked(answer="Tin")])
def test_another_prompt_or_answer_under_the_same_id_is_refused(tmp_path: Path, other: Asked) -> None:
    with SampleStore(filled(tmp_path / "s.jsonl"), SAMPLING) as store, pytest.raises(UserError, match="'q0'"):
        store.finished(other, "short")


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = filled(tmp_path / "s.jsonl")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b'{"id": 1}\n' + lines[2])
    with pytest.raises(UserError, match=r"s\.jsonl:2: "):
        SampleStore(path, SAMPLING)


def test_two_processes_do_not_share_a_file(tmp_path: Path) -> None:
    path = filled(tmp_path / "s.jsonl")
    with SampleStore(path, SAMPLING), pytest.raises(UserError, match="another process"):
        SampleStore(path, SAMPLING)


@pytest.mark.parametrize(
    "change", [{"samples": 1}, {"temperature": 0.0}, {"top_p": 0.0}, {"max_new_tokens": 0}, {"batch": -1}]
)
def test_settings_that_cannot_work(change: dict[str, object]) -> None:
    with pytest.raises(UserError, match="--" + next(iter(change)).replace("_", "-")):
        Sampling(backend="hf", model="m", **change)  # type: ignore[arg-type]
