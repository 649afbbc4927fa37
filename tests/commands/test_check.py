"""``solopo check``: all faults at once, warnings apart, what is ready starts, and the output folder stays as it is."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from solopo_nemo.commands.dispatch import dispatch
from solopo_nemo.config.schema import load_config, save_config
from solopo_nemo.runtime import device
from solopo_nemo.runtime.cli import EXIT_USER_ERROR
from solopo_nemo.runtime.errors import UserError
from solopo_nemo.runtime.paths import EMBEDDED_MODEL
from solopo_nemo.training import checks
from solopo_nemo.training.check import Findings, check_recipe
from solopo_nemo.training.checkpoints.files import write_manifest
from solopo_nemo.training.launch import run_recipe
from solopo_nemo.training.output_lock import OutputLock
from solopo_nemo.training.paths import Paths
from solopo_nemo.training.reference_cache import ReferenceCache, cache_key
from solopo_nemo.training.start import Start

ROOT = Path(__file__).parents[2]
SMALL = ["data.builtin.samples=20", "evaluation.name=none", "trainer.global_batch=8", "trainer.micro_batch=1"]
ROW = {"prompt_short": "Who?", "prompt_long": "Who wrote it?", "chosen": " Ann", "rejected": " Bob"}


def tree(folder: Path) -> dict[Path, int]:
    return {path: path.lstat().st_mtime_ns for path in folder.rglob("*")}


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    return [f"output_dir={tmp_path / 'out'}", *SMALL]


@pytest.fixture
def check(words: list[str], tmp_path: Path) -> Callable[..., Findings]:
    """Checks, and proves that nothing was written."""

    def checked(*more: str, recipe: str = "solo_dpo", **machine: Any) -> Findings:
        before = tree(tmp_path)
        found = check_recipe(recipe, [*words, *more], **machine)
        assert tree(tmp_path) == before
        assert bool(found.problems) != found.summary.startswith("ready: ")
        return found

    return checked


def rows(path: Path, *values: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps({"id": str(number)} | value) + "\n" for number, value in enumerate(values)))
    return f"data.train={path}"


FAULTS = {
    "a value": ("optim.lr=-1", "optim.lr"),
    "another value": ("trainer.nonfinite=ignore", "trainer.nonfinite"),
    "no such key": ("objective.bta=1", "objective.bta"),
    "a suite": ("trainer.select_best=glue", "glue"),
    "the resumed checkpoint": ("trainer.resume=/no/such/step_000001", "trainer.resume"),
    "the output folder": ("output_dir={cut}/config.json/out", "cannot be written"),
    "tensor ranks": ("parallel.tensor=3", "4 attention heads"),
    "pipeline stages": ("parallel.pipeline=3", "2 layers"),
    "batches": ("trainer.global_batch=3", "trainer.micro_batch"),
    "the data": ("data.train=/no/such.jsonl", "/no/such.jsonl"),
    "the weights": ("model.init={cut}", "model.safetensors"),
}


def test_all_faults_are_listed_each_once(check: Callable[..., Findings], tmp_path: Path) -> None:
    cut = shutil.copytree(EMBEDDED_MODEL, tmp_path / "cut") / "model.safetensors"
    cut.write_bytes(cut.read_bytes()[:1000])
    given = [words.format(cut=cut.parent) for words, _ in FAULTS.values()]
    found = check(*given, "trainer.micro_batch=2")
    for name, (_, culprit) in FAULTS.items():
        assert sum(culprit in line for line in found.problems) == 1, (name, found.problems)
    assert found.summary == f"not ready: {len(FAULTS)} problems"


def test_the_data_are_read_where_the_model_is_not_there(check: Callable[..., Findings], tmp_path: Path) -> None:
    found = check("model.init=/no/such", rows(tmp_path / "a.jsonl", ROW, ROW | {"chosen": 7}))
    assert [":2: field chosen" in line or "model.init" in line for line in found.problems] == [True, True]


@pytest.mark.parametrize("overrides", [["model=gpt5", "optim.lr=-1"], ["model=custom"]])
def test_without_a_model_nothing_else_is_guessed(overrides: list[str], check: Callable[..., Findings]) -> None:
    found = check(*overrides, "parallel.tensor=3")
    assert len(found.problems) == 1 and "not checked" in found.warnings[0]


def test_what_is_ready_starts(
    check: Callable[..., Findings], words: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    layout = ["parallel.tensor=2", "parallel.sequence=true", "parallel.context=2"]
    found = check(*layout)
    assert not found.problems and found.run is not None
    assert found.summary.startswith("ready: 20 samples (0 dropped), longest prompt_short ")
    assert "; 3 steps of 8; TP2+SP CP2 p2p PP1 DP1 on 4 CPU ranks; about 0." in found.summary

    monkeypatch.setattr(checks, "import_weights", lambda _: None)
    assert run_recipe("solo_dpo", [*words, *layout], start=lambda ranks, _: 100 + ranks) == 104
    summary = json.loads((Paths(tmp_path / "out").tokenized / "summary.json").read_text())
    assert found.run["samples"] == summary["kept"]
    assert found.run["longest"] == {column: values["max"] for column, values in summary["tokens"].items()}

    monkeypatch.setattr("solopo_nemo.data.prepared._write", lambda *_: pytest.fail("tokenized again"))
    assert check(*layout).run == found.run


@pytest.mark.parametrize("recipe", sorted(path.stem for path in (ROOT / "recipes").glob("*.py")))
def test_every_recipe(recipe: str, check: Callable[..., Findings]) -> None:
    assert check(recipe=recipe).summary.startswith("ready: 20 samples")


def test_a_folder_in_use_and_a_run_with_other_settings(
    check: Callable[..., Findings], words: list[str], tmp_path: Path
) -> None:
    paths = Paths(tmp_path / "out")
    (paths.checkpoints / "step_000002").mkdir(parents=True)
    save_config(load_config("solo_dpo", [*words, "optim.weight_decay=0.5"]), paths.config)
    with OutputLock(tmp_path / "out"):
        found = check()
    assert len(found.problems) == 2
    assert "in use by another run" in found.problems[0] and "optim.weight_decay: 0.5 there" in found.problems[1]
    assert not check("trainer.resume=never").problems
    damaged = check("optim.weight_decay=0.5")
    assert "every checkpoint is damaged" in damaged.problems[0] and "it will be put aside" in damaged.warnings[0]


def test_a_run_that_goes_on_needs_its_reference_scores(
    check: Callable[..., Findings], words: list[str], tmp_path: Path
) -> None:
    paths, config = Paths(tmp_path / "out"), load_config("solo_dpo", words)
    begun = Start(config, 1)
    fingerprint, ids = begun.prepared.fingerprint, begun.prepared.dataset["id"]
    save_config(config, paths.config)
    (paths.checkpoints / "step_000002").mkdir(parents=True)
    write_manifest(paths.checkpoints / "step_000002", {})
    found = check()
    assert len(found.problems) == 1 and "incomplete (20 samples missing)" in found.problems[0]
    key = cache_key(begun.origin["weights"], fingerprint, ("short_chosen", "short_rejected"), "fp32")
    ReferenceCache(paths.reference, key).append({name: {} for name in ids})
    assert "; 3 steps of 8, goes on after step 2; " in check().summary


def test_warnings_stand_apart(check: Callable[..., Findings], tmp_path: Path, capsys: Any) -> None:
    odd = ROW | {"chosen": " <|im_end|> is an end"}
    found = check(rows(tmp_path / "odd.jsonl", odd), "model.row_chunk=64", f"model.init={EMBEDDED_MODEL}")
    assert [word in "\n".join(found.warnings) for word in ("model.row_chunk is deprecated", "odd.jsonl:1")] == [
        True
    ] * 2
    assert found.show() == 0
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == [
        *["warning"] * len(found.warnings),
        "ready",
    ]


@pytest.mark.parametrize("own", [["model=custom", f"model.init={EMBEDDED_MODEL}"], []])
def test_the_built_in_questions_for_a_model_of_ones_own_are_named(
    own: list[str], check: Callable[..., Findings]
) -> None:
    assert ["data.train=FILE takes your data" in line for line in check(*own).warnings] == [True] * bool(own)


def test_memory_and_other_machines(check: Callable[..., Findings], monkeypatch: pytest.MonkeyPatch) -> None:
    found = check("parallel.tensor=2", gpus=8, gpu_memory=40)
    assert "TP2 CP1 PP1 DP4 on 8 GPUs; about " in found.summary and "of 40.0 GiB a GPU" in found.summary
    assert "does not divide the world of 3" in check("parallel.tensor=2", gpus=3).problems[0]
    a2a = ["parallel.context=4", "parallel.cp_comm_type=a2a"]
    assert not check(*a2a).problems
    assert "key/value heads" in check(*a2a, gpus=4).problems[0], "Transformer Engine's own limit"
    tight = check(gpus=1, gpu_memory=0.5)
    assert tight.problems[0].startswith("out of memory by the planner's prediction: no layout of 1 GPU fits")
    monkeypatch.setattr(device, "memory_gib", lambda: 0.01)
    assert "--gpus and --gpu-memory" in check().problems[0]


def test_weights_on_the_hub_are_left_there(
    check: Callable[..., Findings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(name: str, allow_patterns: list[str], **_: Any) -> str:
        assert "*.safetensors" not in allow_patterns
        return str(folder)

    folder = shutil.copytree(EMBEDDED_MODEL, tmp_path / "hub", ignore=shutil.ignore_patterns("*.safetensors"))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    found = check("model=custom", "model.init=some/model")
    assert not found.problems
    assert any("the run downloads the weights" in warning for warning in found.warnings)


def test_a_refused_model_on_the_hub_is_left_there_by_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(name: str, allow_patterns: list[str], **_: Any) -> str:
        assert "*.safetensors" not in allow_patterns
        return str(tmp_path)

    (tmp_path / "config.json").write_text('{"model_type": "gemma3"}')
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    config = load_config("solo_dpo", ["model=custom", "model.init=some/model", f"output_dir={tmp_path / 'out'}"])
    with pytest.raises(UserError, match="it reads images too"):
        checks.check_all(Start(config, 1), checks.CHECKS)


@pytest.mark.parametrize(
    ("row", "asked"), [(None, 0), ({**ROW, "chosen": 3}, 0), ({**ROW, "prompt_long": "a " * 9999}, 1), (ROW, 2)]
)
def test_the_data_are_checked_before_weights_are_downloaded(
    row: dict[str, Any] | None, asked: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unreadable first row is refused before the hub is asked, any other fault before it is asked for weights."""
    downloads: list[list[str]] = []

    def download(name: str, allow_patterns: list[str], **_: Any) -> str:
        downloads.append(allow_patterns)
        if "*.safetensors" in allow_patterns:
            raise UserError("the weights are downloaded")
        return str(folder)

    folder = shutil.copytree(EMBEDDED_MODEL, tmp_path / "hub", ignore=shutil.ignore_patterns("*.safetensors"))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    data = f"data.train={tmp_path / 'none.jsonl'}" if row is None else rows(tmp_path / "rows.jsonl", row)
    words = ["model=custom", "model.init=some/model", data, f"output_dir={tmp_path / 'out'}", "data.max_tokens=4096"]
    with pytest.raises(UserError, match="weights are downloaded" if asked == 2 else r"\.jsonl"):
        checks.check_all(Start(load_config("solo_dpo", words), 1), checks.CHECKS)
    assert len(downloads) == asked


def test_problems_have_no_credentials(check: Callable[..., Findings]) -> None:
    found = check("model.init=https://user:hf_secret@huggingface.co/some/model", "optm.lr='ftp://u:hf_secret@h'")
    assert len(found.problems) == 2 and "https://huggingface.co/some/model" in str(found.problems)
    assert "hf_secret" not in str(found.problems)


def test_the_command_and_the_key_are_one(words: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert dispatch(["check", "sft", *words, "--gpus", "2", "--json"]) == 0
    ready, summary = capsys.readouterr().out.splitlines()[-2:]
    assert ready.startswith("ready: ") and json.loads(summary)["summary"] == ready
    assert dispatch(["sft", *words, "parallel.pipeline=3", "check_only=True"]) == EXIT_USER_ERROR
    assert capsys.readouterr().out.splitlines()[-1] == "not ready: 1 problem"
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["peft=lora"]])
def test_no_nemo_is_needed_and_no_library_warns(words: list[str], more: list[str]) -> None:
    command = [sys.executable, str(ROOT / "tests/support/no_nemo.py"), str(ROOT / "tools/check.py"), *words, *more]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("ready: "), done.stderr
    assert "UserWarning" not in done.stderr
