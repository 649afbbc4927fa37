"""Sampling with the embedded model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import solopo_nemo
from solopo_nemo.builders.pairs.backend import Refused, Request, Sampling
from solopo_nemo.builders.pairs.hf import HuggingFaceBackend
from solopo_nemo.embedded import generate_contexts, generate_triplets
from solopo_nemo.runtime.errors import UserError

MODEL = Path(solopo_nemo.__file__).parent / "assets" / "tiny_qwen2"
SAMPLING = Sampling(backend="hf", model=str(MODEL), samples=4, temperature=3.0, max_new_tokens=40)


def requests(count: int) -> list[Request]:
    rows = generate_contexts(count, seed=1, short_paragraphs=4, long_paragraphs=4)
    return [Request(row["id"], "short", row["prompt_short"]) for row in rows]


def test_samples_depend_on_the_prompt_and_the_seed_only() -> None:
    first, second = requests(2)
    backend = HuggingFaceBackend(SAMPLING)
    both = backend.sample(first, 0), backend.sample(second, 0)
    assert backend.sample(first, 0) == both[0]
    assert HuggingFaceBackend(SAMPLING).sample(second, 0) == both[1]
    assert HuggingFaceBackend(replace(SAMPLING, seed=1)).sample(first, 0) != both[0]
    assert backend.sample(replace(first, id="another"), 0) != both[0]
    assert all(len(samples) == 4 for samples in both)


def test_batches_do_not_repeat_each_other() -> None:
    backend = HuggingFaceBackend(replace(SAMPLING, batch=3, samples=7))
    batches = [backend.sample(requests(1)[0], have) for have in (0, 3, 6)]
    assert [len(samples) for samples in batches] == [3, 3, 1]
    assert len({sample for samples in batches for sample in samples}) == 7
    # each by itself, whatever was sampled before
    assert HuggingFaceBackend(replace(SAMPLING, batch=3, samples=7)).sample(requests(1)[0], 3) == batches[1]


@pytest.mark.parametrize("prompt", ["messages", "x", "a plain prompt"])
def test_a_prompt_that_is_run_once_gives_the_samples_of_one_run_for_each(prompt: str) -> None:
    (request,) = requests(1)
    if prompt != "messages":
        request = replace(request, prompt=prompt)
    backend = HuggingFaceBackend(SAMPLING)
    ids = torch.tensor(backend._encoder.encode_prompts([request.prompt], ["here"]))
    torch.manual_seed(SAMPLING.seed_of(request, 0))
    out = backend._model.generate(
        ids, attention_mask=torch.ones_like(ids), num_return_sequences=4, do_sample=True, temperature=3.0, top_k=0,
        max_new_tokens=40, eos_token_id=backend._ends, pad_token_id=backend._tokenizer.pad_token_id,
    )  # fmt: skip
    wanted = backend._tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)
    for _ in range(2):
        assert [sample.text for sample in backend.sample(request, 0)] == [text.strip() for text in wanted]


def test_an_answer_has_an_end_or_is_cut() -> None:
    samples = HuggingFaceBackend(replace(SAMPLING, temperature=0.1)).sample(requests(1)[0], 0)
    assert all(sample.text.startswith("Facts: ") and not sample.cut for sample in samples)
    samples = HuggingFaceBackend(replace(SAMPLING, max_new_tokens=3)).sample(requests(1)[0], 0)
    assert all(sample.cut for sample in samples)


def test_a_prompt_beyond_the_model_is_refused() -> None:
    backend = HuggingFaceBackend(replace(SAMPLING, max_new_tokens=10**6))
    with pytest.raises(Refused, match=r"1000000 new ones exceed the model's \d+"):
        backend.sample(requests(1)[0], 0)


def test_a_folder_without_model_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        HuggingFaceBackend(replace(SAMPLING, model=str(tmp_path / "none")))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (tmp_path / name).write_bytes((MODEL / name).read_bytes())
    with pytest.raises(UserError, match=r"config\.json: cannot be read"):
        HuggingFaceBackend(replace(SAMPLING, model=str(tmp_path)))


def test_the_embedded_pairs_were_sampled_from_the_embedded_model() -> None:
    backend = HuggingFaceBackend(Sampling("hf", str(MODEL), samples=32, temperature=1.2, max_new_tokens=48))
    found = 0
    for row in generate_triplets(8):
        texts = {sample.text for sample in backend.sample(Request(row["id"], "short", row["prompt_short"]), 0)}
        found += {row["chosen"], row["rejected"]} <= texts
    assert found >= 6  # on another processor a draw may fall on the other side of a boundary
