"""A resumed run goes on in the same loggers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from solopo_nemo.config.schema import load_config
from solopo_nemo.training.checkpoints.record import RunRecord
from solopo_nemo.training.loggers import build_loggers
from solopo_nemo.training.paths import Paths


def build(output: Path, resumed: int | None, *overrides: str) -> list[Any]:
    checkpoint = None if resumed is None else output / "checkpoints" / f"step_{resumed:06d}"
    return build_loggers(load_config("solo_dpo", [f"output_dir={output}", *overrides]), checkpoint)


@pytest.mark.parametrize("mode", ["offline", "online"])
def test_weights_and_biases_is_given_the_runs_id(mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    began: list[dict[str, Any]] = []
    monkeypatch.setattr("wandb.init", lambda **settings: began.append(settings))
    monkeypatch.setenv("WANDB_MODE", mode)
    RunRecord("f00d", 1, 4, "fp32", "", "", [2], {}).write(Paths(tmp_path).record)
    for resumed in (None, 2):
        (logger,) = build(tmp_path, resumed, "logger.wandb=tests", "logger.tensorboard=false")
        assert logger._offline == (mode == "offline")
        assert logger.experiment is None  # what the stand-in gave
    monkeypatch.setenv("WANDB_RUN_ID", "mine")  # which wandb reads itself
    (logger,) = build(tmp_path, None, "logger.wandb=tests", "logger.tensorboard=false")
    assert logger._wandb_init["id"] is None
    assert [(one["id"], one["resume"], one["project"]) for one in began] == [("f00d", "allow", "tests")] * 2


def test_tensorboard_shows_each_step_once(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for resumed, values in ((None, {1: 0.5, 2: 0.4, 3: 0.3}), (2, {3: 0.25, 4: 0.2})):
        (logger,) = build(tmp_path, resumed)
        for step, value in values.items():
            logger.log_metrics({"loss": value}, step)
        logger.finalize("success")
    events = EventAccumulator(str(Paths(tmp_path).tensorboard)).Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4]
    assert [event.value for event in events.Scalars("loss")] == pytest.approx([0.5, 0.4, 0.25, 0.2])
