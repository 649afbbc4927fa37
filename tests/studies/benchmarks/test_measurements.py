"""The smallest real measurement of each subcommand, in fresh processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from zygote import forking

from studies.benchmarks.peer import is_ready

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
PEER = ROOT / ".venv-peer"
TINY = ["--hidden", "32", "--ffn", "64", "--vocabulary", "512", "--short", "32", "--response", "8", "--threads", "1"]
MIB = 2**20


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scratch folder of all measurements: the model is made and converted once."""
    return tmp_path_factory.mktemp("benchmark")


def benchmark(work: Path, *words: str, expect: int = 0) -> tuple[list[dict[str, Any]], str]:
    """Run the tool; its runs, and what it said."""
    out = work / f"{words[0]}.json"
    places = ["--out", str(out), "--work", str(work / "work")]
    with forking():  # the tool and its conversions; what is measured is started for real
        done = subprocess.run(
            [sys.executable, "tools/benchmark.py", *words, *places], cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == expect, done.stderr[-4000:]
    return json.loads(out.read_text())["runs"], done.stderr


def test_a_step_beside_the_peer(work: Path) -> None:
    if not is_ready(PEER):
        pytest.skip("TRL's environment is not there: python tools/benchmark.py peer makes it")
    words = ["peer", "--systems", "long_po,trl_best", "--long", "96", "--steps", "2", "--peer-venv", str(PEER)]
    (own, peer), said = benchmark(work, *words, *TINY)
    assert "differ by at most" in said
    assert own["losses"][1] == pytest.approx(peer["losses"][1], abs=1e-3)
    for run in (own, peer):
        assert len(run["seconds"]) == 2
        assert run["threads"] == 1
        assert 0 < run["peak_bytes"][0] < 200 * MIB


@pytest.mark.long
def test_scaling_measures_each_rank(work: Path) -> None:
    words = ["scaling", "--long", "4096", "--context", "1,2", "--context-mode", "a2a", "--steps", "2"]
    runs, _ = benchmark(work, *words, *TINY)
    assert [len(run["peak_bytes"]) for run in runs] == [1, 2]
    assert runs[0]["losses"] == pytest.approx(runs[1]["losses"], rel=1e-4)
    assert runs[0]["tokens"] == runs[1]["tokens"] == 2 * (32 + 7) + 4096 + 7


def test_the_peak_grows_with_the_prompt_until_the_budget_is_spent(work: Path) -> None:
    words = ["memory", "--systems", "solo_dpo", "--unit", "4096", "--start", "8192", "--budget", "0.001"]
    runs, said = benchmark(work, *words, *TINY, expect=2)
    assert "4096 tokens already take" in said
    long, short = (max(run["peak_bytes"]) for run in runs)
    assert long > short + 4096 * 32 * 4 * 4


def test_the_head_alone(work: Path) -> None:
    words = ["head", "--heads", "full,response_only", "--long", "2048", "--hidden", "32", "--vocabulary", "8192"]
    (full, response_only), _ = benchmark(work, *words, "--response", "8", "--threads", "1")
    assert full["peak_bytes"][0] > 2048 * 8192 * 4
    assert response_only["peak_bytes"][0] < full["peak_bytes"][0] / 10
