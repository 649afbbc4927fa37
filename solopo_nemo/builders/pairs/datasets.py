"""Selection of pairs from samples, and the datasets of the paper's Table 2."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from solopo_nemo.builders.pairs.sampler import Entries, yield_pairs, yields_pair
from solopo_nemo.builders.pairs.source import Asked
from solopo_nemo.builders.pairs.store import Entry, SampleStore

TABLE_2 = {"sft_short": "short", "sft_long": "long", "po_short": "short", "po_long": "long"}
"""Datasets of the baselines, each with the side of its prompt."""


def choose_questions(
    settled: Sequence[int], entries: dict[int, Entries], sides: Sequence[str], size: int
) -> dict[str, set[int]]:
    """Select up to `size` questions for each side.

    Questions with a pair on every side come first, followed by questions with a pair on that side only.

    Args:
        settled: Numbers of the candidate questions, preferred ones first.
        entries: Sample counts by question number and side.
        sides: The sampled sides.
        size: Maximum number of questions per side.

    Returns:
        Side -> numbers of the selected questions.
    """
    shared = [number for number in settled if yield_pairs(entries[number])]
    known = set(shared)
    return {
        side: set((shared + [n for n in settled if n not in known and yields_pair(entries[n][side])])[:size])
        for side in sides
    }


def dataset_path(out: Path, name: str) -> Path:
    """Return the path of a `TABLE_2` dataset next to the SoLo file, such as `pairs.po_long.jsonl` for `pairs.jsonl`."""
    return out.with_name(f"{out.stem}.{name}{out.suffix}")


def triplet(asked: Asked, side: str, store: SampleStore, entry: Entry, seed: int) -> dict[str, Any]:
    """Build the triplet of a question from a random correct and a random incorrect answer of a side."""
    right, wrong = store.texts(asked, side)
    random = Random(f"{seed}:{asked.id}:{side}:pair")
    return {
        "id": asked.id,
        "prompt_short": asked.prompts["short"],
        "prompt_long": asked.prompts["long"],
        "chosen": random.choice(right),
        "rejected": random.choice(wrong),
        "answers": list(asked.answers),
        "meta": asked.meta
        | {"sampled_on": side, "right": entry.right, "finished": entry.finished, "answer_rule": store.rule},
    }


def reduced(row: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a triplet as a row of a `TABLE_2` dataset: one prompt; no rejected answer for fine-tuning."""
    kept = {"id": row["id"], "prompt": row[f"prompt_{TABLE_2[name]}"], "chosen": row["chosen"]}
    if name.startswith("po"):
        kept["rejected"] = row["rejected"]
    return kept | {"answers": row["answers"], "meta": row["meta"]}
