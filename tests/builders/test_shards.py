from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from processes import wait_until
from samples import RowWriter, musique_rows
from test_contexts import LONG, SHORT, build, check_row, lines, other_paragraphs, passages
from transformers import PreTrainedTokenizerFast
from zygote import forking

from solopo_nemo.builders.contexts.shards import ShardFolder
from solopo_nemo.runtime.errors import UserError
from solopo_nemo.runtime.output import beside

REPOSITORY = Path(__file__).resolve().parents[2]


def mixed_rows(count: int) -> list[dict[str, Any]]:
    """Some rows that are bad, and some that a rule drops."""
    rows = musique_rows(count)
    for number in range(3, count, 10):
        rows[number]["question"] = "\ud800"
        rows[number + 1]["answerable"] = False
    return rows


def results(out: Path) -> dict[str, bytes]:
    return {name: path.read_bytes() for name in ("rejects", "dropped") for path in [beside(out, name)]} | {
        "out": out.read_bytes()
    }


def test_shards_do_not_show(write_rows: RowWriter, tokenizer: PreTrainedTokenizerFast) -> None:
    source = write_rows(mixed_rows(30))
    whole, out = build(source, tokenizer, skip_bad=True)
    assert (whole["in"], whole["out"], whole["rejected"], whole["dropped"]) == (30, 24, 3, 3)
    wanted = results(out)
    summary, out = build(source, tokenizer, skip_bad=True, shard_rows=7)
    assert results(out) == wanted
    assert not out.with_name("out.jsonl.work").exists()
    timeless = [{k: v for k, v in s.items() if k != "seconds"} for s in (whole, summary)]
    assert timeless[0] == timeless[1]
    report = json.loads(out.with_name("out.jsonl.report.json").read_text())
    assert report == summary


