"""Evaluations that nobody ran, in the files that real ones leave."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any


def write_scores(folder: Path, seed: int, name: str = "model", questions: int = 20) -> None:
    """Write scores of all suites with lengths, depths and seeds, better for a larger ``seed``."""
    draw = random.Random(seed)
    record = {"model": name, "base_url": None, "yarn": None, "window": 32768, "identity": name, "version": "0"}
    folder.mkdir(parents=True)
    (folder / "evaluation.json").write_text(json.dumps(record))

    def write(suite: str, cell: str, labels: dict[str, Any], metric: str, hard: float, more: Any = None) -> None:
        samples = [
            {"id": str(n), metric: float(draw.random() * (1 + seed) > hard), **(more(n) if more else {})}
            for n in range(questions)
        ]
        path = folder / "cells" / suite / f"{cell}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        values = {"fingerprint": "", "suite": suite, "cell": cell, "labels": labels, "metric": metric}
        path.write_text(json.dumps(values | {"samples": samples}))

    lengths = (4096, 8192, 16384, 32768)
    for place, length in enumerate(lengths):
        for dataset in ("squad", "hotpotqa", "musique"):
            write("ruler_qa", f"{dataset}-{length}", {"dataset": dataset, "length": length}, "f1", 0.2 * place)
        for setting in ("single document", "several documents"):
            for depth in (0, 25, 50, 75, 100):
                labels = {"setting": setting, "length": length, "depth": depth}
                write("niah_plus", f"{setting[0]}-{length}-{depth}", labels, "sub_em", 0.2 * place)
    for dataset, documents in (("qasper", "single"), ("hotpotqa", "multi")):
        write("longbench_qa", dataset, {"dataset": dataset, "documents": documents}, "f1", 0.5)
    for number in range(3):
        more = lambda n: {"difficulty": ["easy", "hard"][n % 2], "band": ["short", "medium", "long"][n % 3]}  # noqa: E731
        write("longbench_v2", f"seed-{number}", {"seed": number}, "accuracy", 0.6, more)
