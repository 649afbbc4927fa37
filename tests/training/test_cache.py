"""The reference cache: what changes its key, and what a kill leaves of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from solopo_nemo.training.reference_cache import ReferenceCache, cache_key

BASE = dict(weights_hash="w", data_fingerprint="d", sequences=("short_chosen", "short_rejected"), precision="fp32")


def cache(root: Path, **changes: object) -> ReferenceCache:
    return ReferenceCache(root, cache_key(**(BASE | changes)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change",
    [dict(weights_hash="x"), dict(data_fingerprint="x"), dict(sequences=("long_chosen",)), dict(precision="bf16")],
)
def test_everything_that_changes_a_score_changes_the_folder(tmp_path: Path, change: dict[str, object]) -> None:
    assert cache(tmp_path, **change).folder != cache(tmp_path).folder
    assert cache(tmp_path).folder == cache(tmp_path).folder


def test_scores_come_back_exactly_and_grow(tmp_path: Path) -> None:
    first, second = {"a": {"short_chosen": -1.2345678806304932}}, {"b": {"short_chosen": -0.1}}
    cache(tmp_path).append(first)
    cache(tmp_path).append(second)
    assert cache(tmp_path).read() == first | second


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_line_cut_short_by_a_kill_is_done_again(tmp_path: Path, cut: int) -> None:
    kept = cache(tmp_path)
    kept.append({"a": {"short_chosen": -1.0}})
    kept.append({"b": {"short_chosen": -2.0}})
    kept.file.write_bytes(kept.file.read_bytes()[:-cut])
    survivors = kept.read()
    assert survivors["a"] == {"short_chosen": -1.0}
    if cut > 1:  # more than the line's end is gone
        assert "b" not in survivors
    kept.append({"b": {"short_chosen": -2.0}, "c": {"short_chosen": -3.0}})
    assert kept.read() == {"a": {"short_chosen": -1.0}, "b": {"short_chosen": -2.0}, "c": {"short_chosen": -3.0}}
