"""An evaluation cell: questions, generation settings and scoring, converted to an lm_eval task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Number
from typing import Any

from solopo_nemo.data.answers import rule_name
from solopo_nemo.data.normal_form import RULE
from solopo_nemo.evaluation.answers import Answer
from solopo_nemo.evaluation.scores import score_answer
from solopo_nemo.evaluation.settings import SuiteSettings
from solopo_nemo.runtime.json_files import json_hash

Label = str | int | float
Score = Callable[[str, Mapping[str, Any]], dict[str, float]]


def scoring(settings: SuiteSettings) -> dict[str, Any]:
    """The fields ``score`` and ``rule`` of a cell whose stated answers are compared with gold answers."""

    def score(response: str, row: Mapping[str, Any]) -> dict[str, float]:
        return score_answer(response, row["answers"], settings.literal)

    return {"score": score, "rule": rule_name(settings.literal)}


@dataclass(frozen=True)
class Question:
    """A prompt and its gold answers.

    Attributes:
        id: identifier, unique in the cell.
        prompt: text of the user message.
        answers: accepted answers.
        labels: labels of this question in addition to those of the cell, such as its difficulty.
    """

    id: str
    prompt: str
    answers: tuple[str, ...]
    labels: Mapping[str, Label] = field(default_factory=dict)


@dataclass(frozen=True)
class Cell:
    """Questions that share labels and generation settings. lm_eval runs a cell as one task.

    Attributes:
        name: file name of the cell, unique in the suite, such as ``musique-8192``.
        labels: labels that group the scores (dataset, length, depth, seed).
        questions: the questions.
        tokens: approximate length of the longest prompt in tokens.
        metric: key of the main score.
        score: maps a response and its row (``answers`` and labels) to scores, each 0 to 1.
        max_new_tokens: maximum answer length in tokens.
        temperature: sampling temperature; 0 is greedy decoding.
        seed: sampling seed.
        rule: rule by which answers are extracted and compared; see :func:`~solopo_nemo.data.answers.rule_name`.
        limit: always None, because ``questions`` is already limited.
    """

    name: str
    labels: Mapping[str, Label]
    questions: Sequence[Question]
    tokens: int
    metric: str
    score: Score
    max_new_tokens: int
    temperature: float = 0.0
    seed: int = 0
    rule: str = str(RULE)
    limit: int | None = None

    @property
    def generation(self) -> dict[str, Any]:
        """lm_eval's ``generation_kwargs``."""
        sampled = {"do_sample": True, "temperature": self.temperature} if self.temperature else {"do_sample": False}
        return {"until": [], "max_gen_toks": self.max_new_tokens, **sampled}

    def fingerprint(self) -> str:
        """A hash of everything besides the model that determines the answers and scores."""
        asked = [(one.id, one.prompt, one.answers, dict(one.labels)) for one in self.questions]
        return json_hash([asked, dict(self.labels), self.metric, self.generation, self.seed, self.rule])[:16]

    @property
    def settings(self) -> dict[str, Any]:
        """What ``--compare`` compares: the settings that change a score, and a hash of the prompts and gold answers."""
        return {
            "max_new_tokens": self.max_new_tokens,
            "temperature": self.temperature,
            "answer_rule": self.rule,
            "prompts": json_hash([(one.id, one.prompt, one.answers) for one in self.questions])[:16],
        }

    def task(self, remote: bool) -> Any:
        """The cell as lm_eval's ``ConfigurableTask``.

        Args:
            remote: True if a server runs the model; the sampling seed is then part of each request.
        """
        from lm_eval.api.task import ConfigurableTask

        metrics = self.score("", self._rows()[0])
        return ConfigurableTask(
            config={
                "task": self.name,
                "custom_dataset": lambda **_: {"test": self._rows()},
                "test_split": "test",
                "output_type": "generate_until",
                "doc_to_text": lambda row: row["prompt"],
                "doc_to_target": lambda row: "",
                "process_results": lambda row, texts: self.score(texts[0], row),
                "metric_list": [{"metric": m, "aggregation": "mean", "higher_is_better": True} for m in metrics],
                "generation_kwargs": self.generation | ({"seed": self.seed} if remote and self.temperature else {}),
            }
        )

    def record(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        """The stored record of an lm_eval sample: ``id``, labels, scores, answers and response.

        An answer that is not whole has a ``reason``.
        """
        row, scores = sample["doc"], {name: float(sample[name]) for name in sample["metrics"]}
        labels = {key: row[key] for key in self.questions[0].labels}
        response: Answer = sample["resps"][0][0]
        texts = {"answers": row["answers"], "response": str(response)}
        return {
            "id": row["id"],
            **labels,
            **scores,
            **texts,
            **({"reason": response.reason} if response.reason else {}),
        }

    def _rows(self) -> Any:
        from datasets import Dataset

        return Dataset.from_list(
            [{"id": one.id, "prompt": one.prompt, "answers": list(one.answers), **one.labels} for one in self.questions]
        )


@dataclass(frozen=True)
class LibraryCell:
    """One of lm_eval's own tasks, with its prompts, few-shot examples and scores."""

    name: str
    metric: str
    labels: Mapping[str, Label]
    limit: int | None
    own: Any
    tokens: int = 4096
    seed: int = 0

    def fingerprint(self) -> str:
        """A hash of the task's configuration and version."""
        return json_hash([self.own.dump_config(), self.own.VERSION, self.limit], default=str)[:16]

    @property
    def settings(self) -> dict[str, Any]:
        """What ``--compare`` compares."""
        return {"limit": self.limit}

    def task(self, remote: bool) -> Any:
        """The lm_eval task."""
        return self.own

    def record(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        """The stored record of an lm_eval sample: ``id`` and scores."""
        scores = {name: float(sample[name]) for name in sample["metrics"] if isinstance(sample[name], Number | bool)}
        return {"id": str(sample["doc_id"]), **scores}


AnyCell = Cell | LibraryCell
