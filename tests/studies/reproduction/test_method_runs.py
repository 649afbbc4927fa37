"""A run in miniature: its score, its result on disk, and one whole method through its recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.model import LM

from solopo_nemo.evaluation.models import EvaluatedModel
from solopo_nemo.runtime.errors import UserError
from studies.pool import Job, Pool
from studies.reproduction import scoring
from studies.reproduction.methods import METHODS
from studies.reproduction.runs import Result, Run, run_method
from studies.reproduction.scoring import score_model
from studies.reproduction.start import Pretraining, make_model, make_start, make_tokenizer
from studies.reproduction.world import training_questions


class Oracle(LM):
    """Looks the asked key up, unless it begins with ``unknown``."""

    unknown = "nothing"
    tokenizer_name = "oracle"

    def generate_until(self, requests: list[Any]) -> list[str]:
        texts = [request.args[0] for request in requests]
        found = [text[text.index(text[-4:]) :][:14] for text in texts]
        return ["" if answer.startswith(self.unknown) else answer for answer in found]

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return chat_history[0]["content"]

    def loglikelihood(self, requests: list[Any]) -> list[Any]:
        raise NotImplementedError

    def loglikelihood_rolling(self, requests: list[Any]) -> list[Any]:
        raise NotImplementedError


def test_an_oracle_scores_all_and_a_partial_one_what_it_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_model(Pretraining(layers=1, width=32)).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    monkeypatch.setattr(EvaluatedModel, "load", lambda model: Oracle())
    monkeypatch.setattr(EvaluatedModel, "prepare", lambda model, seed, tokens: None)
    (all_right,) = score_model(tmp_path, (2,), 100, seed=0)
    assert all_right.outcomes().tolist() == [1.0] * 100
    assert all(right == asked for right, asked in all_right.depths)
    assert sum(asked for _, asked in all_right.depths) == 100
    monkeypatch.setattr(Oracle, "unknown", "k0")
    (partial,) = score_model(tmp_path, (2,), 100, seed=0)
    assert 0.4 < partial.outcomes().mean() < 0.8  # 156 of the 256 keys
    assert sum(right for right, _ in partial.depths) == partial.outcomes().sum()


def test_a_result_is_what_was_saved(tmp_path: Path) -> None:
    score = scoring.Score(length=1, tokens=68, questions=4, right="a0", depths=[[2, 4]])
    result = Result("solo-dpo", 1, "solo_dpo", ["optim.lr=1"], [score], steps=3, curves={"loss": [1.0]})
    result.save(tmp_path / "result.json")
    assert Result.read(tmp_path / "result.json") == result
    assert result.accuracy(1) == 0.5


def test_a_damaged_result_is_named(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(UserError, match=r"result.json: no file of such results"):
        Result.read(tmp_path / "result.json")


@pytest.mark.long
def test_a_method_is_trained_by_its_recipe_and_scored(tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    rows = list(training_questions(16, 0, 16, 32))
    rows = [row | {"chosen": row["answers"][0], "rejected": "k001 a001 b001"} for row in rows]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = Run(METHODS["solo-orpo"], 0, steps=6, lengths=(1, 2), questions=16)
    pool = Pool(1, tmp_path / "logs")
    made = pool.run("start", [Job("start", make_start, (tmp_path / "start", Pretraining(steps=2)), 1)])
    job = Job("run", run_method, (run, made["start"], pairs, tmp_path / "run"), 1)
    result = pool.run("runs", [job])["run"]
    assert (result.steps, len(result.scores), result.scores[1].tokens) == (6, 2, 132)
    assert result.tokens_long == 6 * 16 * (132 + 4 - 1)
    assert result.curves["step"] == [1, 5]
    assert result.curves["logps/chosen"][1] > result.curves["logps/chosen"][0]
    assert result.seconds > 0
    assert 0 < result.peak_gib < 8
    assert Result.read(tmp_path / "run" / "result.json") == result
    assert not (tmp_path / "run" / "run").exists()
