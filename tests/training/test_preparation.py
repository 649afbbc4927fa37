"""Rank 0 prepares and the other ranks wait: for its exit code, and not for a rank that is gone."""

from __future__ import annotations

from pathlib import Path

import pytest

from solopo_nemo.runtime.errors import RunFault, UserError
from solopo_nemo.training.output_lock import OutputLock
from solopo_nemo.training.preparation import SharedPreparation


def test_the_others_get_the_exit_code(tmp_path: Path) -> None:
    seen = []
    SharedPreparation(tmp_path).prepare(lambda: seen.append(tmp_path))
    assert SharedPreparation(tmp_path).wait() == 0
    assert seen == [tmp_path]


def test_bad_input_ends_the_others_too(tmp_path: Path) -> None:
    def refuse() -> None:
        raise UserError("data.train: no such file")

    with pytest.raises(UserError, match="no such file"):
        SharedPreparation(tmp_path).prepare(refuse)
    assert SharedPreparation(tmp_path).wait() == 2


def test_a_rank_0_that_touches_its_lock_no_more_is_gone(tmp_path: Path) -> None:
    with (
        OutputLock(tmp_path),
        pytest.raises(RunFault, match="rank 0 prepares this run and has given no sign of life"),
    ):
        SharedPreparation(tmp_path).wait(patience=0.0)


def test_a_rank_whose_starter_is_gone_ends(tmp_path: Path) -> None:
    shared = SharedPreparation(tmp_path)
    shared.starter = -1
    assert shared.wait() == 1


def test_what_earlier_starts_left_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOLOPO_START", "first")
    SharedPreparation(tmp_path).prepare(lambda: None)
    monkeypatch.setenv("SOLOPO_START", "second")
    now = SharedPreparation(tmp_path)
    now.prepare(now.remove_earlier)
    assert [path.name for path in tmp_path.iterdir()] == [".prepared-second"]
