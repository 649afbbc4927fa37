"""tools/plan.py from its command line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from zygote import forking

from solopo_nemo.commands import plan
from solopo_nemo.runtime.errors import UserError

Main = Callable[[list[str]], None]


@pytest.fixture(scope="module")
def main() -> Main:
    return plan.main


def answer(main: Main, capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    main([*arguments, "--json"])
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_everything_is_answered_without_a_model_folder(
    main: Main, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    longer = "model.rope_scaling={type: yarn, factor: 32.0}"
    layout = ["model=qwen2_5_7b", "parallel.tensor=4", "parallel.sequence=true", longer]
    found = answer(main, capsys, *layout, "--gpus", "16", "--length", "256K", "--plot", str(tmp_path / "plan.png"))
    assert found["lengths"]["long"] == 262144
    assert not found["configured"]["fits"]
    assert "predicted" in found["advice"]
    assert all(plan["fits"] for plan in found["best"])
    assert 0 < found["longest"] < 262144 < found["furthest"]["long"]
    assert {path.name for path in tmp_path.iterdir()} == {"plan.png", "plan-dark.png"}


def test_solopo_beside_vanilla_and_a_shorter_context_beside_a_longer(
    main: Main, capsys: pytest.CaptureFixture[str]
) -> None:
    longer = "model.rope_scaling={type: yarn, factor: 32.0}"
    common = ["model=qwen2_5_7b", "parallel.tensor=4", "parallel.sequence=true", longer]
    solo, vanilla = (answer(main, capsys, recipe, *common, "--length", "32K") for recipe in ("solo_dpo", "long_po"))
    assert answer(main, capsys, "solo_dpo", *common, "objective.alpha=auto", "--length", "32K") == solo
    assert solo["configured"]["step_seconds"] < vanilla["configured"]["step_seconds"]
    assert solo["longest"] > vanilla["longest"]


@pytest.mark.parametrize(
    ("scaling", "memory", "limits"),
    [
        ((), 80, ("window", "window")),
        (("model.rope_scaling={type: yarn, factor: 4.0}",), 60, ("memory", "window")),
        (("model.rope_scaling={type: yarn, factor: 64.0}",), 60, ("memory", "memory")),
        (("model.rope_scaling={type: linear, factor: 2.0}",), 80, ("window", "window")),
    ],
)
def test_the_longest_prompt_is_that_of_memory_or_window(
    scaling: tuple[str, ...],
    memory: int,
    limits: tuple[str, str],
    main: Main,
    capsys: pytest.CaptureFixture[str],
) -> None:
    layout = ["model=qwen2_5_7b", "parallel.tensor=4", "parallel.sequence=true", *scaling]
    arguments = [*layout, "--gpus", "8", "--gpu-memory", str(memory), "--response", "256"]
    main(arguments)
    shown = " ".join(capsys.readouterr().out.split())
    found = answer(main, capsys, *arguments)
    window = 32768 * round(float(scaling[0].split()[-1].rstrip("}"))) if scaling else 32768
    assert (found["longest_limit"], found["furthest"]["limit"]) == limits
    for limit, long in zip(limits, (found["longest"], found["furthest"]["long"]), strict=True):
        assert (long == window - 256) == (limit == "window") and long <= window - 256
        by = "by memory" if limit == "memory" else "by the model's window"
        assert f"{long:,} tokens, {by}" in shown
    assert found["furthest"]["fits"]


def test_samples_come_from_the_data_where_they_are_at_hand(
    main: Main, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    data = tmp_path / "triplets.jsonl"
    data.write_text('{"id": "a"}\n{"id": "b"}\n{"id": "c"}\n')
    found = answer(main, capsys, "model=qwen2_5_7b", f"data.train={data}")
    assert (found["samples"], found["epoch"]) == (3, f"3 samples of {data}")
    assert answer(main, capsys, "model=qwen2_5_7b", "data.train=elsewhere.jsonl")["samples"] == 5000


@pytest.mark.parametrize(
    ("given", "counted", "train", "words"),
    [
        (7, None, "builtin", ""),
        (None, 1216, "builtin", " (the built-in data; data.train or --samples sets yours)"),
        (None, None, "no.jsonl", " (assumed, as data.train=no.jsonl is not here; --samples sets them)"),
    ],
)
def test_an_epoch_says_what_it_is_of(given: int | None, counted: int | None, train: str, words: str) -> None:
    config: Any = SimpleNamespace(data=SimpleNamespace(train=train))
    assert plan._whose(given, counted, config) == words


def test_the_readmes_job_fits_by_its_own_planner(main: Main, capsys: pytest.CaptureFixture[str]) -> None:
    command = (Path(__file__).parents[2] / "README.md").read_text().split("tools/launch.sh ")[1].split("\n\n")[0]
    words = command.replace("\\\n", " ").split()
    nodes, gpus = (int(words[words.index(option) + 1]) for option in ("--nodes", "--gpus-per-node"))
    keys = [word for word in words if word.startswith(("model=", "parallel.", "data.train="))]
    found = answer(main, capsys, *keys, "--gpus", str(nodes * gpus))
    assert found["configured"]["fits"] and len(keys) == 4
    hours, minutes, _ = map(int, words[words.index("--time") + 1].split(":"))
    assert found["configured"]["epoch_hours"] < hours + minutes / 60, "an epoch of 5,000 samples within the time limit"
    assert answer(main, capsys, "trainer.global_batch=32")["samples"] == 1216


@pytest.mark.slow
def test_the_fastest_layout_is_traced_where_that_is_asked_for() -> None:
    """Two ranks of the embedded model: a forked process, some 3 s."""
    words = ["--gpus", "2", "--length", "2K", "--trace", "--json"]
    with forking():
        done = subprocess.run([sys.executable, "tools/plan.py", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    traced, best = found["traced"], found["best"][0]
    assert traced["layout"] == best["layout"]
    assert traced["lengths"]["prompt_long"] == 2048
    assert traced["fits"]
    modelled = best["memory"]["peak_gib"] - traced["device_gib"]
    assert 0.5 < (traced["peak_gib"] - traced["device_gib"]) / modelled < 1.5  # of 0.06 GiB, most is tiles of the head
    assert f"the first, traced itself: {traced['peak_gib']:.1f} GiB, fits" in " ".join(done.stdout.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpus", "0"], "--gpus"),
        (["--mfu", "2"], "--mfu"),
        (["--length", "long"], "--length"),
        (["--optimizer", "none"], "--optimizer"),
        (["--trace", "--optimizer", "offloaded"], "--trace traces the recipes' optimizer"),
        (["no_recipe"], "no such recipe"),
        (["no.key=1"], "no.key|Key"),
        (["parallel.tensor=2", "--gpus", "7"], "world of 7 ranks"),
        (["model=qwen2_5_7b", "parallel.tensor=3", "--gpus", "3", "trainer.global_batch=3"], "28 attention heads"),
    ],
)
def test_bad_arguments_are_one_line(main: Main, arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        main(arguments)
    assert "\n" not in str(raised.value)
