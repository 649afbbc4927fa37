"""A resumed run goes on in the same loggers."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from solopo_nemo.config.schema import load_config
from solopo_nemo.runtime.errors import UserError
from solopo_nemo.runtime.json_files import write_json
from solopo_nemo.training import loggers
from solopo_nemo.training.checkpoints.record import RunRecord
from solopo_nemo.training.loggers import build_loggers
from solopo_nemo.training.paths import Paths
from solopo_nemo.training.publish import check_publishing


def build(output: Path, resumed: int | None, *overrides: str) -> list[Any]:
    checkpoint = None if resumed is None else output / "checkpoints" / f"step_{resumed:06d}"
    return build_loggers(load_config("solo_dpo", [f"output_dir={output}", *overrides]), checkpoint)


def test_mlflow_has_the_password_apart_from_the_address(
    packages: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "of another server")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://user:p%40ss@host/mlflow")
    build(tmp_path, None, "logger.tensorboard=false", "logger.mlflow=tests")
    assert packages[0] == ("mlflow", "https://host/mlflow") and packages[-1][-1]["tracking_uri"] == packages[0][1]
    names = ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
    assert [os.environ[name] for name in names] == ["https://host/mlflow", "user", "p@ss"]


@pytest.mark.parametrize("user", ["token", ":secret", "user:se/cret", "us@er:secret"])
def test_an_address_of_mlflow_with_half_a_sign_in_is_refused(user: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is prepared."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"https://{user}@host/mlflow")
    with pytest.raises(UserError, match="set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD") as refused:
        check_publishing(load_config("solo_dpo", ["logger.mlflow=tests"]))
    assert "cret" not in str(refused.value)


@pytest.mark.parametrize("mode", ["offline", "online"])
def test_weights_and_biases_is_given_the_runs_id(mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    began: list[dict[str, Any]] = []
    monkeypatch.setattr("wandb.init", lambda **settings: began.append(settings))
    monkeypatch.setenv("WANDB_MODE", mode)
    write_json(Paths(tmp_path).record, vars(RunRecord("f00d", 1, 4, "fp32", "", "", [2], {})))
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


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Packages that stand in for MLflow's client, Trackio and SwanLab, and what they are asked."""
    asked: list[Any] = []

    class Client:
        def __init__(self, uri: str) -> None:
            asked.append(("mlflow", uri))

        def get_experiment_by_name(self, name: str) -> Any:
            return SimpleNamespace(experiment_id=f"id of {name}")

        def search_runs(self, experiments: list[str], condition: str) -> list[Any]:
            asked.append((experiments, condition))
            return [SimpleNamespace(info=SimpleNamespace(run_id="run 7"))]

    def note(name: str) -> Any:
        return lambda *given, **options: asked.append((name, *given, options))

    modules = {
        "mlflow": {},
        "mlflow.tracking": {"MlflowClient": Client},
        "trackio": {name: note(name) for name in ("init", "log", "finish")},
        "swanlab": {},
        "swanlab.integration": {},
        "swanlab.integration.pytorch_lightning": {"SwanLabLogger": note("swanlab")},
    }
    for name, names in modules.items():
        module = ModuleType(name)
        vars(module).update(names)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(loggers, "MLFlowLogger", note("MLFlowLogger"))
    for name in ("MLFLOW_TRACKING_URI", "TRACKIO_DIR", "SWANLAB_MODE"):
        monkeypatch.delenv(name, raising=False)
    return asked


def test_optional_loggers_go_on_in_the_runs_id(
    packages: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_json(Paths(tmp_path).record, vars(RunRecord("f00d", 1, 4, "fp32", "", "", [2], {})))
    names = [f"logger.{name}=tests" for name in ("mlflow", "trackio", "swanlab")]
    _, trackio, _ = build(tmp_path, 2, "logger.tensorboard=false", *names)
    uri = f"file:{tmp_path}/logs/mlflow"
    assert packages == [
        ("mlflow", uri),
        (["id of tests"], "tags.mlflow.runName = 'f00d'"),
        ("MLFlowLogger", "tests", "f00d", {"tracking_uri": uri, "run_id": "run 7"}),
        ("init", {"project": "tests", "name": "f00d", "resume": "allow"}),
        ("swanlab", "tests", {"experiment_name": "f00d", "logdir": f"{tmp_path}/logs/swanlab", "mode": "offline"}),
    ]
    assert os.environ["TRACKIO_DIR"] == f"{tmp_path}/logs/trackio"
    packages.clear()
    trackio.log_metrics({"loss": 0.5}, 3)
    trackio.finalize("success")
    assert packages == [("log", {"loss": 0.5}, {"step": 3}), ("finish", {})]
    packages.clear()
    monkeypatch.setenv("SWANLAB_MODE", "cloud")
    build(tmp_path, 2, "logger.tensorboard=false", names[2])
    assert packages[0][2].items() >= {"mode": "cloud", "id": "f00d", "resume": "allow"}.items()
    packages.clear()
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert build(tmp_path, 2, "logger.tensorboard=false", *names) == packages == []
