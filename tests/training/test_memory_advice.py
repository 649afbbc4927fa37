"""A run that ran out of memory is told the planner's nearest layout that fits its own longest samples."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from solopo_nemo.config.schema import load_config
from solopo_nemo.planning.shape import named_shapes
from solopo_nemo.runtime import device
from solopo_nemo.runtime.errors import RunFault
from solopo_nemo.training.checks import CHECKS, check_all
from solopo_nemo.training.failures.faults import FaultFiles, as_run_fault
from solopo_nemo.training.failures.memory_advice import memory_advice
from solopo_nemo.training.start import Start


def told(error: BaseException, output: Path, world: int, model: str = "Qwen/Qwen2.5-7B-Instruct") -> str:
    """What a rank says that ends with an error in a prepared run of a model."""
    words = [f"output_dir={output}", "data.builtin.samples=8", "trainer.global_batch=8", "trainer.micro_batch=4"]
    config = load_config("solo_dpo", words)
    check_all(Start(config, world, on_gpu=False), CHECKS)
    (output / "initial" / "hf").mkdir(parents=True)
    (output / "initial" / "hf" / "config.json").write_text(json.dumps(named_shapes()[model]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORLD_SIZE", str(world))
        patch.setenv("LOCAL_WORLD_SIZE", str(world))
        fault = as_run_fault(error, FaultFiles(output, "start"), lambda: memory_advice(config, world))
    assert isinstance(fault, RunFault) and "\n" not in str(fault)
    return str(fault)


def test_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"cuda": True, "count": 2, "memory_gib": 80.0}.items():
        monkeypatch.setattr(device, name, lambda *_, value=value: value)
    line = told(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"), tmp_path, 2)
    assert line.startswith("out of GPU memory (CUDA out of memory. Tried to allocate 20 GiB): TP2 CP1 PP1 DP1 with ")
    assert re.search(r" fits: parallel.tensor=2 \(predicted [\d.]+ GiB instead of .* of 80.0\)$", line)


def test_a_gpu_that_is_too_small_for_any_layout_of_these(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"cuda": True, "count": 2, "memory_gib": 40.0}.items():
        monkeypatch.setattr(device, name, lambda *_, value=value: value)
    line = told(torch.OutOfMemoryError("CUDA out of memory"), tmp_path, 2)
    assert "): no layout of 2 GPUs fits into 38.0 GiB each" in line
    assert "; on 4, TP2 CP1 PP2 DP1 with recompute=none fits: trainer.micro_batch=1 parallel.tensor=2 " in line


def test_the_machines_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "memory_gib", lambda: 9.0)
    line = told(MemoryError(), tmp_path, 2, "Qwen/Qwen2.5-0.5B-Instruct")
    assert line.startswith("out of memory (MemoryError): TP")
