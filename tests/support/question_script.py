"""Documents, and a script of what a model writes and answers about them: a good or bad question for each rule."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import httpx

WORDS = [
    "amber",
    "basin",
    "cedar",
    "delta",
    "ember",
    "fjord",
    "grove",
    "haven",
    "islet",
    "kiln",
    "ledge",
    "marsh",
    "notch",
    "orbit",
    "plume",
    "quarry",
    "ridge",
    "spire",
]
SAMPLES = 3


@dataclass(frozen=True)
class Case:
    """What a model writes about the lighthouse of a town, and how many of its answers are right.

    `rule`: the filter that drops the question; empty: it is kept. `reply`: fields that differ from the good question, or
    the whole reply, as `chat_server` takes it.
    """

    rule: str
    town: str
    reply: Any = None
    from_evidence: int = SAMPLES
    from_memory: int = 0


CASES = [
    Case("", "Arden"),
    Case("", "Brevik", from_evidence=2),
    Case("", "Corran", "<think>{}</think>Sure:\n```json\n%s\n```"),
    Case("unreadable", "Dover", "I would ask about the lighthouse."),
    Case("unreadable", "Elgin", {"quotes": []}),
    Case("unreadable", "Fowey", '{"question": "Who built'),
    Case("declined", "Girvan", '{"question": null}'),
    Case("long_answer", "Hythe", {"answer": "word " * 21}),
    Case("quote_not_in_passages", "Inver", {"quotes": ["It shone for years."]}),
    Case("answer_not_in_evidence", "Jarrow", {"answer": "Olaf Thorsen"}),
    Case("wrong_from_evidence", "Kelso", from_evidence=1),
    Case("known_without_passages", "Largs", from_memory=1),
    Case("refused", "Melby", (400, "maximum context length is 8 tokens")),
    Case("not_whole", "Nairn", ('{"question": "Wh', "length")),
    Case("duplicate", "Oban", {"question": "Who built the lighthouse of Arden?", "answer": "Agnes Ardenson"}),
]  # fmt: skip
SCRIPT = {case.town: case for case in CASES}
LINKED = ("Parton", "Quorn", "Ryhope", "Selby", "Tarbet", "Ullin")
"""Towns whose passages share a name: questions about several of them are good."""


def year(town: str) -> int:
    return 1000 + sum(map(ord, town))


def fact(town: str) -> str:
    keeper = " Its keeper was Rook Harbin." if town in LINKED else ""
    return f"The lighthouse of {town} was built by Agnes {town}son in {year(town)}.{keeper}"


def passage(town: str) -> str:
    """A text that no other is like, with a fact about a town; that of Oban also has the one about Arden, in small letters."""
    random = Random(town)
    rest = [" ".join(random.sample(WORDS, 6)).capitalize() + "." for _ in range(5)]
    return " ".join([*rest[:2], fact(town), *([fact("Arden").lower()] if town == "Oban" else []), *rest[2:]])


def write_documents(folder: Path) -> int:
    """Write a document of one passage about each town; return their number."""
    folder.mkdir(parents=True)
    for town in (*SCRIPT, *LINKED):
        (folder / f"{town}.txt").write_text(passage(town))
    return len(SCRIPT) + len(LINKED)


class Script:
    """Answers prompts; as a transport also as a server.

    `asked` has every prompt with its number of answers, `read` the tokens of prompts that the server counts.
    """

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.read = 0
        self._replies: dict[Any, Any] = {}

    def __call__(self, prompt: str, body: dict[str, Any]) -> Any:
        # a request that is sent again, because its reply was lost, gets the same reply
        again = (prompt, body.get("seed", self.asked[prompt]))
        if again not in self._replies:
            self._replies[again] = self._reply(prompt, self.asked[prompt])
            self.asked[prompt] += 1
        return self._replies[again]

    def _reply(self, prompt: str, turn: int) -> Any:
        if "Write one question" in prompt:
            return self._write(re.findall(r"lighthouse of ([A-Z]\w+) was", prompt))
        (town,) = re.findall(r"Question: Who built the lighthouse of (\w+)", prompt)
        case = SCRIPT.get(town, Case("", town))
        right = case.from_evidence if "Passage 1" in prompt else case.from_memory
        return f"Let me see.\nThe answer is: {f'Agnes {town}son' if turn < right else 'nobody'}"

    def _write(self, towns: list[str]) -> Any:
        others = "".join(f", unlike {town}'s of {year(town)}" for town in towns[1:])
        good = {
            "question": f"Who built the lighthouse of {towns[0]}{others}?",
            "answer": f"Agnes {towns[0]}son",
            "quotes": [fact(town) for town in towns],
        }
        reply = SCRIPT[towns[0]].reply if towns[0] in SCRIPT else None
        if isinstance(reply, str) and "%s" in reply:
            return reply % json.dumps(good)
        return json.dumps(good | (reply or {})) if isinstance(reply, dict | None) else reply

    def transport(self) -> httpx.MockTransport:
        """A server that gives all answers of a request at once."""

        def answer(request: httpx.Request) -> httpx.Response:
            if request.method == "GET":
                return httpx.Response(200, json={"data": [{"id": "m"}]})
            body = json.loads(request.content)
            prompt = body["messages"][-1]["content"]
            if "river" in prompt and "Passage" not in prompt:
                return httpx.Response(200, json={"choices": [choice("A river.")]})
            replies = [self(prompt, {}) for _ in range(body.get("n", 1))]
            if isinstance(replies[0], tuple) and isinstance(replies[0][0], int):
                return httpx.Response(replies[0][0], json={"error": {"message": replies[0][1]}})
            choices = [choice(*(one if isinstance(one, tuple) else (one,))) for one in replies]
            self.read += len(prompt)
            usage = {"prompt_tokens": len(prompt), "completion_tokens": 10 * len(replies)}
            return httpx.Response(200, json={"choices": choices, "usage": usage})

        return httpx.MockTransport(answer)


def choice(text: Any, finish: Any = "stop") -> dict[str, Any]:
    return {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
