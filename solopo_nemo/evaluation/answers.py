"""Cache of a model's answers, keyed by model, prompt and decoding. An interrupted evaluation resumes from it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from solopo_nemo.runtime.json_files import json_hash

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance


LENGTH = "length"
"""Reason of an answer that reached the token limit."""


class Answer(str):
    """A generated text.

    Attributes:
        reason: why it is not whole: :data:`LENGTH`, or why there is no answer; empty for a whole answer.
    """

    reason: str

    def __new__(cls, text: str, reason: str = "") -> Answer:
        """Attach a reason to a text."""
        answer = super().__new__(cls, text)
        answer.reason = reason
        return answer


class AnswerCache:
    """Wraps an lm_eval model and forwards only the requests whose answers are not cached.

    lm_eval's own ``CachingLM`` does not cache sampled answers. This cache does. Its key contains the seed and the
    repetition number of the request, so repeated samples of one prompt stay distinct and survive a restart. What is no
    answer is not stored, and asked again by the next run.

    Args:
        model: an lm_eval ``LM``.
        path: SQLite file; its folder is created.
        identity: identifies the model and its settings (:attr:`EvaluatedModel.identity`).
    """

    def __init__(self, model: Any, path: Path, identity: str) -> None:
        from sqlitedict import SqliteDict

        path.parent.mkdir(parents=True, exist_ok=True)
        self._model = model
        self._identity = identity
        self._seed = 0
        self._expected: Counter[str] = Counter()
        self._given: dict[str, Any] = {}
        self._answers: Any = SqliteDict(str(path), autocommit=True)
        model.set_cache_hook(self)

    def close(self) -> None:
        """Close the SQLite file."""
        self._answers.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def seed(self, seed: int) -> None:
        """Set the sampling seed of the requests that follow."""
        self._seed = seed

    def generate_until(self, requests: list[Instance]) -> list[Any]:
        """lm_eval's interface: generate one text for each request, an :class:`Answer`."""
        return [Answer(*([one] if isinstance(one, str) else one)) for one in self._ask("generate_until", requests)]

    def loglikelihood(self, requests: list[Instance]) -> list[Any]:
        """lm_eval's interface: for each continuation, its log-probability and whether it is the greedy one."""
        return self._ask("loglikelihood", requests)

    def add_partial(self, kind: str, request: Any, answer: Any) -> None:
        """lm_eval's cache hook, called after each answer: store the answer at once."""
        if answer is None:
            return
        if kind == "generate_until":
            reason = answer.reason if isinstance(answer, Answer) else self._model.next_reason()
            answer = (str(answer), reason)
        base = self._base(kind, request)
        key = self._key(base, self._expected[base])
        self._expected[base] += 1
        self._given[key] = answer
        if kind != "generate_until" or answer[1] in ("", LENGTH):
            self._answers[key] = answer

    def _ask(self, kind: str, requests: list[Instance]) -> list[Any]:
        made: Counter[str] = Counter()
        answers: list[Any] = []
        missing: list[int] = []
        keys: list[str] = []
        self._expected.clear()
        for number, request in enumerate(requests):
            base = self._base(kind, request.args)
            keys.append(self._key(base, made[base]))
            answers.append(self._answers.get(keys[-1]))
            if answers[-1] is None:
                missing.append(number)
                self._expected.setdefault(base, made[base])
            made[base] += 1
        self._given.clear()
        given = getattr(self._model, kind)([requests[number] for number in missing]) if missing else []
        for number, answer in zip(missing, given, strict=True):
            answers[number] = self._given.get(keys[number], answer)
            if keys[number] not in self._given:
                self._answers[keys[number]] = answer
        return answers

    def _base(self, kind: str, request: Any) -> str:
        # for chat requests over HTTP, lm_eval passes a tuple that wraps the JSON of the messages
        return json_hash([self._identity, kind, self._seed, [*request]], default=str)

    @staticmethod
    def _key(base: str, turn: int) -> str:
        return f"{base}-{turn}"
