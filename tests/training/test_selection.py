"""The best checkpoint by a suite: which one it is, and that a run exports it."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from runs import DEADLINE, command, ranks, rows, run, start, until

from solopo_nemo.config.schema import load_config
from solopo_nemo.runtime.errors import UserError
from solopo_nemo.runtime.paths import EMBEDDED_MODEL
from solopo_nemo.training.checkpoints.files import saved_checkpoints
from solopo_nemo.training.checkpoints.selection import (
    ScoredCheckpoint,
    Selection,
    best_checkpoint,
    check_selection,
    choose_checkpoint,
    keep_score,
    unscored_checkpoints,
)
from solopo_nemo.training.paths import Paths


def scored(step: int, value: float) -> ScoredCheckpoint:
    return ScoredCheckpoint(step, value, value, value)


def test_the_highest_score_wins_and_the_earlier_one_of_two() -> None:
    assert Selection("builtin", [scored(1, 0.2), scored(2, 0.7), scored(3, 0.7), scored(4, 0.1)]).best == 2


def test_scores_are_read_back(tmp_path: Path) -> None:
    paths = Paths(tmp_path)
    assert Selection.read(paths) is None
    Selection("builtin", [scored(1, 0.25)]).write(paths)
    assert Selection.read(paths) == Selection("builtin", [scored(1, 0.25)])


def test_data_that_are_missing_show_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    overrides = [f"output_dir={tmp_path}", "trainer.select_best=longbench_qa", f"evaluation.data={tmp_path}"]
    with pytest.raises(UserError, match="put it at"):
        check_selection(load_config("solo_dpo", overrides), EMBEDDED_MODEL)


def test_without_a_suite_the_last_checkpoint_is_taken(tmp_path: Path) -> None:
    for step in (2, 10):
        (tmp_path / "checkpoints" / f"step_{step:06d}").mkdir(parents=True)
    assert choose_checkpoint(load_config("solo_dpo", [f"output_dir={tmp_path}"])).name == "step_000010"


CHOOSING = (
    "trainer.select_best=builtin",
    "evaluation.limit=2",
    "evaluation.name=none",
    "trainer.keep_checkpoints=1",
)


def kept(output: Path) -> set[str]:
    return {path.name for path in (output / "checkpoints").glob("step_*")}


@pytest.mark.slow
@pytest.mark.distributed
def test_a_run_that_is_stopped_while_it_scores_scores_again_and_exports_the_best(tmp_path: Path) -> None:
    output = tmp_path / "run"
    process = start(command(output, *CHOOSING, torchrun=True), stderr=subprocess.STDOUT)
    until((output / "selection" / "builtin" / "step_000002").is_dir, process)
    for rank in ranks(process):
        rank.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=DEADLINE)[0]
    assert "stopped after step 2" in said
    assert [row["step"] for row in rows(output)] == [1, 2], "it scored when the training was over"
    assert not (output / "selection" / "selection.json").exists()

    run(output, *CHOOSING, torchrun=True)
    record = output / "selection" / "selection.json"
    first = json.loads(record.read_text())
    assert [one["step"] for one in first["scores"]] == [2, 4]
    best = Selection.read(Paths(output)).best  # type: ignore[union-attr]
    assert kept(output) == {"step_000004", f"step_{best:06d}"}
    assert not list((output / "selection").rglob("model.safetensors"))
    assert "Checkpoints by builtin" in (output / "report" / "index.html").read_text()

    if best == 4:  # both are there again, and the other one is the best now
        shutil.copytree(output / "checkpoints" / "step_000004", output / "checkpoints" / "step_000002")
    first["scores"][0] |= {"value": 1.5}
    record.write_text(json.dumps(first))
    shutil.rmtree(output / "hf")
    (output / "report" / "index.html").unlink()
    run(output, *CHOOSING)
    assert json.loads((output / "hf" / "conversion.json").read_text())["source"].endswith("step_000002")
    assert json.loads(record.read_text()) == first  # nothing was scored again


def test_a_score_whose_checkpoint_is_gone_is_not_the_best(tmp_path: Path) -> None:
    config = load_config("solo_dpo", [f"output_dir={tmp_path}", "trainer.select_best=builtin"])
    for step in (2, 6):
        (tmp_path / "checkpoints" / f"step_{step:06d}").mkdir(parents=True)
    for one in (scored(4, 0.9), scored(2, 0.5)):
        keep_score(config, "builtin", one)
    assert [path.name for path in unscored_checkpoints(config, "builtin")] == ["step_000006"]
    assert unscored_checkpoints(config, "ruler_qa") == saved_checkpoints(tmp_path / "checkpoints")
    keep_score(config, "builtin", scored(6, 0.4))
    assert best_checkpoint(config, "builtin").name == "step_000002"
    assert choose_checkpoint(config).name == "step_000002"
