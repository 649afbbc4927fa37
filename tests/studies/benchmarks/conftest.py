"""Folders of made-up results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from made_up import Folder, K

from studies.benchmarks.spec import StepSpec


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    monkeypatch.setattr("studies.benchmarks.session.revision", lambda: "0123456789")
    return Folder(tmp_path / "results")


@pytest.fixture
def complete(folder: Folder) -> Folder:
    """Results of the whole suite."""

    def at(system: str, *longs: int, **values: Any) -> list[StepSpec]:
        return [StepSpec(system, long * K, **values) for long in longs]

    folder.steps("speed", [s for name in ("solo_dpo", "long_po", "trl_best") for s in at(name, 8, 32)], rounds=3)
    folder.steps("as_is", at("solo_dpo", 4, steps=2) + at("trl_as_is", 4, steps=2), rounds=3)
    folder.steps("growth", at("solo_dpo", 16, 32, 64, 128))
    folder.steps("memory", at("solo_dpo", 32, 33) + at("trl_best", 16, 17))
    folder.steps("memory_recompute", at("solo_dpo", 32, 33, recompute="full"))
    folder.steps("memory_cp4", at("solo_dpo", 211, 213, context=4))
    folder.steps("scaling_memory", [s for cp in (1, 2, 4) for s in at("solo_dpo", 64, context=cp, threads=1)])
    folder.steps("scaling_time", [s for cp in (1, 2) for s in at("solo_dpo", 32, context=cp, threads=1)], rounds=2)
    folder.steps("longest_step", at("solo_dpo", 256, context=2, recompute="full", steps=1))
    folder.heads()
    return folder
