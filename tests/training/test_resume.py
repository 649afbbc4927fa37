"""A run is resumed by what its files hold, not by how they are named: prepared starts whose ranks are only counted."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bad_input import ROW, write

from solopo_nemo.data import prepared
from solopo_nemo.families.hf import copy_template
from solopo_nemo.runtime import device
from solopo_nemo.runtime.errors import UserError
from solopo_nemo.runtime.paths import EMBEDDED_MODEL
from solopo_nemo.training.checkpoints.files import record_file, write_manifest
from solopo_nemo.training.launch import run_recipe
from solopo_nemo.training.paths import Paths
from solopo_nemo.training.prepare import find_model

STARTED = 101
"""What a start gives that would train."""
SETTINGS = [
    "data.max_tokens=500",
    "trainer.global_batch=2",
    "trainer.micro_batch=1",
    "evaluation.name=none",
    "objective.reference=online",
]
HERE = ["data.train=rows.jsonl", "model.init=model"]


class Place:
    """A folder with data and a model, and a run that is started from it.

    Args:
        root: folder.
        output: of the run.
    """

    def __init__(self, root: Path, output: Path) -> None:
        self.root, self.paths = root, Paths(output)
        root.mkdir()
        copy_template(EMBEDDED_MODEL, root / "model", {})
        shutil.copyfile(EMBEDDED_MODEL / "model.safetensors", root / "model" / "model.safetensors")
        self.write_rows("the first answer", "the second answer", "a third")
        for file in root.rglob("*"):
            os.utime(file, (10**9, 10**9))  # what is younger than two seconds is known by its contents alone

    def write_rows(self, *answers: str) -> None:
        rows = [ROW | {"id": str(number), "chosen": answer} for number, answer in enumerate(answers)]
        write(self.root / "rows.jsonl", rows)

    def change_model(self, **changes: Any) -> None:
        file = self.root / "model" / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    def start(self, *overrides: str, output: Path | None = None) -> int:
        words = [f"output_dir={output or self.paths.output}", *SETTINGS, *HERE, *overrides]
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(self.root)
            return run_recipe("solo_dpo", words, start=lambda ranks, _: 100 + ranks)

    def save(self, step: int) -> Path:
        """What the ranks leave: a checkpoint."""
        checkpoint = self.paths.checkpoints / f"step_{step:06d}"
        for part in ("weights", "context"):
            (checkpoint / part).mkdir(parents=True)
            (checkpoint / part / "metadata.json").write_text(part)
        for file in (self.paths.config, self.paths.record):
            shutil.copy(file, checkpoint)
        shutil.copytree(self.paths.initial / "hf", checkpoint / "hf")
        files = [p for p in checkpoint.rglob("*") if p.is_file()]
        write_manifest(checkpoint, {str(p.relative_to(checkpoint)): record_file(p) for p in files})
        return checkpoint

    def finish(self) -> None:
        """What the end of a run leaves."""
        self.paths.report.mkdir()
        (self.paths.report / "index.html").write_text("")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A place whose run has been started and has saved its first step."""

    def import_hf(source: Path, destination: Path, **_: Any) -> None:
        copy_template(source, destination / "hf", {})

    monkeypatch.setattr("solopo_nemo.nemo_model.convert.import_hf", import_hf)
    place = Place(tmp_path / "here", tmp_path / "run")
    assert place.start() == STARTED
    place.save(1)
    return place


def test_another_path_to_the_same_files_is_the_same_run(here: Place, tmp_path: Path) -> None:
    assert here.start(f"data.train={here.root}/rows.jsonl", f"model.init={here.root}/model") == STARTED
    moved = shutil.copytree(here.root, tmp_path / "copied")
    assert here.start(f"data.train={moved}/rows.jsonl", f"model.init={moved}/model") == STARTED


def as_transformers_5(place: Place) -> None:
    """The same values, spelled anew."""
    file = place.root / "model" / "config.json"
    config = json.loads(file.read_text())
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": int(config.pop("rope_theta"))}
    config["dtype"] = config.pop("torch_dtype", "float32")
    file.write_text(json.dumps(dict(sorted(config.items())) | {"transformers_version": "5.1.0"}))


def test_a_configuration_that_is_spelled_anew_is_the_same_model(here: Place) -> None:
    as_transformers_5(here)
    assert here.start() == STARTED
    assert "rope_parameters" in (here.paths.initial / "hf" / "config.json").read_text()


OTHER: dict[str, tuple[Callable[[Place], None], str]] = {
    "data": (lambda place: place.write_rows("the first answer", "another one", "a third"), "other token ids"),
    "fewer rows": (lambda place: place.write_rows("the first answer"), "other token ids"),
    "theta": (lambda place: place.change_model(rope_theta=9999.0), "other weights"),
}


