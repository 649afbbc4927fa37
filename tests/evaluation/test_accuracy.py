"""Accuracy by context length: scoring, intervals, the table, and the shipped starting model."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

import solopo_nemo
from solopo_nemo.evaluation.accuracy import AccuracyRow, comparison_table, evaluate_accuracy, wilson_interval
from solopo_nemo.evaluation.models import ModelSettings
from solopo_nemo.evaluation.run import evaluate
from solopo_nemo.evaluation.settings import SuiteSettings
from solopo_nemo.evaluation.suites import SUITES
from solopo_nemo.evaluation.suites.builtin import SEED, is_correct
from solopo_nemo.runtime.errors import UserError
from solopo_nemo.runtime.paths import EMBEDDED_PAIRS

ASSET = Path(solopo_nemo.__file__).parent / "assets" / "tiny_qwen2"


def row(length: int, correct: int, total: int = 100) -> AccuracyRow:
    return AccuracyRow(
        length, 8 * length, 110.0 * length, correct, total, correct / total, *wilson_interval(correct, total)
    )


@pytest.mark.parametrize(
    ("text", "correct"),
    [
        ("Facts: a. The answer is: Alton.", True),
        ("The answer is: Norton. No. The answer is:  Alton.\nMore", True),
        ("The answer is: Alton. No. The answer is: Norton.", False),
        ("Alton.", False),
        ("The answer is:", False),
        ("The answer is: \n", False),
    ],
)
def test_only_what_is_stated_after_the_prefix_counts(text: str, correct: bool) -> None:
    assert is_correct(text, ["Alton"]) is correct


def test_only_the_whole_answer_is_correct() -> None:
    assert is_correct("The answer is: kali cormann", ["Kali Cormann"])
    assert is_correct("The answer is: the Alton.", ["Norton", "Alton"])
    assert not is_correct("The answer is: Kali", ["Kali Cormann"])
    assert not is_correct("The answer is: Kali Cormann or Ilus Ulwick", ["Kali Cormann"])
    assert not is_correct("The answer is: .", [""])


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    # Values of statsmodels' proportion_confint(method="wilson").
    [(0, 10, 0.0, 0.277533), (10, 10, 0.722467, 1.0), (50, 100, 0.403832, 0.596168), (81, 263, 0.255289, 0.366187)],
)
def test_wilson_interval(correct: int, total: int, low: float, high: float) -> None:
    assert wilson_interval(correct, total) == pytest.approx((low, high), abs=1e-4)


def test_comparison_table_shows_both_and_the_change() -> None:
    stream = io.StringIO()
    console = Console(file=stream, width=140)
    console.print(comparison_table([row(1, 95), row(8, 20)], [row(1, 96), row(8, 61)]))
    text = stream.getvalue()
    assert "8x" in text
    assert "20.0 % (13-29)" in text
    assert "+41.0" in text
    with pytest.raises(UserError, match="different context lengths"):
        comparison_table([row(1, 95)], [row(2, 95)])


def test_rows_are_json() -> None:
    assert json.loads(json.dumps(row(2, 30).as_json()))["length"] == 2


def test_missing_model_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json") as caught:
        evaluate_accuracy(tmp_path, [1], questions=1, seed=0)
    assert "\n" not in str(caught.value)


def test_shipped_model_is_small_and_suits_every_layout() -> None:
    assert sum(path.stat().st_size for path in (*ASSET.rglob("*"), EMBEDDED_PAIRS)) < 5_000_000
    config = json.loads((ASSET / "config.json").read_text())
    assert config["model_type"] == "qwen2"
    assert config["num_attention_heads"] % 4 == 0
    assert config["num_key_value_heads"] % 2 == 0
    assert config["num_hidden_layers"] % 2 == 0
    assert config["vocab_size"] % 128 == 0
    assert not config["tie_word_embeddings"]


def test_shipped_model_answers_short_contexts() -> None:
    (short,) = evaluate_accuracy(ASSET, [1], questions=24, seed=5)
    assert (short.length, short.paragraphs, short.total) == (1, 8, 24)
    assert short.accuracy == short.correct / 24 >= 0.8
    assert short.low < short.accuracy <= short.high
    assert 100 < short.tokens < 150


def test_a_run_is_measured_as_the_suite_measures(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rows = evaluate_accuracy(ASSET, [1, 8], questions=8, seed=SEED)
    assert capfd.readouterr().err == "", "no bars of lm_eval"
    frame = evaluate(ModelSettings(str(ASSET)), [SUITES["builtin"]], SuiteSettings(tmp_path, limit=8), tmp_path)
    right = frame.suites["builtin"].groupby("length")["value"].sum()
    assert [row.correct for row in rows] == [right[1], right[8]]
    assert rows[0].correct > rows[1].correct
