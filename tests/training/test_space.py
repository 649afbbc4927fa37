"""A run that the disk will not hold is refused before it begins."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from solopo_nemo.config.schema import load_config
from solopo_nemo.families.hf import read_config
from solopo_nemo.runtime.errors import UserError
from solopo_nemo.runtime.output import check_writable
from solopo_nemo.runtime.paths import EMBEDDED_MODEL
from solopo_nemo.training.checkpoints.space import check_space


def check(output: Path, free: int, *overrides: str, saved: int = 0) -> None:
    config = load_config("solo_dpo", [f"output_dir={output}", *overrides])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
        check_space(config, read_config(EMBEDDED_MODEL), bf16=False, saved=saved)


def parameters() -> int:
    from safetensors import safe_open

    with safe_open(EMBEDDED_MODEL / "model.safetensors", "pt") as weights:
        return sum(weights.get_tensor(name).numel() for name in weights.keys())  # noqa: SIM118


def test_what_is_written_is_counted(tmp_path: Path) -> None:
    checkpoint, weights = 16 * parameters(), 4 * parameters()
    needed = 3 * checkpoint + 2 * weights  # two are kept, one is being written; initial weights, exported ones
    check(tmp_path, needed)
    with pytest.raises(UserError, match="keep_checkpoints"):
        check(tmp_path, needed - 1)
    check(tmp_path, checkpoint + 2 * weights, "trainer.max_steps=3")
    best = checkpoint + weights  # is kept beside, and the one that is scored is exported
    check(tmp_path, needed + best, "trainer.select_best=builtin")
    with pytest.raises(UserError, match="the best one"):
        check(tmp_path, needed + best - 1, "trainer.select_best=builtin")
    (tmp_path / "initial").mkdir()
    check(tmp_path, checkpoint + weights, saved=2)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="output_dir"):
        check_writable(tmp_path / "file" / "out", "output_dir")
    with pytest.raises(UserError, match="output_dir"):
        check_writable(Path("/proc/self"), "output_dir")
