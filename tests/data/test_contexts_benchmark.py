from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest
from samples import RowWriter, musique_rows
from transformers import PreTrainedTokenizerFast

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "contexts.py"


def test_the_benchmark_writes_rates_and_speedups(
    write_rows: RowWriter, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = musique_rows(12)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    pool = write_rows((p for row in rows for p in row["paragraphs"]), "pool.jsonl")
    files = ["--source", write_rows(rows), "--pool", pool, "--tokenizer", tmp_path / "tokenizer"]
    options = [
        "--short-tokens",
        900,
        "--long-tokens",
        2500,
        "--naive-questions",
        1,
        "--out",
        tmp_path / "new" / "out.json",
    ]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, [*files, *options])])
    with pytest.raises(SystemExit) as exit_:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert not exit_.value.code
    result = json.loads((tmp_path / "new" / "out.json").read_text())
    assert result["questions"] == result["written"] == 12
    assert result["speedup"]["same_rule"]["warm"] > 1
