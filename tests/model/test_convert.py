"""Hugging Face folder to NeMo checkpoint and back: bit-exact, configuration and tokenizer carried along."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from solopo_nemo.errors import UserError
from solopo_nemo.model.convert import run_apart
from solopo_nemo.training.prepare import BUILTIN_MODEL

pytestmark = pytest.mark.slow

SIZES = dict(
    vocab_size=2048, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=False,
)  # fmt: skip


def random_model(family: str, folder: Path) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SIZES), torch_dtype=torch.float32)
    for name, parameter in model.named_parameters():
        # random norms: with all ones, a norm that was never loaded would go unseen
        torch.nn.init.normal_(parameter, 1.0 if "norm" in name else 0.0, 0.1)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(BUILTIN_MODEL).save_pretrained(folder)
    return model


@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_round_trip(family: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = random_model(family, tmp_path / "hf")
    run_apart("import", tmp_path / "hf", tmp_path / "checkpoint")
    run_apart("export", tmp_path / "checkpoint", tmp_path / "back")
    back = AutoModelForCausalLM.from_pretrained(tmp_path / "back")
    want, got = model.state_dict(), back.state_dict()
    assert got.keys() == want.keys()
    assert all(torch.equal(got[key], want[key]) for key in want)
    for field in ("rope_theta", "max_position_embeddings", "tie_word_embeddings", "rms_norm_eps", "eos_token_id"):
        assert getattr(back.config, field) == getattr(model.config, field), field
    text = [{"role": "user", "content": "Hello"}]
    rendered = [
        AutoTokenizer.from_pretrained(folder).apply_chat_template(text, tokenize=False)
        for folder in (tmp_path / "back", BUILTIN_MODEL)
    ]
    assert rendered[0] == rendered[1]


def test_a_family_that_is_not_supported(tmp_path: Path) -> None:
    from transformers import GPT2Config

    GPT2Config(n_layer=1).save_pretrained(tmp_path / "gpt2")
    with pytest.raises(UserError, match="gpt2"):
        run_apart("import", tmp_path / "gpt2", tmp_path / "out")
    assert not (tmp_path / "out").exists()
