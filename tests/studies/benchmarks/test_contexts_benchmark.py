from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
from samples import RowWriter, musique_rows
from transformers import PreTrainedTokenizerFast

SCRIPT = Path(__file__).resolve().parents[3] / "studies" / "benchmarks" / "contexts.py"


@pytest.fixture
def benchmark(
    write_rows: RowWriter, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Any:
    """Runs the script on twelve questions and returns its result."""

    def run(*more: object) -> dict[str, Any]:
        rows = musique_rows(12)
        tokenizer.save_pretrained(tmp_path / "tokenizer")
        pool = write_rows((p for row in rows for p in row["paragraphs"]), "pool.jsonl")
        out = tmp_path / "new" / "out.json"
        files = ["--source", write_rows(rows), "--pool", pool, "--tokenizer", tmp_path / "tokenizer", "--out", out]
        options = ["--short-tokens", 900, "--long-tokens", 2500, "--naive-questions", 1, *more]
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, [*files, *options])])
        with pytest.raises(SystemExit) as exit_:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        assert not exit_.value.code
        result: dict[str, Any] = json.loads(out.read_text())
        return result

    return run


def test_the_benchmark_writes_rates_and_speedups(benchmark: Any) -> None:
    result = benchmark()
    assert result["questions"] == result["written"] == 12
    rates = {name: result["naive"][f"{name}_per_second"] for name in result["speedup"]}
    assert "same_rule" in rates
    for name, rate in rates.items():
        want = result["counts"]["warm_per_second"] / rate
        assert result["speedup"][name]["warm"] == pytest.approx(want, rel=0.1, abs=0.1)


@pytest.mark.slow
def test_the_benchmark_runs_the_tool_on_more_questions_than_there_are(benchmark: Any) -> None:
    result = benchmark("--build", 40, "--workers", 2)
    assert [(run["in"], run["out"]) for run in result["runs"]] == [(10, 10), (40, 40)]
    assert all(run["peak_memory_mib"] > 0 for run in result["runs"])
