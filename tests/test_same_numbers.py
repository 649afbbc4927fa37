"""The numbers of an earlier version: the comparison sees what it has to see; .ci/long compares every recipe."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from same_numbers import compare_runs

Rows = list[dict[str, float]]
Weights = dict[str, np.ndarray]


def made_run(folder: Path, change: Callable[[Rows, Weights], object]) -> Path:
    rows: Rows = [{"step": 1, "loss": 0.7, "seconds": 1.0}, {"step": 2, "loss": 0.6, "seconds": 1.0}]
    weights: Weights = {"a": np.array([1.0, 0.0], np.float32), "b": np.zeros(2, np.float32)}
    change(rows, weights)
    (folder / "hf").mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    save_file(weights, folder / "hf" / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("change", "differences"),
    [
        (lambda rows, weights: rows[1].update(seconds=9.0), []),
        (lambda rows, weights: rows[1].update(loss=0.6 + 1e-16), ["step 2, loss: 0.6, now 0.6000000000000001"]),
        (lambda rows, weights: rows[0].pop("loss"), ["step 1, loss: 0.7, now None"]),
        (lambda rows, weights: rows.pop(), ["2 steps, 1 now"]),
        (lambda rows, weights: weights.update(a=np.array([1.0, -0.0], np.float32)), ["a: other weights"]),
        (lambda rows, weights: weights.update(a=weights["a"].astype(np.float64)), ["a: other weights"]),
        (lambda rows, weights: weights.pop("b"), ["b: exported by one version only"]),
    ],
    ids=["seconds", "last bit", "lost metric", "lost step", "sign of a zero", "other dtype", "lost weight"],
)
def test_each_kind_of_difference_is_seen(
    tmp_path: Path, change: Callable[[Rows, Weights], object], differences: list[str]
) -> None:
    old = made_run(tmp_path / "old", lambda rows, weights: None)
    assert compare_runs(old, made_run(tmp_path / "new", change)) == differences
