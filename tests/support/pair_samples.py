"""Questions and a backend without a model, for tests of pairs."""

from __future__ import annotations

import threading
from typing import Any

from solopo_nemo.builders.pairs.backend import Cost, Refused, Request, Sample, Sampling

SAMPLING = Sampling(backend="fake", model="fake", samples=4, seed=3)
RIGHT, WRONG = "Clear. The answer is: Gold", "Hm. The answer is: Tin"


def asked_row(number: int, short: str = "rwrw", long: str = "rrww", **changes: Any) -> dict[str, Any]:
    """A question whose prompts say how each sample turns out: right, wrong, cut or a last line without prefix."""
    row = {
        "id": f"q{number}",
        "prompt_short": [{"role": "user", "content": f"{number} {short}"}],
        "prompt_long": [{"role": "user", "content": f"{number} long {long}"}],
        "answers": ["Gold", "Au metal"],
        "meta": {"short_tokens": 3},
    } | changes
    return {name: value for name, value in row.items() if value is not None}


class FakeBackend:
    """Answers as the prompts say, all at once or `at_once`; `requests` has a prompt once for each time it was asked."""

    def __init__(self, concurrency: int = 1, stop_after: int | None = None, at_once: int | None = None) -> None:
        self.concurrency = concurrency
        self.stop_after = stop_after
        self.at_once = at_once
        self.requests: list[tuple[str, str]] = []
        self.closed = False
        self.cost = Cost()
        self._lock = threading.Lock()

    cut_prompts = 0

    def fingerprint(self, earlier: str | None) -> str | None:
        return None

    def sample(self, request: Request, have: int) -> list[Sample]:
        with self._lock:
            if len(self.requests) == self.stop_after:
                raise KeyboardInterrupt
            self.requests.append((request.id, request.side))
        plan = request.prompt[-1]["content"].split()[-1]  # type: ignore[index]
        if plan == "refuse":
            raise Refused("too long")
        answers = [self._answer(code, number) for number, code in enumerate(plan)]
        return answers[have : None if self.at_once is None else have + self.at_once]

    def close(self) -> None:
        self.closed = True

    def _answer(self, code: str, number: int) -> Sample:
        text = {"r": RIGHT, "w": WRONG, "l": "No.\nThen Gold", "c": RIGHT, "e": ""}[code]
        return Sample(f"{number}. {text}" if text else "", cut=code == "c")
