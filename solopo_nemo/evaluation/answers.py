"""Cache of a model's answers by model, prompt and decoding: a stopped evaluation continues from it."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance


class AnswerCache:
    """Wraps an lm_eval model, and asks it only for answers that are not in the cache.

    lm_eval's own ``CachingLM`` does not cache sampled answers. This one does, by seed and by the number of the
    repetition of a request: repeated draws stay different, and a run that continues keeps those it has.

    Args:
        model: an lm_eval ``LM``.
        path: SQLite file.
        identity: says which model, and how it is run.
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
        """Close the file."""
        self._answers.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def seed(self, seed: int) -> None:
        """Seed of the requests that follow, where they are sampled."""
        self._seed = seed

    def generate_until(self, requests: list[Instance]) -> list[Any]:
        """lm_eval's interface: one text a request."""
        return self._ask("generate_until", requests)

    def loglikelihood(self, requests: list[Instance]) -> list[Any]:
        """lm_eval's interface: log-probability and greediness of each continuation."""
        return self._ask("loglikelihood", requests)

    def add_partial(self, kind: str, request: Any, answer: Any) -> None:
        """lm_eval's hook: the model has just given an answer."""
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
        # what lm_eval passes for chats over HTTP is a tuple around their JSON
        text = json.dumps([self._identity, kind, self._seed, [*request]], default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    @staticmethod
    def _key(base: str, turn: int) -> str:
        return f"{base}-{turn}"
