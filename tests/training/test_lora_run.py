"""A run with adapters: what it leaves, its exact resumption, another layout, and going on from its folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import rows, run, started
from safetensors.torch import load_file

from solopo_nemo.families.adapter import SETTINGS, WEIGHTS, merge_adapter
from solopo_nemo.runtime.paths import EMBEDDED_MODEL

pytestmark = pytest.mark.distributed
LORA = ["peft=lora", "peft.rank=4", "peft.alpha=8", "evaluation.name=none", "data.builtin.long_paragraphs=16"]


@pytest.fixture(scope="module")
def adapted(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with adapters, dropout included, measured before and after."""
    output = started(finished, tmp_path_factory.mktemp("lora") / "adapted")
    run(output, *LORA, "peft.dropout=0.1", "evaluation.name=auto")
    return output


def interrupted(adapted: Path, output: Path) -> Path:
    """The run after its second step."""
    shutil.copytree(adapted, output, symlinks=True)
    for part in ("checkpoints/step_000004", "hf_adapter", "report"):
        shutil.rmtree(output / part)
    return output


def test_a_run_leaves_its_adapters_and_no_weights(adapted: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base: Any = AutoModelForCausalLM.from_pretrained(EMBEDDED_MODEL, dtype=torch.float32)
    parameters, ids = sum(p.numel() for p in base.parameters()), torch.arange(50)[None]
    before = base(ids).logits
    policy = PeftModel.from_pretrained(base, adapted / "hf_adapter")
    assert (policy(ids).logits - before).abs().max() > 1e-3
    assert not (adapted / "hf").exists()
    checkpoint = adapted / "checkpoints" / "step_000004"
    assert sum(p.stat().st_size for p in checkpoint.rglob("*.distcp")) < 4 * parameters
    first = rows(adapted)[0]
    assert first["rewards/margin"] == first["rewards/chosen"] == 0.0  # dropout times B = 0
    assert (adapted / "accuracy.json").is_file()


def test_a_run_goes_on_from_its_adapters_to_the_bit(adapted: Path, tmp_path: Path) -> None:
    again = interrupted(adapted, tmp_path / "again")
    run(again, *LORA, "peft.dropout=0.1")
    assert rows(again) == rows(adapted)
    got, want = (load_file(output / "hf_adapter" / WEIGHTS) for output in (again, adapted))
    assert all(torch.equal(got[name], want[name]) for name in want)


def test_another_layout_and_a_cached_reference_go_on_from_the_folder(
    finished: Path, adapted: Path, tmp_path: Path
) -> None:
    """From the folder on, with a cached reference, TP, SP and merged weights; and from a checkpoint on, with PP."""
    asked = [*LORA, f"model.adapter={adapted / 'hf_adapter'}", "trainer.max_steps=2", "trainer.checkpoint_every=1"]
    one, two = (started(finished, tmp_path / name) for name in ("one", "two"))
    run(one, *asked)
    run(two, *asked, "objective.reference=cached", "parallel.tensor=2", "parallel.sequence=true", "peft.merge=true")
    for got, want in zip(rows(two), rows(one), strict=True):
        assert got["rewards/chosen"] != 0  # the reference is the base, not the adapters at the start
        agree(got, want)
    merge_adapter(EMBEDDED_MODEL, two / "hf_adapter", tmp_path / "merged")
    got_hf, want_hf = (load_file(folder / "model.safetensors") for folder in (two / "hf", tmp_path / "merged"))
    for name, tensor in want_hf.items():
        torch.testing.assert_close(got_hf[name], tensor, rtol=1e-5, atol=1e-6)
    want = rows(one)
    for part in ("checkpoints/step_000002", "hf_adapter", "report"):
        shutil.rmtree(one / part)
    run(one, *asked, "parallel.pipeline=2")
    agree(rows(one)[1], want[1])


def agree(got: dict[str, Any], want: dict[str, Any]) -> None:
    for key in ("loss", "loss/po", "rewards/chosen", "logps/chosen_long", "grad_norm"):
        assert got[key] == pytest.approx(want[key], rel=2e-5 if got["step"] == 1 else 1e-3, abs=1e-5), key


def test_the_adapter_says_what_it_is(adapted: Path) -> None:
    import json

    settings = json.loads((adapted / "hf_adapter" / SETTINGS).read_text())
    assert (settings["r"], settings["lora_alpha"], settings["lora_dropout"]) == (4, 8.0, 0.1)
    assert "rank 4" in (adapted / "report" / "index.html").read_text()
