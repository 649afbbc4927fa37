"""Small files of every suite's data, and what the right answer to each of their questions is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from solopo_nemo.evaluation.suites.longbench_qa import DATASETS

QUESTIONS = 6


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _fact(topic: str, number: int) -> tuple[str, str, str]:
    """Question, answer, and the paragraph that holds it."""
    town, founder = f"{topic} town {number}", f"Person{topic}{number}"
    return f"Who founded {town}?", founder, f"{town} lies by a river. It was founded by {founder} long ago."


def write_data(folder: Path) -> dict[str, str]:
    """Write all files.

    Returns:
        The answer to each question that can be asked.
    """
    answers: dict[str, str] = {}
    for dataset in ("squad", "hotpotqa", "musique"):
        rows = []
        for number in range(QUESTIONS):
            question, answer, paragraph = _fact(dataset, number)
            answers[question] = answer
            supporting = [{"title": f"{dataset} {number}", "text": paragraph}]
            others = [
                {"title": f"Filler {dataset} {number} {n}", "text": f"Nothing of note is known about place {n}. " * 9}
                for n in range(30)
            ]
            row = {"id": f"{dataset}-{number}", "question": question, "answers": [answer]}
            rows.append(row | {"supporting": supporting, "distractors": others})
        _write(folder / "ruler_qa" / f"{dataset}.jsonl", rows)
    for dataset in DATASETS:
        rows = []
        for number in range(QUESTIONS):
            question, answer, paragraph = _fact(f"lb-{dataset}", number)
            answers[question] = answer
            rows.append({"_id": str(number), "input": question, "context": paragraph, "answers": [answer, "alias"]})
        _write(folder / "longbench_qa" / f"{dataset}.jsonl", rows)
    rows = []
    for number in range(QUESTIONS):
        question, answer, paragraph = _fact("v2", number)
        letter = "ABCD"[number % 4]
        answers[question] = letter
        choices = {f"choice_{one}": answer if one == letter else f"nobody {one}" for one in "ABCD"}
        labels = {"difficulty": ["easy", "hard"][number % 2], "length": ["short", "medium", "long"][number % 3]}
        rows.append(
            {"_id": str(number), "question": question, "answer": letter, "context": paragraph, **choices, **labels}
        )
    _write(folder / "longbench_v2" / "data.jsonl", rows)
    return answers
