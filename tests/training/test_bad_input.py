"""Bad configuration and bad data: one line, exit code 2, and no model is ever touched."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from solopo_nemo import cli
from solopo_nemo.errors import UserError
from solopo_nemo.training import prepare
from solopo_nemo.training.launch import run_recipe

PROMPT = [{"role": "user", "content": "Who wrote it?"}]
ROW = {"id": "a", "prompt_short": PROMPT, "prompt_long": PROMPT, "chosen": "Ann.", "rejected": "Bob."}


def write(path: Path, rows: list[object]) -> Path:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return path


def without(key: str) -> dict[str, object]:
    return {k: v for k, v in ROW.items() if k != key}


CONFIGURATION = {
    "unknown key": (["objective.bta=1"], "objective.bta"),
    "unknown group option": (["objective=nope"], "nope"),
    "unknown group": (["objectiv=dpo"], "objectiv"),
    "not an override": (["alpha"], "alpha"),
    "wrong type": (["trainer.global_batch=many"], "trainer.global_batch"),
    "wrong boolean": (["parallel.sequence=perhaps"], "parallel.sequence"),
    "bad choice": (["model.recompute=some"], "model.recompute"),
    "bad precision": (["trainer.precision=fp8"], "trainer.precision"),
    "negative learning rate": (["optim.lr=-1"], "optim.lr"),
    "warm-up longer than the run": (["optim.warmup_ratio=1.5"], "optim.warmup_ratio"),
    "zero batch": (["trainer.micro_batch=0"], "trainer.micro_batch"),
    "negative alpha": (["objective.alpha=-1"], "objective.alpha"),
    "bad alignment": (["objective.align=all"], "objective.align"),
    "both alignments of the prompt": (["objective.prompt=long"], "objective.align"),
    "objective without a name": (["objective=plugin"], "objective.name"),
    "unregistered objective": (["objective=plugin", "objective.name=mine"], "mine"),
    "plugin that is not there": (["+plugins=[no_such_package.po]"], "no_such_package"),
    "global batch not divisible": (["trainer.global_batch=5", "trainer.micro_batch=2"], "trainer.global_batch"),
    "global batch over data ranks": (["trainer.global_batch=4", "parallel.data=3"], "trainer.global_batch"),
    "heads not divisible": (["parallel.tensor=3"], "parallel.tensor"),
    "layers not divisible": (["parallel.pipeline=3"], "parallel.pipeline"),
    "Ulysses heads": (
        ["parallel.context=3", "parallel.context_mode=a2a", "trainer.global_batch=16"],
        "parallel.context_mode=p2p",
    ),
    "sequence parallel alone": (["parallel.sequence=true"], "parallel.sequence"),
    "rope scaling of an unknown type": (["model.rope_scaling={type: ntk, factor: 2}"], "model.rope_scaling"),
    "rope scaling that is no mapping": (["model.rope_scaling=4"], "model.rope_scaling"),
    "rope scaling without a factor": (["model.rope_scaling={type: yarn}"], "factor"),
    "context mode without packed sequences": (["parallel.context=2", "parallel.context_mode=all_gather"], "packed"),
    "no such model": (["model.init=/no/such/folder"], "model.init"),
    "longer than the window": (["data.max_tokens=100000000"], "data.max_tokens"),
    "no such file": (["data.train=/no/such/file.jsonl"], "/no/such/file.jsonl"),
    "no such checkpoint": (["trainer.resume=/no/such/step_000001"], "trainer.resume"),
}

DATA: dict[str, tuple[list[object], tuple[str, ...]]] = {
    "broken line 4711": ([ROW | {"id": str(i)} for i in range(4710)] + ['{"id": '], (":4711",)),
    "missing chosen": ([without("chosen")], (":1", "chosen")),
    "empty response": ([ROW | {"rejected": ""}], (":1", "rejected")),
    "wrong type": ([ROW | {"chosen": 7}], (":1", "chosen")),
    "no long prompt": ([without("prompt_long")], (":1", "prompt_long")),
    "vanilla row": ([{"prompt": "p", "chosen": "a", "rejected": "b"}], (":1", "long_po")),
    "message without content": ([ROW | {"prompt_long": [{"role": "user"}]}], (":1", "prompt_long")),
    "same id twice": ([ROW, ROW], (":2", "id")),
    "empty file": ([], ("data.jsonl",)),
    "too long": ([ROW | {"prompt_short": "a", "prompt_long": "word " * 20000}], (":1", "data.max_tokens")),
}


@pytest.fixture(autouse=True)
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("work on a model had begun")

    monkeypatch.setattr(prepare, "_import_weights", fail)


@pytest.fixture
def refuse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def run(*overrides: str) -> str:
        with pytest.raises(SystemExit) as stop:
            cli.run(lambda: run_recipe("solo_dpo", [f"output_dir={tmp_path / 'out'}", *overrides]))
        message = capsys.readouterr().err
        assert stop.value.code == cli.EXIT_USER_ERROR, message
        assert message.startswith("error: ")
        assert message.count("\n") == 1
        return message

    return run


@pytest.mark.parametrize("case", CONFIGURATION)
def test_configuration(case: str, refuse: Callable[..., str]) -> None:
    overrides, culprit = CONFIGURATION[case]
    assert culprit in refuse("data.builtin.samples=2", *overrides)


def test_rope_scaling_extends_the_window(tmp_path: Path) -> None:
    overrides = ["data.builtin.samples=2", "data.max_tokens=131072", "model.rope_scaling={type: yarn, factor: 4.0}"]
    with pytest.raises(AssertionError, match="had begun"):
        run_recipe("solo_dpo", [f"output_dir={tmp_path}", *overrides])
    with pytest.raises(UserError, match="131072"):
        run_recipe("solo_dpo", [f"output_dir={tmp_path}", *overrides, "data.max_tokens=131073"])


@pytest.mark.parametrize("case", DATA)
def test_data(case: str, tmp_path: Path, refuse: Callable[..., str]) -> None:
    rows, culprits = DATA[case]
    message = refuse(f"data.train={write(tmp_path / 'data.jsonl', rows)}", "data.max_tokens=2000")
    assert all(culprit in message for culprit in culprits), message


def test_messages_need_a_chat_template(tmp_path: Path, refuse: Callable[..., str]) -> None:
    model = tmp_path / "model"
    shutil.copytree(prepare.BUILTIN_MODEL, model)
    (model / "chat_template.jinja").unlink()
    settings = json.loads((model / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    data = write(tmp_path / "data.jsonl", [ROW])
    assert "chat template" in refuse(f"model.init={model}", f"data.train={data}")


def test_an_output_folder_that_is_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("")
    with pytest.raises(SystemExit) as stop:
        cli.run(lambda: run_recipe("solo_dpo", [f"output_dir={blocked}"]))
    assert stop.value.code == cli.EXIT_USER_ERROR
    assert "output_dir" in capsys.readouterr().err