def test_a_run_that_was_stopped_goes_on_with_the_missing_shards(
    write_rows: RowWriter, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_rows(mixed_rows(30))
    _, out = build(source, tokenizer, skip_bad=True)
    wanted = results(out)
    out.unlink()
    written: list[int] = []
    stop_after: list[int] = []
    true_write = ShardFolder.write

    def write(self: ShardFolder, number: int, *rest: Any) -> None:
        if len(written) in stop_after:
            raise KeyboardInterrupt
        true_write(self, number, *rest)
        written.append(number)

    monkeypatch.setattr(ShardFolder, "write", write)
    for limit in (2, 3):
        stop_after = [limit]
        with pytest.raises(KeyboardInterrupt):
            build(source, tokenizer, skip_bad=True, shard_rows=7)
        assert not out.exists()
    stop_after = []
    build(source, tokenizer, skip_bad=True, shard_rows=7)
    assert written == [0, 1, 2, 3, 4]
    assert results(out) == wanted
    # shards of another seed are of no use
    written.clear()
    stop_after = [2]
    with pytest.raises(KeyboardInterrupt):
        build(source, tokenizer, skip_bad=True, shard_rows=7, seed=1)
    stop_after = []
    build(source, tokenizer, skip_bad=True, shard_rows=7)
    assert written == [0, 1, 0, 1, 2, 3, 4]
    assert results(out) == wanted


def test_one_run_at_a_time(tmp_path: Path) -> None:
    folder = ShardFolder(tmp_path / "work")
    with (
        folder.opened({}),
        pytest.raises(UserError, match="another run writes here"),
        ShardFolder(folder.path).opened({}),
    ):
        pass


def test_a_folder_of_the_users_stays(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match="not written by this tool"), ShardFolder(tmp_path).opened({}):
        pass
    assert (tmp_path / "notes.txt").exists()


def test_several_lengths_are_nested(write_rows: RowWriter, tokenizer: PreTrainedTokenizerFast) -> None:
    rows = musique_rows(12)
    summary, out = build(write_rows(rows), tokenizer, long_tokens="1500-1800,2500,4000", limit=6)
    assert not out.exists()
    outs = {label: lines(out.with_name(f"out.{label}.jsonl")) for label in ("1500-1800", "2500", "4000")}
    assert list(summary["lengths"]) == list(outs)
    assert summary["long_tokens"] == summary["lengths"]["4000"]["tokens"]
    for number, row in enumerate(rows[:6]):
        written = [of_length[number] for of_length in outs.values()]
        assert len({json.dumps(one["prompt_short"]) for one in written}) == 1
        found = [set(passages(one["prompt_long"])) for one in written]
        assert found[0] < found[1] < found[2]
        for one in written:
            targets = (one["meta"]["short_target"], one["meta"]["long_target"])
            check_row(one, row, other_paragraphs(rows, row["id"]), tokenizer, targets)
        assert 1500 <= written[0]["meta"]["long_target"] <= 1800
    assert len({one["meta"]["long_target"] for one in outs["1500-1800"]}) > 1


def test_the_report(write_rows: RowWriter, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    rows = musique_rows(12)
    summary, out = build(write_rows(rows), tokenizer, report=tmp_path / "report")
    assert sorted(file.name for file in (tmp_path / "report").iterdir()) == ["evidence.png", "lengths.png"]
    evidence = summary["lengths"][str(LONG)]["evidence_position"]
    assert sum(evidence["tenths"]) == 24
    shares = []
    for row, source in zip(lines(out), rows, strict=True):
        # a passage as it is written: header, title, text and the blank line behind
        blocks = [len(f"{title}\n{text}\n\n") for title, text in passages(row["prompt_long"])]
        titles = [title for title, _ in passages(row["prompt_long"])]
        for paragraph in source["paragraphs"][:2]:
            place = titles.index(paragraph["title"])
            shares.append(sum(blocks[:place]) / (sum(blocks) - blocks[place]))
    assert evidence["mean"] == pytest.approx(sum(shares) / len(shares), abs=1e-3)


@pytest.mark.long
@pytest.mark.slow
@forking()
def test_one_and_four_workers_and_a_killed_run_write_the_same_bytes(
    write_rows: RowWriter, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    rows = mixed_rows(400)
    source = write_rows(rows)
    tokenizer.save_pretrained(tmp_path / "tokenizer")

    def command(out: Path, workers: int) -> list[str]:
        tool = [sys.executable, str(REPOSITORY / "tools" / "build_contexts.py"), "--json", "--skip-bad"]
        files = ["--source", str(source), "--tokenizer", str(tmp_path / "tokenizer"), "--out", str(out)]
        return [*tool, *files, "--short-tokens", str(SHORT), "--long-tokens", "4000-5000", "--workers", str(workers)]

    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    one, four, killed = (tmp_path / name / "out.jsonl" for name in ("one", "four", "killed"))
    for out, workers in ((one, 1), (four, 4)):
        subprocess.run(command(out, workers), env=environment, check=True, capture_output=True)
    assert results(one) == results(four)
    work = killed.with_name("out.jsonl.work")
    done: list[str] = []
    for workers in (2, 1):
        before = len(done)
        with subprocess.Popen(command(killed, workers), env=environment, stderr=subprocess.DEVNULL) as process:
            wait_until(lambda before=before: len(list(work.glob("0*.json"))) > before or process.poll() is not None)
            process.send_signal(signal.SIGKILL)
        done = sorted(file.name for file in work.glob("0*.json"))
        assert before < len(done) < 7, "killed half-way"
        assert not killed.exists()
    stamps = {name: (work / name).stat().st_mtime_ns for name in done}
    process = subprocess.Popen(command(killed, 2), env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    wait_until(lambda: len(list(work.glob("0*.json"))) > len(done) or process.poll() is not None)
    kept = {name: (work / name).stat().st_mtime_ns for name in done if (work / name).exists()}
    assert kept.items() <= stamps.items(), "finished shards are not made again"
    last = json.loads(process.communicate()[0].splitlines()[-1])
    assert process.returncode == 0
    assert (last["in"], last["out"], last["rejected"], last["dropped"]) == (400, 320, 40, 40)
    assert results(killed) == results(one)
    assert not work.exists()
