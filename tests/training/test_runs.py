"""Whole recipe runs: what they leave behind, exact resumption, and other layouts through NeMo's trainer."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from runs import ROOT, SECRETS, inject, rows, run, started

pytestmark = pytest.mark.slow


def interrupted(finished: Path, output: Path) -> Path:
    """The run as it was when step 2 had been saved and step 4 had not."""
    shutil.copytree(finished, output)
    for part in ("checkpoints/step_000004", "hf", "report"):
        shutil.rmtree(output / part)
    return output


def test_a_run_leaves_what_the_interface_says(finished: Path) -> None:
    for name in (
        "config.yaml",
        "metrics.jsonl",
        "checkpoints",
        "hf/config.json",
        "hf/model.safetensors",
        "report/index.html",
    ):
        assert (finished / name).exists(), name
    assert list((finished / "report").glob("*.png"))
    got = rows(finished)
    assert [row["step"] for row in got] == [1, 2, 3, 4]
    assert got[0]["loss/po"] == pytest.approx(math.log(2), rel=1e-6)
    keys = {
        "loss",
        "loss/align",
        "rewards/chosen_long",
        "align/gap",
        "align/signed_gap",
        "logps/chosen",
        "lr",
        "grad_norm",
    }
    assert keys | {"epoch", "tokens", "tokens_long"} <= got[0].keys()
    accuracy = json.loads((finished / "accuracy.json").read_text())
    assert accuracy["before"][0]["total"] == accuracy["after"][0]["total"] == 4


def test_no_secret_is_written_anywhere(finished: Path) -> None:
    assert list(finished.glob("logs/wandb/offline-run-*"))
    for file in (p for p in finished.rglob("*") if p.is_file()):
        content = file.read_bytes()
        assert not [name for name, secret in SECRETS.items() if secret.encode() in content], file


def test_the_exported_policy_moved_and_generates(finished: Path) -> None:
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from solopo_nemo.runtime.paths import EMBEDDED_MODEL

    before, after = load_file(EMBEDDED_MODEL / "model.safetensors"), load_file(finished / "hf" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(not torch.equal(before[k], after[k]) for k in before if "bias" not in k)
    model = AutoModelForCausalLM.from_pretrained(finished / "hf")
    tokenizer = AutoTokenizer.from_pretrained(finished / "hf")
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hello"}], add_generation_prompt=True, return_tensors="pt"
    )
    assert model.generate(ids, max_new_tokens=2).shape[1] > ids.shape[1]


def test_a_finished_run_is_not_trained_again(finished: Path) -> None:
    before = (finished / "metrics.jsonl").stat().st_mtime_ns
    assert "finished" in run(finished).stdout
    assert (finished / "metrics.jsonl").stat().st_mtime_ns == before


def test_other_settings_do_not_continue_a_run(finished: Path) -> None:
    message = run(finished, "optim.lr=0.5", expect=2).stderr
    assert "optim.lr" in message
    assert "Traceback" not in message


def test_resuming_is_exact(finished: Path, tmp_path: Path) -> None:
    output = interrupted(finished, tmp_path / "resumed")
    run(output, "logger.wandb=tests", WANDB_MODE="offline")
    assert rows(output) == rows(finished)
    first, second = output.glob("logs/wandb/offline-run-*")
    assert first.name.rpartition("-")[2] == second.name.rpartition("-")[2], "one run of Weights & Biases"


def computed(folder: Path) -> list[list[list[str]]]:
    """By step and rank, the ids of the samples that one start of a run computed."""
    by_rank = []
    for file in sorted(folder.iterdir()):
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        steps = 1 + max(line["step"] for line in lines)
        by_rank.append([[i for line in lines if line["step"] == step for i in line["ids"]] for step in range(steps)])
    return [list(ranks) for ranks in zip(*by_rank, strict=True)]


def test_a_run_that_changes_its_layout_after_every_step(finished: Path, tmp_path: Path) -> None:
    from solopo_nemo.data.prepared import load_prepared
    from solopo_nemo.training.datamodule import SampleStream

    # a rate at which Adam's first steps do not blow up rounding: what is wrong after a resume shows a hundred times larger
    frozen = ROOT / "tests" / "support" / "frozen" / "triplets.jsonl.gz"  # log-probabilities of about -1, not -3
    gentle = ["evaluation.name=none", "optim.lr=1.0e-5", "optim.min_lr=1.0e-6", f"data.train={frozen}"]
    gentle += ["objective.alpha=3.0"]
    whole, output = started(finished, tmp_path / "whole"), started(finished, tmp_path / "moved")
    run(whole, *gentle)
    prepared = load_prepared(whole / "data" / "tokenized").dataset
    stream = SampleStream(prepared, steps=4, global_batch=4, seed=1234, costs=np.ones(len(prepared)))
    layouts = (
        ["parallel.tensor=2", "parallel.sequence=true"],
        ["parallel.context=2"],
        ["parallel.data=2", "trainer.micro_batch=1"],
        [],
    )
    for step, layout in enumerate(layouts):
        ids, last = tmp_path / f"ids_{step}", step == len(layouts) - 1
        ids.mkdir()
        # no checkpoint is due on the way: each is one that a stopped run leaves
        settings = ["trainer.checkpoint_every=100", *gentle, "+plugins=[injected]", *layout]
        orders = [] if last else [inject("signal", rank=1, step=1)]
        run(output, *settings, expect=0 if last else 75, orders=orders, INJECT_IDS=str(ids))
        (got,) = computed(ids)
        for part in [[*got[0], *got[1]]] if "parallel.data=2" in layout else got:  # model-parallel ranks: all the same
            assert sorted(part) == sorted(stream[step * 4 + i]["id"] for i in range(4))
    for got_row, want in zip(rows(output), rows(whole), strict=True):
        assert got_row["tokens"] == want["tokens"]
        assert got_row["loss"] == pytest.approx(want["loss"], rel=1e-5)
        for key in ("loss/po", "loss/align", "logps/chosen", "logps/chosen_long"):
            assert got_row[key] == pytest.approx(want[key], rel=1e-5, abs=1e-5), (got_row["step"], key)


@pytest.mark.parametrize(
    "layout",
    [
        ["parallel.context=2", "objective.reference=online"],
        ["parallel.pipeline=2", "objective.reference=online"],
        ["parallel.data=2", "trainer.micro_batch=1"],
    ],
    ids=["cp2_online", "pp2_online", "dp2"],
)
def test_layouts_agree_through_the_trainer(finished: Path, tmp_path: Path, layout: list[str]) -> None:
    run(started(finished, tmp_path / "out"), *layout, "evaluation.name=none")
    for got, want in zip(rows(tmp_path / "out"), rows(finished), strict=True):
        for key in ("loss", "loss/po", "logps/chosen", "logps/chosen_long", "grad_norm", "lr", "tokens", "tokens_long"):
            # Adam's first steps have the size of the learning rate whatever the gradient's, rounding of tiny ones included
            assert got[key] == pytest.approx(want[key], rel=2e-5 if got["step"] == 1 else 1e-3, abs=1e-5), key


@pytest.mark.parametrize(
    ("recipe", "overrides"),
    [
        ("solo_simpo", []),
        ("solo_orpo", ["objective.align=both"]),
        ("solo_ipo", ["objective.alignment_reference=full"]),
        ("solo_slic", ["objective.nll_weight=0.5"]),
        ("long_po", ["objective=dpo"]),
        ("longpo", []),
        ("sft", []),
    ],
    ids=lambda x: x if isinstance(x, str) else "-".join(x),
)
def test_every_recipe_trains(finished: Path, tmp_path: Path, recipe: str, overrides: list[str]) -> None:
    output = started(finished, tmp_path / "out")
    run(output, "trainer.max_steps=2", "evaluation.name=none", *overrides, script=f"recipes/{recipe}.py")
    got = rows(output)
    assert len(got) == 2
    assert all(math.isfinite(value) for row in got for value in row.values())
    assert got[0]["loss"] != got[1]["loss"]
    assert (output / "hf" / "model.safetensors").is_file()


def test_bf16_trains_leaves_out_a_gradient_and_exports_the_trained_end(tmp_path: Path) -> None:
    from solopo_nemo.runtime.paths import EMBEDDED_MODEL

    output, model = tmp_path / "out", shutil.copytree(EMBEDDED_MODEL, tmp_path / "model")
    (model / "generation_config.json").write_text('{"eos_token_id": 0}')  # the answers end with <|im_end|>, 2
    settings = ["trainer.precision=bf16", "model.recompute=full", "trainer.max_steps=3", "evaluation.name=none"]
    settings.append(f"model.init={model}")
    orders = [inject("nan gradient", rank=0, step=2)]
    said = run(output, *settings, "trainer.nonfinite=skip", "+plugins=[injected]", orders=orders).stdout
    assert "<|im_end|> (2) is added to eos_token_id" in " ".join(said.split())
    assert json.loads((output / "hf" / "generation_config.json").read_text()) == {"eos_token_id": [2, 0]}
    assert (output / "hf" / "config.json").read_bytes() == (model / "config.json").read_bytes()
    got = rows(output)
    assert [row.get("skipped", 0) for row in got] == [0, 1, 1]
    assert all(math.isfinite(row["loss"]) for row in got)
    assert got[0]["loss"] != got[2]["loss"]
    assert (output / "hf" / "model.safetensors").is_file()


def test_the_reference_is_cached_once_and_then_found(finished: Path, tmp_path: Path) -> None:
    output = started(finished, tmp_path / "out")
    run(output, "evaluation.name=none", script="tools/cache_reference.py")
    (scores,) = output.glob("reference/*/scores.jsonl")
    assert len(scores.read_text().splitlines()) == 10
    assert not (output / "checkpoints").exists()
    written = scores.stat().st_mtime_ns
    run(output, "evaluation.name=none", "parallel.data=2", "trainer.micro_batch=1")
    assert scores.stat().st_mtime_ns == written
    assert rows(output)[0]["loss"] == pytest.approx(rows(finished)[0]["loss"], rel=1e-6)
    # lost later: the tool scores with the initial weights, not with the trained ones
    lost = scores.read_text()
    scores.unlink()
    run(output, "evaluation.name=none", script="tools/cache_reference.py")
    assert sorted(scores.read_text().splitlines()) == sorted(lost.splitlines())
