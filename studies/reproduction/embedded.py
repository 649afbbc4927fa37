"""The embedded questions of the default run as a ground of studies."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from solopo_nemo.embedded import SHORT_PARAGRAPHS, generate_contexts, generate_evaluation
from solopo_nemo.evaluation.models import ModelSettings
from solopo_nemo.evaluation.run import evaluate
from solopo_nemo.evaluation.settings import SuiteSettings
from solopo_nemo.evaluation.suites.builtin import builtin_suite
from solopo_nemo.runtime.paths import EMBEDDED_MODEL
from studies.reproduction.ground import Ground
from studies.reproduction.scoring import Score

_COUNTED = 16
"""Questions whose tokens are counted; all have nearly the same number."""


def _contexts(count: int, seed: int, long: int) -> Iterable[dict[str, Any]]:
    return generate_contexts(count, seed, long_paragraphs=long * SHORT_PARAGRAPHS)


@cache
def _prompt_tokens(length: int) -> int:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_MODEL)
    prompts = [row["prompt"] for row in generate_evaluation(_COUNTED, 0, length * SHORT_PARAGRAPHS)]
    return round(mean(len(tokenizer.apply_chat_template(prompt, add_generation_prompt=True)) for prompt in prompts))


def _score(folder: Path, lengths: tuple[int, ...], questions: int, seed: int) -> list[Score]:
    """Score a model as the suite `builtin` of ``tools/evaluate.py`` does."""
    if not lengths:
        return []
    suite = builtin_suite(lengths, seed)
    with TemporaryDirectory() as scratch:
        out = Path(scratch)
        found = evaluate(ModelSettings(str(folder)), [suite], SuiteSettings(out, limit=questions), out)
    rows = found.suites[suite.name].sort_values("id")
    right = {length: rows[rows["length"] == length]["value"].to_numpy() == 1 for length in lengths}
    bits = {length: np.packbits(values).tobytes().hex() for length, values in right.items()}
    return [Score(length, _prompt_tokens(length), questions, bits[length], []) for length in lengths]


EMBEDDED = Ground(_contexts, _prompt_tokens, 24, 48, _score)
