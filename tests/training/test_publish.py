"""The model card, and the upload to a hub that stands in for the real one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import yaml

from solopo_nemo.config.schema import RunConfig, load_config
from solopo_nemo.runtime.errors import UserError
from solopo_nemo.training.publish import push, write_card

TOKEN = "hf_secret"


class Hub:
    """What a hub was asked; its repository takes what is uploaded, or nothing."""

    asked: list[tuple[str, dict[str, Any]]]
    error: Exception | None

    def create_repo(self, repo_id: str, **given: Any) -> str:
        if self.error:
            raise self.error
        self.asked.append((repo_id, given))
        return f"https://hub/{repo_id}"

    def upload_folder(self, **given: Any) -> None:
        self.asked.append(("upload", given))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> type[Hub]:
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    Hub.asked, Hub.error = [], None
    return Hub


def run(folder: Path, *overrides: str) -> RunConfig:
    config = load_config("solo_dpo", [f"output_dir={folder}", *overrides])
    (folder / "hf").mkdir()
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 4, "loss": 0.25, "rewards/accuracy": 0.75}) + "\n")
    return config


def test_the_card_says_what_was_trained(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "pairs|1.jsonl").write_text("")
    config = run(tmp_path, "model.init=Qwen/Qwen2.5-7B-Instruct", f"data.train={tmp_path}/data/pairs|1.jsonl")
    measured = {"length": 8, "paragraphs": 64, "tokens": 1.0, "correct": 3, "total": 4}
    measured |= {"accuracy": 0.75, "low": 0.5, "high": 0.9}
    (tmp_path / "accuracy.json").write_text(json.dumps({"after": [measured]}))
    write_card(config, 4)
    text = (tmp_path / "hf" / "README.md").read_text()
    _, head, body = text.split("---\n")
    assert yaml.safe_load(head) == {
        "base_model": "Qwen/Qwen2.5-7B-Instruct",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["solopo", "preference-optimization", "long-context", "dpo"],
    }
    for cell in (
        "| Data | pairs\\|1.jsonl |",
        "| Training | 4 steps of 16 samples,",
        "| Last step | loss 0.25, rewards/accuracy 0.75 |",
        "| Answer accuracy after | 8x 75.0 % |",
        "`beta=0.1`",
        "megatron-core 0.",
        "arXiv:2505.11166",
    ):
        assert cell in body, cell
    assert str(tmp_path) not in text, "a path of this machine"


def test_the_card_of_a_run_with_adapters_names_them(tmp_path: Path) -> None:
    config = run(
        tmp_path, "peft=lora", "peft.rank=4", "peft.alpha=8", "peft.targets=[v_proj,q_proj]", "peft.merge=true"
    )
    write_card(config, 4)
    assert "| Adapters | LoRA, rank 4, alpha 8, q_proj, v_proj |" in (tmp_path / "hf" / "README.md").read_text()


@pytest.mark.parametrize(("adapters", "folder"), [((), "hf"), (("peft=lora",), "hf_adapter")])
def test_the_policy_is_uploaded_without_its_record(
    tmp_path: Path, hub: type[Hub], adapters: tuple[str, ...], folder: str
) -> None:
    config = run(tmp_path, "hub.push=me/mine", *adapters)
    (tmp_path / "hf").rename(tmp_path / folder)
    push(config)
    (repository, given), (_, upload) = hub.asked
    assert (repository, given) == ("me/mine", {"private": True, "exist_ok": True})
    assert (upload["repo_id"], upload["folder_path"]) == ("me/mine", tmp_path / folder)
    assert upload["ignore_patterns"] == ["conversion.json"], "it names paths of this machine"


def test_an_upload_that_fails_is_one_line(tmp_path: Path, hub: type[Hub], monkeypatch: pytest.MonkeyPatch) -> None:
    config = run(tmp_path, "hub.push=me/mine")
    hub.error = ConnectionError("no\nroute")
    with pytest.raises(
        UserError, match=r"^hub\.push=me/mine: no route; the policy is in .*/hf, and the same command"
    ) as e:
        push(config)
    assert TOKEN not in str(e.value)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(UserError, match="no token; set HF_TOKEN"):
        push(config)
