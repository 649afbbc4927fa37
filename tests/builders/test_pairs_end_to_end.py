"""The tool as a user starts it, against a real server with a real model, and with the model itself."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from llama_server import serving, write_gguf

import solopo_nemo
from solopo_nemo.builders.pairs.client import PROBE
from solopo_nemo.data.triplets import Needs, read_triplets
from solopo_nemo.embedded import generate_contexts
from solopo_nemo.runtime.cli import EXIT_RESUMABLE

pytestmark = pytest.mark.slow

MODEL = Path(solopo_nemo.__file__).parent / "assets" / "tiny_qwen2"
ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools" / "sample_pairs.py"
KEY = "sk-not-a-real-key"
QUESTIONS = 24
SAMPLES = 6
SAMPLING = ["--samples", str(SAMPLES), "--temperature", "1.2", "--max-new-tokens", "64", "--on", "both", "--seed", "5"]
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONPATH": str(ROOT),
    "OPENAI_API_KEY": KEY,
}
DATASETS = ("pairs", *(f"pairs.{name}" for name in ("sft_short", "sft_long", "po_short", "po_long")))

Serve = Callable[..., tuple["subprocess.Popen[str]", int]]


def write_contexts(path: Path, count: int, long_paragraphs: int = 40) -> Path:
    """Questions that the model answers right at times."""
    with path.open("w") as stream:
        for row in generate_contexts(count, 1, short_paragraphs=20, long_paragraphs=long_paragraphs):
            kept = {name: row[name] for name in ("id", "prompt_short", "prompt_long", "answers")}
            stream.write(json.dumps(kept) + "\n")
    return path


@pytest.fixture(scope="module")
def contexts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_contexts(tmp_path_factory.mktemp("contexts") / "contexts.jsonl", QUESTIONS)


@pytest.fixture(scope="module")
def gguf_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    write_gguf(MODEL, path)
    return path


@pytest.fixture
def serve(gguf_model: Path, tmp_path: Path) -> Iterator[Serve]:
    """Starts a server and waits until it listens; every one is ended with the test."""
    with ExitStack() as servers:
        numbers = count()

        def start(*options: object, slots: int = SAMPLES, context: int = 2048) -> tuple[subprocess.Popen[str], int]:
            requests = tmp_path / f"requests-{next(numbers)}"
            return servers.enter_context(
                serving(gguf_model, requests, "--name", "tiny", *options, "--slots", slots, "--context", context)
            )

        yield start


def asked(folder: Path) -> int:
    """About how many prompts servers were asked in a test: two that come at the same time may share a file.

    The prompt that identifies the model is not counted.
    """
    prompts = (file.read_text(encoding="utf-8") for file in folder.glob("requests-*/*"))
    return sum(PROBE[0]["content"] not in prompt for prompt in prompts)


def command(contexts: Path, out: Path, port: int | None, *options: str) -> list[str]:
    local = ["--backend", "hf", "--model", str(MODEL)]
    remote = ["--backend", "openai", "--model", "tiny", "--base-url", f"http://127.0.0.1:{port}/v1"]
    remote += ["--concurrency", "2"]
    start = [sys.executable, str(TOOL), "--contexts", str(contexts), "--out", str(out / "pairs.jsonl")]
    return [*start, *(local if port is None else remote), *SAMPLING, "--json", *options]


def completed(arguments: list[str], questions: int = QUESTIONS) -> dict[str, Any]:
    done = subprocess.run(arguments, capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    assert KEY not in done.stdout + done.stderr
    summary: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert summary["in"] == summary["out"] + summary["rejected"] + summary["dropped"] == questions
    return summary


def started(arguments: list[str]) -> subprocess.Popen[bytes]:
    """Start a tool that Ctrl-C reaches, also where these tests run in the background, as it is ignored there."""
    return subprocess.Popen(arguments, env=ENVIRONMENT, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / f"{name}.jsonl").read_bytes() for name in DATASETS}


def samples_file(folder: Path) -> Path:
    return folder / "pairs.jsonl.samples.sqlite"


def answers(folder: Path, *, in_use: bool = False) -> list[tuple[Any, ...]]:
    """All answers that are kept; in use, as far as the file can be read beside its writer."""
    address = f"{samples_file(folder).as_uri()}?{'immutable=1' if in_use else 'mode=ro'}"
    with closing(sqlite3.connect(address, uri=True)) as database:
        return database.execute("SELECT * FROM samples ORDER BY rowid").fetchall()


def sampled(folder: Path) -> Counter[tuple[str, str]]:
    """How many answers each prompt has."""
    return Counter((id_, side) for id_, side, *_ in answers(folder))


def wait_for_answers(process: subprocess.Popen[bytes], folder: Path, count: int) -> None:
    """Wait until a tool that still works has kept so many answers."""
    found = 0
    while found < count:
        assert process.poll() is None
        with suppress(sqlite3.Error):
            found = len(answers(folder, in_use=True))
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.005)


def stop_at(process: subprocess.Popen[bytes], folder: Path, count: int, how: signal.Signals) -> int:
    """End a tool that has kept so many answers and still works; return its exit code."""
    wait_for_answers(process, folder, count)
    process.send_signal(how)
    return process.wait()


def test_a_real_server_gives_datasets_that_the_recipes_read(serve: Serve, contexts: Path, tmp_path: Path) -> None:
    _, port = serve("--key", KEY)
    summary = completed(command(contexts, tmp_path, port))
    assert summary["samples"]["all"] == SAMPLES * 2 * QUESTIONS
    assert summary["out"] >= 3 and summary["on_both"] >= 1
    requests = asked(tmp_path)
    assert requests > QUESTIONS
    for triplet in read_triplets(tmp_path / "pairs.jsonl", Needs(("short_chosen", "short_rejected", "long_chosen"))):
        assert triplet.chosen != triplet.rejected
    for name in ("po_short", "po_long"):
        assert list(read_triplets(tmp_path / f"pairs.{name}.jsonl", Needs(("long_chosen", "long_rejected"))))
    for path in tmp_path.glob("pairs*"):
        assert KEY.encode() not in path.read_bytes()
    written = contents(tmp_path)
    again = completed(command(contexts, tmp_path, port))
    assert again["prompts"] == {"sampled": 0, "reused": 2 * QUESTIONS}
    assert asked(tmp_path) == requests
    assert contents(tmp_path) == written


def test_a_server_that_goes_away_and_a_killed_tool_lose_nothing(serve: Serve, tmp_path: Path) -> None:
    questions = 150
    contexts = write_contexts(tmp_path / "contexts.jsonl", questions)
    server, port = serve()
    out = tmp_path / "out"
    tool = started(command(contexts, out, port))
    try:
        # the server dies while it answers, the tool goes on asking until another one is there, and is killed itself
        wait_for_answers(tool, out, 20 * SAMPLES)
        server.kill()
        server.wait()
        _, port = serve("--port", port)
        before = len(answers(out, in_use=True))
        assert stop_at(tool, out, before + 20 * SAMPLES, signal.SIGKILL) == -signal.SIGKILL
    finally:
        tool.kill()
        tool.wait()
    assert not (out / "pairs.jsonl").exists()

    with closing(sqlite3.connect(samples_file(out))) as database:
        database.execute("SELECT count(*) FROM samples")  # takes back what the killed tool had begun to write
    kept, before_the_kill = len(sampled(out)), answers(out)
    assert 40 <= kept < 2 * questions
    summary = completed(command(contexts, out, port), questions)
    assert summary["prompts"] == {"sampled": 2 * questions - kept, "reused": kept}
    assert answers(out)[: len(before_the_kill)] == before_the_kill
    assert set(sampled(out).values()) == {SAMPLES} and len(sampled(out)) == 2 * questions
    # all that was asked twice is what was under way, two prompts at most, when the server and the tool were killed
    assert asked(tmp_path) <= 2 * questions + 4


def test_a_server_that_gives_few_answers_at_once(serve: Serve, contexts: Path, tmp_path: Path) -> None:
    _, port = serve(slots=2)
    (tmp_path / "one").mkdir()
    # without --batch the server refuses six at once, and is asked for one at a time
    for folder, batch in ((tmp_path / "one", []), (tmp_path, ["--batch", "2"])):
        summary = completed(command(contexts, folder, port, *batch))
        assert summary["samples"]["all"] == SAMPLES * 2 * QUESTIONS
        assert summary["sides"]["short"]["dropped_by_rule"].get("refused") is None


def test_prompts_beyond_the_servers_context_are_dropped(serve: Serve, tmp_path: Path) -> None:
    contexts = write_contexts(tmp_path / "contexts.jsonl", QUESTIONS, long_paragraphs=60)
    _, port = serve(context=512)
    summary = completed(command(contexts, tmp_path, port))
    assert summary["sides"]["long"]["dropped_by_rule"] == {"refused": QUESTIONS}
    assert "refused" not in summary["sides"]["short"]["dropped_by_rule"]
    line = refused(command(contexts, tmp_path, port, "--on", "long"))
    assert "exceeds the available context size" in line


@pytest.mark.long
def test_a_killed_tool_with_a_local_model_ends_with_the_same_files(contexts: Path, tmp_path: Path) -> None:
    # answers of a prompt in two batches, so that some end between them
    local = [*command(contexts, tmp_path / "whole", None), "--batch", "4"]
    completed(local)
    killed = [argument.replace("/whole/", "/killed/") for argument in local]
    for kept, how, code in ((10, signal.SIGKILL, -signal.SIGKILL), (60, signal.SIGINT, EXIT_RESUMABLE)):
        process = started(killed)
        assert stop_at(process, tmp_path / "killed", kept, how) == code
    # five prompts, and the first of the two batches of another
    with closing(sqlite3.connect(samples_file(tmp_path / "killed"))) as database, database:
        database.execute(f"DELETE FROM samples WHERE rowid > {5 * SAMPLES + 4}")
    summary = completed(killed)
    assert summary["prompts"] == {"sampled": 2 * QUESTIONS - 5, "reused": 5}
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert answers(tmp_path / "killed") == answers(tmp_path / "whole")


def refused(arguments: list[str]) -> str:
    done = subprocess.run(arguments, capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 2
    line = done.stderr.splitlines()[-1]
    assert line.startswith("error:")
    assert KEY not in done.stdout + done.stderr
    return line


def test_what_the_user_can_mend_is_one_line(serve: Serve, contexts: Path, tmp_path: Path) -> None:
    assert "--samples 1" in refused(command(contexts, tmp_path, 1, "--samples", "1"))
    assert "cannot be reached" in refused(command(contexts, tmp_path, 1))
    _, port = serve()
    assert "--model other: the server at" in refused(command(contexts, tmp_path, port, "--model", "other"))
    _, port = serve("--key", "another key")
    assert "answers 401: set OPENAI_API_KEY" in refused(command(contexts, tmp_path, port))
    assert not (tmp_path / "pairs.jsonl").exists()