@pytest.mark.parametrize("finished", [False, True], ids=["interrupted", "finished"])
@pytest.mark.parametrize("case", OTHER)
def test_the_same_names_elsewhere_are_another_run(case: str, finished: bool, here: Place, tmp_path: Path) -> None:
    change, words = OTHER[case]
    there = Place(tmp_path / "there", here.paths.output)
    if finished:
        here.finish()
    change(there)
    with pytest.raises(UserError, match=f"{words}.* choose another output_dir, or trainer.resume=never"):
        there.start()


def test_a_finished_run_is_known_by_its_files(here: Place) -> None:
    here.finish()
    assert here.start() == 0
    assert here.start(f"data.train={here.root}/rows.jsonl") == 0
    (here.root / "rows.jsonl").unlink()
    assert here.start() == 0
    shutil.rmtree(here.paths.checkpoints)  # to make room: nothing is trained again
    here.write_rows("the first answer")
    assert here.start() == 0
    here.paths.record.unlink()  # a run of version 0.1
    assert here.start() == 0


def test_unchanged_data_are_not_read_again_and_another_encoding_of_them_goes_on(
    here: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def inputs() -> tuple[str, str]:
        summary = json.loads((here.paths.tokenized / "summary.json").read_text())
        return summary["files"], summary["inputs"]

    first = inputs()
    with monkeypatch.context() as patch:
        patch.setattr(prepared, "_hash_files", lambda _: pytest.fail("read the data"))
        assert here.start() == STARTED
        monkeypatch.setattr(prepared, "FORMAT", prepared.FORMAT + 1)  # the same token ids: the run goes on
        assert here.start() == STARTED
    assert inputs()[0] == first[0]
    assert inputs()[1] != first[1]
    (here.root / "rows.jsonl").touch()
    assert here.start() == STARTED
    assert inputs()[0] == first[0]


RECORDED = {
    "computation": (0, "what this program computes in a step: 0 there"),
    "steps": (7, "optimizer steps: 7 there, 2 here"),
    "precision": ("bf16", "precision: bf16 there, fp32 here"),
    "data": ("0" * 64, "token ids of the samples"),
    "weights": ("0" * 64, "initial weights"),
}


def test_whatever_decides_the_result_is_compared(here: Place) -> None:
    checkpoint = here.save(2)
    record = json.loads((checkpoint / "run.json").read_text())
    for key, (value, words) in RECORDED.items():
        (checkpoint / "run.json").write_text(json.dumps(record | {key: value}))
        write_manifest(checkpoint, {"run.json": record_file(checkpoint / "run.json")})
        with pytest.raises(UserError, match=f"{words}.* choose another output_dir, or trainer.resume=never"):
            here.start()
    (checkpoint / "run.json").write_text(json.dumps(record)[:-9])
    write_manifest(checkpoint, {"run.json": record_file(checkpoint / "run.json")})
    with pytest.raises(UserError, match=r"run\.json: not readable by this version"):
        here.start()
    assert here.start("trainer.resume=never") == STARTED


def test_adapters_and_weights_are_different_runs_and_another_adapter_is_another_run(here: Place) -> None:
    adapted = ["peft=lora", "objective.reference=adapter_off"]
    with pytest.raises(UserError, match=r"peft\.alpha: None there, 32\.0 here.*peft\.name: none there, lora here"):
        here.start(*adapted)
    checkpoint = here.save(2)
    (checkpoint / "run.json").write_text(
        json.dumps(json.loads((checkpoint / "run.json").read_text()) | {"adapter": "x"})
    )
    write_manifest(checkpoint, {"run.json": record_file(checkpoint / "run.json")})
    with pytest.raises(UserError, match=r"initial adapters \(model\.adapter\): x there"):
        here.start()
    with pytest.raises(UserError, match="holds adapters alone"):
        find_model(str(_of_adapters(checkpoint)))


def _of_adapters(checkpoint: Path) -> Path:
    file = checkpoint / "config.yaml"
    file.write_text(file.read_text().replace("name: none\n  rank: null", "name: lora\n  rank: 4"))
    return checkpoint


def test_data_that_grew_is_refused_without_the_tokenized_data_too(here: Place) -> None:
    here.write_rows("the first answer", "the second answer", "a third", "a fourth", "a fifth")
    shutil.rmtree(here.paths.tokenized)
    with pytest.raises(UserError, match=r"optimizer steps: 2 there, 3 here; token ids of the samples"):
        here.start()


def test_the_right_data_go_on_after_other_data_were_refused(here: Place) -> None:
    shutil.rmtree(here.paths.tokenized)
    here.write_rows("the first answer", "another one", "a third")
    with pytest.raises(UserError, match="token ids of the samples"):
        here.start()
    here.write_rows("the first answer", "the second answer", "a third")
    assert here.start() == STARTED


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DERIVED: dict[str, Callable[[Paths], object]] = {
    "summary cut": lambda paths: _cut(paths.tokenized / "summary.json"),
    "summary of another kind": lambda paths: (paths.tokenized / "summary.json").write_text("[]"),
    "samples cut": lambda paths: _cut(paths.tokenized / "samples.arrow"),
    "samples gone": lambda paths: (paths.tokenized / "samples.arrow").unlink(),
    "marker cut": lambda paths: _cut(paths.initial / "source.json"),
    "marker of another kind": lambda paths: (paths.initial / "source.json").write_text("[]"),
    "settings gone": lambda paths: paths.config.unlink(),
}


@pytest.mark.parametrize("case", DERIVED)
def test_what_can_be_made_again_is_made_again(case: str, here: Place) -> None:
    DERIVED[case](here.paths)
    assert here.start() == STARTED
    here.write_rows("the first answer", "another one", "a third")
    with pytest.raises(UserError, match="token ids"):
        here.start()


def test_settings_that_nothing_tells_are_asked_for(here: Place) -> None:
    for folder in (here.paths.output, here.paths.checkpoints / "step_000001"):
        (folder / "config.yaml").unlink()
    with pytest.raises(UserError, match=r"config\.yaml: missing, .* bring it back"):
        here.start()


def test_a_run_does_not_start_from_its_own_export(here: Place) -> None:
    shutil.copytree(here.root / "model", here.paths.hf)
    with pytest.raises(UserError, match="would replace the initial weights: choose another output_dir"):
        here.start(f"model.init={here.paths.hf}")


def test_a_run_that_will_not_fit_is_warned_of(
    here: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("solopo_nemo").propagate = True
    assert here.start() == STARTED
    assert "prediction" not in caplog.text
    monkeypatch.setattr(device, "memory_gib", lambda: 0.01)
    assert here.start() == STARTED
    assert "out of memory by the planner's prediction: no layout of 1 rank fits" in caplog.text


def test_a_named_checkpoint_belongs_to_its_run(here: Place, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    named, other = here.save(2), tmp_path / "other"
    resume = f"trainer.resume={named}"
    assert here.start(resume, "parallel.tensor=2", "parallel.data=1", output=other) == STARTED + 1
    for change, words in (("optim.lr=0.5", r"optim\.lr"), ("trainer.max_steps=9", r"trainer\.max_steps: None")):
        with pytest.raises(UserError, match=rf"{words}.* model.init={named} starts a new run from its weights"):
            here.start(resume, change, output=other)
    here.write_rows("the first answer", "another one", "a third")
    with pytest.raises(UserError, match=r"token ids of the samples.* model.init="):
        here.start(resume, output=other)
    here.write_rows("the first answer", "the second answer", "a third")
    for file in ("run.json", "config.yaml"):  # as version 0.1 wrote it
        (named / file).unlink()
    write_manifest(named, {"hf/config.json": record_file(named / "hf" / "config.json")})
    logging.getLogger("solopo_nemo").propagate = True
    assert here.start(resume, output=other) == STARTED
    assert "whether its settings are this run's is not checked" in caplog.text


ROPE = {"rope_type": "default", "rope_theta": 1e6}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512, "rope_theta": 10000.0}


@pytest.mark.parametrize("parameters", [ROPE, YARN], ids=["theta", "scaling"])
def test_version_01_trained_with_misread_rotary_embeddings(
    parameters: dict[str, Any], tmp_path: Path, here: Place, caplog: pytest.LogCaptureFixture
) -> None:
    place = Place(tmp_path / "v5", tmp_path / "run of v5")
    config = json.loads((place.root / "model" / "config.json").read_text())
    for key in ("rope_theta", "rope_scaling"):
        config.pop(key)
    (place.root / "model" / "config.json").write_text(json.dumps(config | {"rope_parameters": parameters}))
    assert place.start() == STARTED
    shutil.copy(place.root / "model" / "config.json", place.paths.initial / "hf")  # version 0.1 kept the file as it is
    checkpoint = place.save(1)
    with pytest.raises(UserError, match=r"misread by version 0\.1: {'rope_theta': 10000\.0} there, .* choose another"):
        place.start()
    logging.getLogger("solopo_nemo").propagate = True
    assert place.start(f"model.init={checkpoint}", output=tmp_path / "other") == STARTED
    assert "weights that were trained so do not fit" in caplog.text


def test_a_run_keeps_its_name_once_it_has_saved(here: Place) -> None:
    def name() -> str:
        return str(json.loads(here.paths.record.read_text())["id"])

    first = name()
    assert here.start() == STARTED
    assert name() == first
    shutil.rmtree(here.paths.checkpoints)
    assert here.start() == STARTED
    assert name() != first


def test_the_record_holds_the_token_that_ends_the_answers(here: Place) -> None:
    assert json.loads(here.paths.record.read_text())["end_tokens"] == [2]
