"""What is refused before any work, and how long a sequence a configuration allows."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hf_models
import pytest
import torch
from safetensors.torch import load_file, save_file

from solopo_nemo.commands import main as command
from solopo_nemo.families import hf
from solopo_nemo.families.description import ModelDescription
from solopo_nemo.nemo_model import convert, verify
from solopo_nemo.runtime import cli
from solopo_nemo.runtime.errors import UserError

Change = Callable[[Path], object]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hf") / "model"
    hf_models.make(hf_models.CASES["qwen2_yarn"], folder)
    return folder


@pytest.fixture
def model(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "model"))


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def begun(*_: object, **__: object) -> None:
        raise AssertionError("work had begun")

    monkeypatch.setattr(convert, "run_isolated", begun)

    def run(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["convert.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            command("convert")
        message = capsys.readouterr().err
        assert stop.value.code == cli.EXIT_USER_ERROR, message
        assert message.startswith("error: ")
        assert message.count("\n") == 1
        return message

    return run


def settings(**changes: object) -> Change:
    def change(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


def index(**places: str | None) -> Change:
    def change(folder: Path) -> None:
        file = folder / "model.safetensors.index.json"
        content = json.loads(file.read_text())
        content["weight_map"] |= places
        file.write_text(json.dumps(content))

    return change


def tensors(edit: Callable[[dict[str, torch.Tensor]], object]) -> Change:
    def change(folder: Path) -> None:
        index = json.loads((folder / "model.safetensors.index.json").read_text())
        file = folder / index["weight_map"][NORM]
        held = load_file(file)
        edit(held)
        save_file(held, file)

    return change


def cut(folder: Path) -> None:
    file = sorted(folder.glob("*.safetensors"))[0]
    file.write_bytes(file.read_bytes()[:-7])


def only_pickles(folder: Path) -> None:
    for file in folder.glob("model*"):
        file.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"")


FIRST = "model-00001-of-00003.safetensors"
NORM = "model.norm.weight"
BAD_MODELS: dict[str, tuple[Change, tuple[str, ...]]] = {
    "no config": (lambda m: (m / "config.json").unlink(), ("config.json",)),
    "config is no JSON": (lambda m: (m / "config.json").write_text("{"), ("config.json",)),
    "config is a list": (lambda m: (m / "config.json").write_text("[]"), ("config.json",)),
    "unsupported family": (settings(model_type="gpt2"), ("gpt2", "Qwen3", "Llama", "Mistral")),
    "no family": (settings(model_type=None), ("model_type", "Qwen3")),
    "architecture of another family": (settings(model_type="mixtral"), ("MixtralForCausalLM",)),
    "classifier": (settings(architectures=["Qwen2ForSequenceClassification"]), ("Classification", "Qwen2ForCausalLM")),
    "quantized": (settings(quantization_config={"quant_method": "gptq", "bits": 4}), ("quantization_config",)),
    "activation": (settings(hidden_act="gelu"), ("hidden_act=gelu", "silu")),
    "bias": (settings(attention_bias=True), ("attention_bias=True",)),
    "partial rotation": (settings(partial_rotary_factor=0.5), ("partial_rotary_factor",)),
    "key/value heads": (settings(num_key_value_heads=3), ("num_key_value_heads=3",)),
    "dynamic scaling": (settings(rope_scaling={"type": "dynamic", "factor": 2.0}), ("rope_scaling", "dynamic", "yarn")),
    "scaling without its factor": (settings(rope_scaling={"rope_type": "yarn"}), ("rope_scaling", "factor")),
    "scaling key": (settings(rope_scaling={"rope_type": "yarn", "factor": 2.0, "betafast": 1}), ("betafast",)),
    "no weights": (lambda m: [f.unlink() for f in m.glob("model*")], ("model.safetensors",)),
    "pickled weights": (only_pickles, ("model.safetensors", "save_pretrained")),
    "damaged index": (lambda m: (m / "model.safetensors.index.json").write_text("{"), ("index.json", "damaged")),
    "index without a map": (lambda m: (m / "model.safetensors.index.json").write_text("{}"), ("weight_map",)),
    "index leads out": (index(**{NORM: "../model.safetensors"}), ("index.json", "../model.safetensors")),
    "shard missing": (lambda m: (m / FIRST).unlink(), (FIRST, "index.json")),
    "shard cut short": (cut, (FIRST,)),
    "shard is no safetensors": (lambda m: (m / FIRST).write_bytes(b"x" * 64), (FIRST,)),
    "tensor not where the index says": (index(**{NORM: FIRST}), (FIRST, NORM)),
    "another model's weights": (settings(num_hidden_layers=3, layer_types=None), ("model.layers.2", "config.json")),
    "weights left over": (settings(num_hidden_layers=1, layer_types=None), ("model.layers.1",)),
    "shape": (settings(intermediate_size=128), ("128", "shape")),
    "several types": (tensors(lambda t: t.update({NORM: t[NORM].float()})), ("BF16", "F32")),
    "no tokenizer": (lambda m: [f.unlink() for f in m.glob("*token*")], ("tokenizer",)),
    "damaged tokenizer": (lambda m: (m / "tokenizer.json").write_text("{}"), ("tokenizer",)),
}


@pytest.mark.parametrize("case", BAD_MODELS)
def test_bad_models(case: str, model: Path, tmp_path: Path, refuse: Callable[..., str]) -> None:
    change, culprits = BAD_MODELS[case]
    change(model)
    message = refuse("import", model, tmp_path / "out")
    assert all(culprit in message for culprit in culprits), message
    assert not (tmp_path / "out").exists()


def test_weights_of_a_type_that_cannot_be_trained(model: Path, tmp_path: Path, refuse: Callable[..., str]) -> None:
    for file in model.glob("*.safetensors"):
        save_file({name: x.to(torch.float8_e4m3fn) for name, x in load_file(file).items()}, file)
    assert "F8_E4M3" in refuse("import", model, tmp_path / "out")


def test_bad_places(model: Path, tmp_path: Path, refuse: Callable[..., str]) -> None:
    mine, plain = tmp_path / "mine", tmp_path / "plain"
    mine.mkdir()
    (mine / "thesis.tex").write_text("")
    plain.write_text("")
    assert str(mine) in refuse("import", model, mine)
    assert str(mine) in refuse("import", model, mine, "--overwrite")
    assert (mine / "thesis.tex").exists()
    assert str(plain) in refuse("import", model, plain)
    assert str(plain) in refuse("import", model, plain / "out")
    assert "source" in refuse("import", model, model)
    assert "source" in refuse("import", model, tmp_path)
    assert "no such" in refuse("import", tmp_path / "absent", tmp_path / "out").lower()
    assert "NeMo checkpoint" in refuse("export", model, tmp_path / "out")
    assert "factor" in refuse("import", model, tmp_path / "out", "--rope-scaling", '{"rope_type": "yarn"}')
    assert "JSON object" in refuse("import", model, tmp_path / "out", "--rope-scaling", "4.0")


def test_bad_checkpoints(model: Path, tmp_path: Path, refuse: Callable[..., str]) -> None:
    checkpoint = tmp_path / "nemo"
    (checkpoint / "weights").mkdir(parents=True)
    (checkpoint / "weights" / "metadata.json").write_text("{}")
    assert "context" in refuse("export", checkpoint, tmp_path / "out", "--trust-checkpoint")
    (checkpoint / "context").mkdir()
    assert "hf" in refuse("export", checkpoint, tmp_path / "out", "--trust-checkpoint")
    (checkpoint / "hf").mkdir()
    assert "config.json" in refuse("export", checkpoint, tmp_path / "out", "--trust-checkpoint")
    hf.copy_template(model, checkpoint / "hf", {})
    assert "--max-shard-size" in refuse(
        "export", checkpoint, tmp_path / "out", "--trust-checkpoint", "--max-shard-size", "5 pounds"
    )
    (checkpoint / "hf" / "tokenizer.json").unlink()
    assert "tokenizer" in refuse("export", checkpoint, tmp_path / "out", "--trust-checkpoint")


def test_a_full_disk(model: Path, tmp_path: Path, refuse: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9 - 1000, 1000))  # type: ignore[attr-defined]
    assert "GiB" in refuse("import", model, tmp_path / "out")
    assert not list(tmp_path.glob(".*"))


def test_code_that_a_model_brings_is_not_run(model: Path, tmp_path: Path, refuse: Callable[..., str]) -> None:
    (model / "tokenization_own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    file = model / "tokenizer_config.json"
    own = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["tokenization_own.Own", None]}}
    file.write_text(json.dumps(json.loads(file.read_text()) | own))
    assert "trust_remote_code" in refuse("import", model, tmp_path / "out")
    assert not (tmp_path / "ran").exists()


def described(**changes: Any) -> ModelDescription:
    return ModelDescription.from_hf({"model_type": "qwen2"} | hf_models.SIZES | changes)


def test_a_model_that_computes_something_else_is_refused_in_one_line(
    model: Path, tmp_path: Path, refuse: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def compare(*_: object, **__: object) -> None:
        verify.compare({"text": [torch.ones(3, 4)]}, {"text": [torch.full((3, 4), 2.0)]}, f"import of {model}")

    monkeypatch.setattr(convert, "run_isolated", compare)
    assert "the logits differ" in refuse("import", model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_windows() -> None:
    yarn = {"type": "yarn", "factor": 4.0}
    assert described().window == 512
    assert described(rope_scaling=yarn).window == 2048
    assert described(rope_scaling=yarn | {"original_max_position_embeddings": 256}).window == 1024
    assert described(rope_scaling={"rope_type": "linear", "factor": 2.0}).window == 1024
    assert described(rope_scaling={"rope_type": "default"}).window == 512
    assert described(model_type="llama", rope_scaling=hf_models.LLAMA3).window == 512


def test_sliding_windows() -> None:
    assert described().attention_window is None
    assert described(sliding_window=8).attention_window is None  # Qwen2 states one that it does not use
    some = described(use_sliding_window=True, sliding_window=8, max_window_layers=1)
    assert some.attention_window == (8, [False, True])
    assert described(model_type="mistral", sliding_window=8).attention_window == (8, [True, True])
    assert described(model_type="mistral", sliding_window=512).attention_window is None
    assert described(model_type="mistral", sliding_window=None).attention_window is None


def test_other_rope_scaling_replaces_the_models_own(whole: Path) -> None:
    model = hf.read_config(whole, rope_scaling={"type": "yarn", "factor": 2.0})
    assert model.rope_scaling == {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 512}
    assert (model.max_position_embeddings, model.window) == (1024, 1024)
    assert model.changes() == {"rope_scaling": model.rope_scaling, "max_position_embeddings": 1024}
    with pytest.raises(UserError, match=r"model\.rope_scaling.*factor=0\.5"):
        hf.read_config(whole, rope_scaling={"type": "yarn", "factor": 0.5}, rope_key="model.rope_scaling")


def test_a_logit_that_is_no_number_is_a_difference() -> None:
    want = {"text": [torch.ones(3, 4), torch.ones(3, 4)]}
    assert verify.compare({"text": [x + 1e-5 for x in want["text"]]}, want, "import")["text"] == pytest.approx(
        1e-5, rel=1e-2
    )
    broken = [torch.ones(3, 4), torch.full((3, 4), torch.nan)]
    for got in (broken, broken[::-1], [x * 1.001 for x in want["text"]]):
        with pytest.raises(verify.LogitsDifferError, match="text"):
            verify.compare({"text": got}, want, "import")
    with pytest.raises(UserError, match="not finite"):
        verify.compare({"text": broken}, {"text": broken}, "import")
