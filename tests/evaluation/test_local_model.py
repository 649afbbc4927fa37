"""Evaluating a model that runs here: the same answers as transformers gives, and lm_eval's own tasks."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import solopo_nemo
from solopo_nemo.embedded import generate_evaluation
from solopo_nemo.evaluation.models import EvaluatedModel, ModelSettings
from solopo_nemo.evaluation.run import evaluate
from solopo_nemo.evaluation.settings import SuiteSettings
from solopo_nemo.evaluation.suites import SUITES, find_suites, open_llm
from solopo_nemo.evaluation.suites.builtin import SEED
from solopo_nemo.runtime.errors import UserError
from solopo_nemo.training.checkpoints import selection

ASSET = Path(solopo_nemo.__file__).parent / "assets" / "tiny_qwen2"
LETTERS = "ABCD"


def test_answers_are_those_of_transformers(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    measured = evaluate(ModelSettings(str(ASSET)), [SUITES["builtin"]], SuiteSettings(tmp_path, limit=3), tmp_path)
    given = json.loads((tmp_path / "cells" / "builtin" / "2x.json").read_text())["samples"]
    tokenizer: Any = AutoTokenizer.from_pretrained(ASSET)
    model: Any = AutoModelForCausalLM.from_pretrained(ASSET)
    for one, question in zip(given, generate_evaluation(3, SEED, 16), strict=True):
        ids = tokenizer.apply_chat_template(question["prompt"], add_generation_prompt=True, return_tensors="pt")
        out = model.generate(ids, do_sample=False, max_new_tokens=64)[0, ids.shape[1] :]
        assert one["response"].strip() == tokenizer.decode(out, skip_special_tokens=True).strip()
    assert len(measured.suites["builtin"]) == 4 * 3
    assert measured.name == "tiny_qwen2"


def _multiple_choice(right: int) -> Any:
    """A task of lm_eval's kind; ``right`` is the place of the right answer."""
    from datasets import Dataset
    from lm_eval.api.task import ConfigurableTask

    rows = Dataset.from_list([{"question": f"What is {n} and {n}?"} for n in range(3)])
    return ConfigurableTask(
        config={
            "task": f"choice-{right}",
            "custom_dataset": lambda **_: {"test": rows},
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": "{{question}}",
            "doc_to_choice": ["Facts", "zzzzqq"],
            "doc_to_target": right,
            "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        }
    )


def test_tasks_of_lm_eval_run_and_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model begins every answer with "Facts": right in one task, wrong in the other."""
    tasks = {"leaderboard_one": 0, "leaderboard_two": 1}

    class Manager:
        def load(self, names: list[str]) -> dict[str, Any]:
            return {"tasks": {name: _multiple_choice(tasks[name]) for name in names}}

    monkeypatch.setattr("lm_eval.tasks.TaskManager", Manager)
    monkeypatch.setattr(open_llm, "_require_math", lambda: None)
    monkeypatch.setattr(open_llm, "GROUPS", {"One": ("leaderboard_one", "acc"), "Two": ("leaderboard_two", "acc")})
    measured = evaluate(ModelSettings(str(ASSET)), find_suites("open_llm"), SuiteSettings(tmp_path), tmp_path)
    means = measured.suites["open_llm"].groupby("benchmark")["value"].mean()
    assert means.to_dict() == {"One": 1.0, "Two": 0.0}


def test_a_benchmark_that_cannot_be_loaded_says_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Manager:
        def load(self, names: list[str]) -> dict[str, Any]:
            raise ConnectionError("no hub here")

    monkeypatch.setattr("lm_eval.tasks.TaskManager", Manager)
    with pytest.raises(UserError, match=r"MATH is scored with .* PYTHONPATH=\.math"):
        evaluate(ModelSettings(str(ASSET)), find_suites("open_llm"), SuiteSettings(tmp_path), tmp_path)
    monkeypatch.setattr(open_llm, "_require_math", lambda: None)
    with pytest.raises(UserError, match=r"MMLU-Pro: .*no hub here.*HF_HOME"):
        evaluate(ModelSettings(str(ASSET)), find_suites("open_llm"), SuiteSettings(tmp_path), tmp_path)


@pytest.mark.slow
def test_the_benchmarks_are_known_to_lm_eval() -> None:
    from lm_eval.tasks import TaskManager

    manager = TaskManager()
    assert {group for group, _ in open_llm.GROUPS.values()} <= set(manager.all_tasks)


def test_yarn_extends_the_window_and_changes_what_is_computed(tmp_path: Path) -> None:
    plain = EvaluatedModel(ModelSettings(str(ASSET)), tmp_path)
    longer = EvaluatedModel(ModelSettings(str(ASSET), yarn=4.0), tmp_path)
    assert (plain.window, longer.window) == (32768, 131072)
    assert plain.identity != longer.identity
    plain.require_window(32768, "x")
    with pytest.raises(UserError, match=r"40000 tokens .* window of 32768.*--yarn 2"):
        plain.require_window(40000, "x")
    assert longer.load().model.config.rope_scaling["factor"] == 4.0
    assert plain.load().model.config.rope_scaling is None


def test_switches_of_the_chat_template_reach_the_prompts(tmp_path: Path) -> None:
    folder, switches = tmp_path / "model", {"enable_thinking": False}
    shutil.copytree(ASSET, folder)
    file = folder / "chat_template.jinja"
    file.write_text(file.read_text() + "{% if enable_thinking is false %}<think></think>{% endif %}")
    asked = [{"role": "user", "content": "Who?"}]
    plain = EvaluatedModel(ModelSettings(str(folder)), tmp_path)
    switched = EvaluatedModel(ModelSettings(str(folder), chat_template_kwargs=switches), tmp_path)
    assert plain.identity != switched.identity, "answers are not those of the other"
    added = len(plain.tokenizer("<think></think>")["input_ids"])
    assert switched.tokens("Who?") == plain.tokens("Who?") + added
    assert switched.load().apply_chat_template(asked) == plain.load().apply_chat_template(asked) + "<think></think>"
    config: Any = SimpleNamespace(data=SimpleNamespace(chat_template_kwargs=switches))
    assert selection._model(folder, config) == ModelSettings(str(folder), chat_template_kwargs=switches)
    with pytest.raises(UserError, match=r"--chat-template-kwargs\.enable_thinking: .* no such switch"):
        EvaluatedModel(ModelSettings(str(ASSET), chat_template_kwargs=switches), tmp_path).load()


def test_greedy_is_greedy_whatever_generation_config_asks_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "model"
    shutil.copytree(ASSET, folder)
    plain = EvaluatedModel(ModelSettings(str(folder)), tmp_path)
    config = {"repetition_penalty": 1.9, "no_repeat_ngram_size": 2, "temperature": 0.7, "do_sample": True, "top_k": 3}
    (folder / "generation_config.json").write_text(json.dumps(config))
    model = EvaluatedModel(ModelSettings(str(folder)), tmp_path)
    assert model.identity != plain.identity
    prompt = next(iter(generate_evaluation(1, SEED, 8)))["prompt"][0]["content"]
    requests: list[Any] = [
        SimpleNamespace(args=(prompt, {"max_gen_toks": tokens, "until": [], "do_sample": False})) for tokens in (24, 3)
    ]
    lms = [EvaluatedModel(ModelSettings(str(one)), tmp_path).load() for one in (ASSET, folder)]
    first, second = (lm.generate_until(requests, disable_tqdm=True) for lm in lms)
    assert first == second and len(set(first[0].split())) < len(first[0].split()), "words are repeated"
    assert [lms[1].next_reason() for _ in range(3)] == ["", "length", ""]
    (line,) = [one.getMessage() for one in caplog.records if "generation_config" in one.getMessage()]
    assert line == "generation_config.json: repetition_penalty 1.9, no_repeat_ngram_size 2: off in the evaluation"


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("adds", [True, False])
def test_prompts_begin_as_in_training(tmp_path: Path, chat: bool, adds: bool) -> None:
    """A tokenizer that adds a beginning token of its own does so for plain prompts only, as in training."""
    folder = tmp_path / "model"
    shutil.copytree(ASSET, folder)
    if not chat:
        (folder / "chat_template.jinja").unlink()
    if adds:
        state = json.loads((folder / "tokenizer.json").read_text())
        token = state["added_tokens"][0]
        state["post_processor"] = {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": token["content"], "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
            ],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {
                token["content"]: {"id": token["content"], "ids": [token["id"]], "tokens": [token["content"]]}
            },
        }
        (folder / "tokenizer.json").write_text(json.dumps(state))
    model = EvaluatedModel(ModelSettings(str(folder)), tmp_path)
    assert model.chat is chat
    messages = [{"role": "user", "content": "Who?"}]
    (trained,) = model.encoder.encode_prompts([messages if chat else "Who?"], ["prompt"])
    lm = model.load()
    text = lm.apply_chat_template(messages) if chat else "Who?"
    assert lm.tok_batch_encode([text])[0][0].tolist() == trained
    assert model.tokens("Who?") == len(trained)


def test_a_batch_holds_about_as_many_tokens_whatever_their_length(tmp_path: Path) -> None:
    model = EvaluatedModel(ModelSettings(str(ASSET)), tmp_path)
    draw = random.Random(0)
    for tokens in (1, 100, 8192, 10**6, draw.randrange(1, 8192)):
        model.prepare(0, tokens)
        batch = model.load().batch_size_per_gpu
        assert batch >= 1 and (batch == 1 or batch * tokens <= 8192)
