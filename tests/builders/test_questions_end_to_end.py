"""From documents to a training step, by the tools as a user starts them; the first one is killed on its way."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from chat_server import ChatServer, chat_server
from question_script import CASES, LINKED, SAMPLES, Script, write_documents
from zygote import forking

from solopo_nemo.runtime.paths import EMBEDDED_MODEL

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "OPENAI_API_KEY"} | {"OMP_NUM_THREADS": "1"}


def call(tool: str, *words: object) -> dict[str, Any]:
    with forking():
        done = subprocess.run(
            [sys.executable, ROOT / tool, *map(str, words)],
            capture_output=True,
            text=True,
            env=ENVIRONMENT,
            check=False,
        )
    assert done.returncode == 0, done.stderr[-3000:]
    summary: dict[str, Any] = json.loads(done.stdout.splitlines()[-1]) if "--json" in words else {}
    return summary


def kill_after(server: ChatServer, answers: int, out: Path, *words: object) -> None:
    """Start a tool and kill it when it has stored so many answers."""
    stored = 0
    process = subprocess.Popen([sys.executable, ROOT / "tools/build_questions.py", *map(str, words)], env=ENVIRONMENT)
    while stored < answers:
        assert process.poll() is None, "it ended before"
        with (
            suppress(sqlite3.Error),
            closing(sqlite3.connect(f"file:{out}.samples.sqlite?immutable=1", uri=True)) as file,
        ):
            stored = file.execute("SELECT count(*) FROM samples").fetchone()[0]
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and not out.exists()


def test_from_documents_to_a_training_step(tmp_path: Path) -> None:
    write_documents(tmp_path / "in")
    questions, contexts, triplets = (tmp_path / f"{name}.jsonl" for name in ("questions", "contexts", "triplets"))
    with chat_server(Script()) as server:
        asking = ["--backend", "openai", "--base-url", server.url, "--model", "m", "--concurrency", 2, "--json"]
        counting = ["--tokenizer", EMBEDDED_MODEL]
        words = ["--source", tmp_path / "in", *counting, *asking, "--samples", SAMPLES, "--passage-tokens", 1024]
        kill_after(server, 30, questions, *words, "--out", questions)
        before = len(server.asked)
        summary = call("tools/build_questions.py", *words, "--out", questions)
        assert summary["dropped_by_rule"] == Counter(case.rule for case in CASES if case.rule)
        assert summary["in"] == len(CASES) + len(LINKED)
        # two requests were under way, and one prompt is refused both times
        assert summary["prompts"]["reused"] >= 20
        assert summary["cost"]["requests"] <= len(server.asked) - before + 2
        bodies = Counter(json.dumps([body["messages"], body["seed"]]) for body in server.asked)
        assert sum(bodies.values()) - len(bodies) <= 3
        pool = questions.with_name("questions.jsonl.passages.jsonl")
        targets = ["--long", "document", "--short-tokens", 700, "--long-tokens", 1800]
        built = call(
            "tools/build_contexts.py",
            "--source",
            questions,
            "--pool",
            pool,
            *counting,
            *targets,
            "--out",
            contexts,
            "--json",
        )
        assert built["out"] >= 4 and built["in"] == summary["out"]
        pairs = call(
            "tools/sample_pairs.py", "--contexts", contexts, *asking, "--samples", SAMPLES + 1, "--out", triplets
        )
        assert pairs["out"] == built["out"]
    run = ["trainer.max_steps=1", "trainer.global_batch=2", "trainer.micro_batch=1", "evaluation.name=none"]
    call("recipes/solo_dpo.py", f"data.train={triplets}", f"output_dir={tmp_path / 'run'}", *run)
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in metrics if "loss" in row] == [1]
