"""The tool as a user starts it, against a real server with a real model, and with the model itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import solopo_nemo
from solopo_nemo.data.synthetic import generate_triplets
from solopo_nemo.data.triplets import Needs, read_triplets

pytestmark = pytest.mark.slow

MODEL = Path(solopo_nemo.__file__).parent / "assets" / "tiny_qwen2"
ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools" / "sample_pairs.py"
SERVER = Path(__file__).with_name("chat_server.py")
KEY = "sk-not-a-real-key"
QUESTIONS = 24
SAMPLING = ["--samples", "6", "--temperature", "1.2", "--max-new-tokens", "64", "--on", "both", "--seed", "5"]
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONPATH": str(ROOT),
    "OPENAI_API_KEY": KEY,
}
DATASETS = ("pairs", *(f"pairs.{name}" for name in ("sft_short", "sft_long", "po_short", "po_long")))

Serve = Callable[..., tuple["subprocess.Popen[str]", int]]


@pytest.fixture(scope="module")
def contexts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("contexts") / "contexts.jsonl"
    with path.open("w") as stream:
        for row in generate_triplets(QUESTIONS, 1, short_paragraphs=8, long_paragraphs=12):
            kept = {name: row[name] for name in ("id", "prompt_short", "prompt_long", "answers")}
            stream.write(json.dumps(kept) + "\n")
    return path


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Starts a server and waits until it listens; every one is ended with the test."""
    processes: list[subprocess.Popen[str]] = []

    def start(*options: object) -> tuple[subprocess.Popen[str], int]:
        command = [sys.executable, str(SERVER), "--model", str(MODEL), "--name", "tiny", *map(str, options)]
        command += ["--log", str(tmp_path / "server.log")]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)
        processes.append(process)
        assert process.stdout is not None
        return process, int(process.stdout.readline())

    yield start
    for process in processes:
        process.kill()
        process.wait()


def command(contexts: Path, out: Path, port: int | None, *options: str) -> list[str]:
    local = ["--backend", "hf", "--model", str(MODEL)]
    remote = ["--backend", "openai", "--model", "tiny", "--base-url", f"http://127.0.0.1:{port}/v1"]
    remote += ["--concurrency", "2"]
    start = [sys.executable, str(TOOL), "--contexts", str(contexts), "--out", str(out / "pairs.jsonl")]
    return [*start, *(local if port is None else remote), *SAMPLING, "--json", *options]


def completed(arguments: list[str]) -> dict[str, Any]:
    done = subprocess.run(arguments, capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    assert KEY not in done.stdout + done.stderr
    summary: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert summary["in"] == summary["out"] + summary["rejected"] + summary["dropped"] == QUESTIONS
    return summary


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / f"{name}.jsonl").read_bytes() for name in DATASETS}


def sampled_lines(folder: Path) -> list[tuple[str, str]]:
    lines = (folder / "pairs.jsonl.samples.jsonl").read_text(encoding="utf-8").splitlines()[1:]
    return [(line["id"], line["side"]) for line in map(json.loads, lines)]


def stop_when(process: subprocess.Popen[bytes], samples: Path, lines: int, how: signal.Signals) -> int:
    """End a tool that has written so many lines and still works; return its exit code."""
    while process.poll() is None:
        if samples.exists() and samples.read_bytes().count(b"\n") > lines:
            process.send_signal(how)
            break
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.02)
    return process.wait()


def test_a_real_server_gives_datasets_that_the_recipes_read(serve: Serve, contexts: Path, tmp_path: Path) -> None:
    _, port = serve("--busy", 5)
    summary = completed(command(contexts, tmp_path, port))
    assert summary["samples"]["all"] == 6 * 2 * QUESTIONS
    assert summary["out"] >= 3 and summary["on_both"] >= 1
    for triplet in read_triplets(tmp_path / "pairs.jsonl", Needs(("short_chosen", "short_rejected", "long_chosen"))):
        assert triplet.chosen != triplet.rejected
    for name in ("po_short", "po_long"):
        assert list(read_triplets(tmp_path / f"pairs.{name}.jsonl", Needs(("long_chosen", "long_rejected"))))
    for path in tmp_path.iterdir():
        assert KEY.encode() not in path.read_bytes()
    again = completed(command(contexts, tmp_path, port))
    assert again["prompts"] == {"sampled": 0, "reused": 2 * QUESTIONS}


def test_a_server_that_goes_away_and_a_killed_tool_change_nothing(serve: Serve, contexts: Path, tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    _, port = serve()
    completed(command(contexts, tmp_path / "whole", port))
    log.unlink()

    # the server ends in the middle of its sixth answer, while the tool goes on asking, and comes back
    broken, port = serve("--die-after", 5)
    first = subprocess.Popen(command(contexts, tmp_path / "broken", port), env=ENVIRONMENT)
    try:
        assert broken.wait() == 1
        assert first.poll() is None
        serve("--port", port, "--busy", 3)
        samples = tmp_path / "broken" / "pairs.jsonl.samples.jsonl"
        assert stop_when(first, samples, 12, signal.SIGKILL) == -signal.SIGKILL
    finally:
        first.kill()
        first.wait()
    assert not (tmp_path / "broken" / "pairs.jsonl").exists()

    kept = len(sampled_lines(tmp_path / "broken"))
    summary = completed(command(contexts, tmp_path / "broken", port))
    assert summary["prompts"] == {"sampled": 2 * QUESTIONS - kept, "reused": kept}
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")
    units = sampled_lines(tmp_path / "broken")
    assert len(units) == len(set(units)) == 2 * QUESTIONS
    # what was under way when the tool was killed, two prompts at most, is all that was asked twice
    assert len(log.read_text().splitlines()) <= 2 * QUESTIONS + 2


def test_a_killed_tool_with_a_local_model_ends_with_the_same_files(contexts: Path, tmp_path: Path) -> None:
    completed(command(contexts, tmp_path / "whole", None))
    samples = tmp_path / "killed" / "pairs.jsonl.samples.jsonl"
    for lines, how, code in ((3, signal.SIGKILL, -signal.SIGKILL), (20, signal.SIGINT, 128 + signal.SIGINT)):
        process = subprocess.Popen(command(contexts, tmp_path / "killed", None), env=ENVIRONMENT)
        assert stop_when(process, samples, lines, how) == code
    samples.write_bytes(samples.read_bytes() + b'{"id": "2hop')
    summary = completed(command(contexts, tmp_path / "killed", None))
    assert summary["prompts"]["reused"] >= 20
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    name = "pairs.jsonl.samples.jsonl"
    assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def refused(arguments: list[str]) -> str:
    done = subprocess.run(arguments, capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 2
    line = done.stderr.splitlines()[-1]
    assert line.startswith("error:")
    return line


def test_what_the_user_can_mend_is_one_line(serve: Serve, contexts: Path, tmp_path: Path) -> None:
    assert "--samples 1" in refused(command(contexts, tmp_path, 1, "--samples", "1"))
    assert "cannot be reached" in refused(command(contexts, tmp_path, 1))
    _, port = serve()
    assert "--model other: the server at" in refused(command(contexts, tmp_path, port, "--model", "other"))
    assert not (tmp_path / "pairs.jsonl").exists()
