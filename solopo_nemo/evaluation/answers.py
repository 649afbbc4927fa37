"""Cache of a model's answers, keyed by model, prompt and decoding. An interrupted evaluation resumes from it."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance


class AnswerCache:
    """Wraps an lm_eval model and forwards only the requests whose answers are not cached.

    lm_eval's own ``CachingLM`` does not cache sampled answers. This cache does. Its key contains the seed and the
    repetition number of the request, so repeated samples of one prompt stay distinct and survive a restart.

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
        """lm_eval's interface: generate one text for each request."""
        return self._ask("generate_until", requests)

    def loglikelihood(self, requests: list[Instance]) -> list[Any]:
        """lm_eval's interface: for each continuation, its log-probability and whether it is the greedy one."""
        return self._ask("loglikelihood", requests)

    def add_partial(self, kind: str, request: Any, answer: Any) -> None:
        """lm_eval's cache hook, called after each answer: store the answer at once."""
        if answer is not None:
            base = self._base(kind, request)
            self._answers[self._key(base, self._expected[base])] = answer
            self._expected[base] += 1

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
        given = getattr(self._model, kind)([requests[number] for number in missing]) if missing else []
        for number, answer in zip(missing, given, strict=True):
            answers[number] = self._answers[keys[number]] = answer
        return answers

    def _base(self, kind: str, request: Any) -> str:
        # for chat requests over HTTP, lm_eval passes a tuple that wraps the JSON of the messages
        text = json.dumps([self._identity, kind, self._seed, [*request]], default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    @staticmethod
    def _key(base: str, turn: int) -> str:
        return f"{base}-{turn}"
