from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from samples import RowWriter, musique_rows
from transformers import PreTrainedTokenizerFast

from solopo_nemo.builders.pairs.backend import Sampling
from solopo_nemo.builders.pairs.run import PairSettings
from solopo_nemo.commands import evaluate, sample_pairs
from solopo_nemo.commands import main as command
from solopo_nemo.evaluation.measured import Measured, model_name
from solopo_nemo.evaluation.models import ModelSettings
from solopo_nemo.evaluation.settings import SuiteSettings
from solopo_nemo.runtime.cli import run, settings_of
from solopo_nemo.runtime.errors import UserError
from solopo_nemo.training.prepare import find_tokenizer


def call(monkeypatch: pytest.MonkeyPatch, *arguments: Any) -> int:
    monkeypatch.setattr(sys, "argv", ["build_contexts.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit_:
        command("build_contexts")
    return int(exit_.value.code or 0)


def test_a_user_error_is_one_line_and_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    def bad() -> None:
        raise UserError("rows.jsonl:3: field chosen:\n  is empty")

    with pytest.raises(SystemExit) as exit_:
        run(bad)
    assert exit_.value.code == 2
    assert capsys.readouterr().err == "error: rows.jsonl:3: field chosen: is empty\n"


def test_other_errors_are_not_swallowed_and_codes_are_kept() -> None:
    def crash() -> None:
        raise KeyError("bug")

    with pytest.raises(KeyError):
        run(crash)
    for code, wanted in ((None, 0), (0, 0), (75, 75)):
        with pytest.raises(SystemExit) as exit_:
            run(lambda code=code: code)
        assert exit_.value.code == wanted


def test_build_contexts_command(
    write_rows: RowWriter,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    out = tmp_path / "new folder" / "out.jsonl"
    files = ["--source", write_rows(musique_rows(12)), "--tokenizer", tmp_path / "tokenizer", "--out", out]
    options = ["--short-tokens", 900, "--long-tokens", 2500, "--pairs", "gold", "--limit", 5, "--seed", 3, "--json"]
    assert call(monkeypatch, *files, *options) == 0
    captured = capsys.readouterr()
    summary = json.loads(captured.out.splitlines()[-1])
    assert summary["in"] == summary["out"] == 5 == len(out.read_text().splitlines())
    assert "rejected" in captured.err
    missing = ["--tokenizer", tmp_path / "nowhere"]
    assert call(monkeypatch, *files, *options, *missing) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_help(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "--help") == 0
    shown = capsys.readouterr().out
    options = [
        "source",
        "tokenizer",
        "short-tokens",
        "long-tokens",
        "out",
        "pool",
        "pairs",
        "seed",
        "limit",
        "skip-bad",
        "format",
        "workers",
        "report",
    ]
    assert all(f"--{name}" in shown for name in [*options, "allow-answer-leak", "json"])


def test_every_setting_of_sampling_and_evaluation_has_its_option() -> None:
    sampling = sample_pairs._parser().parse_args(
        ["--contexts", "c", "--backend", "hf", "--model", "m", "--out", "o.jsonl", "--literal"]
    )
    assert settings_of(sampling, Sampling) == Sampling("hf", "m")
    assert settings_of(sampling, PairSettings) == PairSettings(Path("c"), Path("o.jsonl"), literal=True)
    evaluation = evaluate._parser().parse_args(["--model", "m", "--suite", "builtin", "--skip-bad"])
    assert settings_of(evaluation, ModelSettings) == ModelSettings("m")
    assert settings_of(evaluation, SuiteSettings) == SuiteSettings(Path("evaluation_data"), skip_bad=True)


def test_a_tokenizer_is_a_folder_or_a_name_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **o: asked.update(o, name=name) or "cached")
    assert find_tokenizer(str(tmp_path)) == tmp_path, "a folder without config.json, too"
    assert find_tokenizer("Qwen/Qwen2.5-7B-Instruct") == Path("cached")
    assert asked["name"] == "Qwen/Qwen2.5-7B-Instruct" and "*.safetensors" not in asked["allow_patterns"]
    with pytest.raises(UserError, match=r"^--tokenizer \./none: no such folder"):
        find_tokenizer("./none")


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("outputs/solo_dpo/hf", "solo_dpo"),
        ("outputs/long_po/hf", "long_po"),
        ("outputs/solo_dpo/checkpoints/step_40", "solo_dpo-step_40"),
        ("models/Qwen2.5-7B-Instruct", "Qwen2.5-7B-Instruct"),
    ],
)
def test_an_evaluation_is_named_by_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(model).mkdir(parents=True)
    assert model_name(model) == name
    assert model_name("org/served-model") == "served-model"
    cell = {
        "suite": "builtin",
        "cell": "1x",
        "labels": {},
        "metric": "accuracy",
        "samples": [{"id": "1", "accuracy": 1}],
    }
    Path("out/cells/builtin").mkdir(parents=True)
    Path("out/cells/builtin/1x.json").write_text(json.dumps(cell))
    Path("out/evaluation.json").write_text(json.dumps({"model": model, "base_url": None}))
    assert Measured.read(Path("out")).name == name, "in tables, too"
