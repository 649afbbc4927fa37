"""The check for one GPU in its CPU mode: tiny sizes, the same rows and files; and that a wrong row is noticed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from solopo_nemo.runtime.errors import UserError
from studies.benchmarks.memory import megatron_state, storage_bytes
from studies.gpu_check import cli

NOT_NEEDED = ("nemo", "lightning", "datasets", "hydra", "omegaconf", "pandas", "psutil", "pyarrow", "rich")


@pytest.mark.slow
def test_every_row_runs_on_a_cpu(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """About 50 s: a process a row, with torch, Megatron-core and transformers alone."""
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({NOT_NEEDED}))\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    out = tmp_path / "found.json"
    assert cli.main(["--out", str(out)]) == 0, capsys.readouterr().out
    rows = json.loads(out.read_text())["runs"]
    checks = {row["check"]: row for row in rows if "check" in row}
    assert checks.keys() == {*cli.CHECKED} - {"sliding window"}
    assert all(row["ok"] and 0 < row["difference"] < 1e-5 for row in checks.values())
    steps = {row["system"]: row for row in rows if "system" in row}
    assert steps["SoLo-DPO"]["layers"] == "local"
    assert all(row["seconds"] > 0 and row["peak_gib"] > 0 for row in steps.values())
    assert steps.keys() == {*cli.SYSTEMS}
    tables = out.with_suffix(".md").read_text()
    assert all(name in tables for name in (*checks, *steps))


def test_a_wrong_kernel_is_a_wrong_row(monkeypatch: pytest.MonkeyPatch) -> None:
    from studies.gpu_check import checks

    assert {*checks.CHECKS} == {*cli.CHECKED}
    assert checks.check("SwiGLU and linear", "fp32")["ok"]
    monkeypatch.setattr(checks.blockwise, "gated_linear", lambda y, w: y[..., :128] @ w.t())
    assert not checks.check("SwiGLU and linear", "fp32")["ok"]


@pytest.mark.parametrize("name", ["_grouped", "_grouped_weight"])
def test_a_wrong_product_of_experts_is_a_wrong_row(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows of the last expert are shifted by one."""
    from studies.gpu_check import checks

    right = getattr(checks.experts, name)
    assert checks.check("grouped experts", "fp32")["ok"] and checks.check("grouped experts", "bf16")["ok"]
    monkeypatch.setattr(
        checks.experts, name, lambda a, b, counts: right(a, b, [*counts[:2], counts[2] + 1, counts[3] - 1])
    )
    assert not checks.check("grouped experts", "fp32")["ok"]


@pytest.mark.parametrize(("minutes", "began"), [("0.0001", 0), ("8", 2)])
def test_no_row_begins_after_the_time(
    minutes: str, began: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[dict[str, Any]] = [{"system": "SoLo-DPO", "shape": "tiny", "long": n} for n in (1, 2)]
    asked: list[int] = []

    def run(row: dict[str, Any], seconds: float) -> dict[str, Any]:
        asked.append(row["long"])
        return {"seconds": 1.0, "peak_gib": 1.0}

    monkeypatch.setattr(cli, "_asked", lambda gpu: iter(rows))
    monkeypatch.setattr(cli, "_run", run)
    ticks = iter(range(0, 100, 1))
    monkeypatch.setattr(cli.time, "monotonic", lambda: float(next(ticks)))
    assert cli.main(["--minutes", minutes, "--out", str(tmp_path / "a.json")]) == 0
    assert len(asked) == began


def test_what_ran_out_of_memory_is_not_tried_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"system": system, "shape": "tiny", "long": n} for n in (1, 2) for system in cli.SYSTEMS]
    found = {"transformers": {"note": "out of memory"}}
    monkeypatch.setattr(cli, "_asked", lambda gpu: iter(rows))
    monkeypatch.setattr(cli, "_run", lambda row, _: found.get(row["system"], {"seconds": 1.0, "peak_gib": 1.0}))
    assert cli.main(["--out", str(tmp_path / "a.json")]) == 0
    tried = [(row["system"], row["long"]) for row in json.loads((tmp_path / "a.json").read_text())["runs"]]
    assert tried.count(("transformers", 1)) == 1
    assert ("transformers", 2) not in tried
    assert ("SoLo-DPO", 2) in tried


def test_the_dry_run_stands_beside_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from solopo_nemo.config.schema import load_config

    def run(command: list[str], **_: Any) -> None:
        config = load_config("solo_dpo", command[2:])
        assert config.dry_run.enabled
        assert config.model.layers == "torch"
        assert (config.model.init, config.dry_run.length) == ("Qwen/Qwen2.5-0.5B-Instruct", "8192")
        rank = {"peak_gib": 9.5, "kinds": {"weights": 1.0}}
        (Path(config.output_dir) / "dry_run.json").write_text(json.dumps({"ranks": [rank]}))

    monkeypatch.setattr(cli, "_asked", lambda gpu: iter([{"system": "SoLo-DPO", "shape": "0.5B", "long": 8192}]))
    monkeypatch.setattr(cli, "_run", lambda *_: {"seconds": 1.0, "peak_gib": 8.0, "layers": "local"})
    monkeypatch.setattr(cli, "_machine", lambda: {"gpu": "", "processor": "", **dict.fromkeys(cli.PACKAGES)})
    monkeypatch.setattr(cli.device, "cuda", lambda: True)
    monkeypatch.setattr(cli.subprocess, "run", run)
    assert cli.main(["--out", str(tmp_path / "a.json")]) == 0
    tables = (tmp_path / "a.md").read_text()
    assert tables.startswith("Measured on ")
    assert "| 0.5B | 8,192 | 1.00 s, 8.0 GiB | - | - | 8.5 GiB |" in tables


def test_both_models_are_measured_up_to_128k_before_longer_prompts() -> None:
    asked = [row for row in cli._asked(gpu=True) if "system" in row]
    needed = {(row["shape"], row["long"]) for row in asked[: 3 * 2 * 5]}
    assert needed == {(shape, 8192 << i) for shape in ("0.5B", "1.5B") for i in range(5)}


def test_the_same_command_goes_on_and_another_machine_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"system": system, "shape": "tiny", "long": n} for n in (1, 2, 3) for system in cli.SYSTEMS[:2]]
    out, asked = tmp_path / "a.json", list[tuple[str, int]]()
    notes = {("SoLo-DPO", 2): f"{cli.UNFINISHED} in 60 s", ("Long-DPO", 2): "out of memory"}

    def run(row: dict[str, Any], _: float) -> dict[str, Any]:
        asked.append((row["system"], row["long"]))
        if len(asked) == 5:
            raise KeyboardInterrupt
        return {"note": note} if (note := notes.get(asked[-1])) else {"seconds": 1.0, "peak_gib": 1.0}

    monkeypatch.setattr(cli, "_asked", lambda gpu: iter(rows))
    monkeypatch.setattr(cli, "_run", run)
    assert cli.main(["--out", str(out)]) == 0
    assert asked == [("SoLo-DPO", 1), ("Long-DPO", 1), ("SoLo-DPO", 2), ("Long-DPO", 2)]
    with pytest.raises(KeyboardInterrupt):
        cli.main(["--out", str(out)])
    notes.clear()
    assert cli.main(["--out", str(out)]) == 0
    assert asked[4:] == [("SoLo-DPO", 2), ("SoLo-DPO", 2), ("SoLo-DPO", 3)]
    assert len(json.loads(out.read_text())["runs"]) == 5
    monkeypatch.setattr(cli, "_machine", lambda: {"gpu": "another"})
    with pytest.raises(UserError, match=r"holds results of gpu None, not 'another': give another --out"):
        cli.main(["--out", str(out)])


@pytest.mark.parametrize("name", ["a.md", "folder.json"])
def test_a_file_that_the_tables_would_replace_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(UserError, match=r"give the name of a \.json file"):
        cli.main(["--out", str(tmp_path / name)])


@pytest.mark.parametrize(
    ("error", "note"),
    [
        (torch.OutOfMemoryError(), "out of memory"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"), "out of memory"),
        (ValueError("two\nlines"), r"ValueError: two lines \(studies/test_gpu_check\.py:\d+\)"),
    ],
)
def test_a_failure_is_one_of_the_rows_values(error: Exception, note: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from studies.gpu_check import row

    def fail(*_: Any) -> Any:
        raise error

    monkeypatch.setattr("studies.gpu_check.timed.measure", fail)
    found = row.main({"system": "SoLo-DPO", "shape": "tiny", "long": 1})
    assert re.fullmatch(note, found["note"])
    assert found.get("ok", True) is (note == "out of memory")


def test_gradients_and_fp32_weights_that_are_there_before_the_first_step_are_no_part_of_the_loaded_model() -> None:
    weight, main = torch.nn.Parameter(torch.ones(8, dtype=torch.bfloat16)), torch.ones(8)
    buffer = SimpleNamespace(grad_data=torch.ones(8))
    chunk = SimpleNamespace(parameters=lambda: [weight], buffers=[buffer], expert_parallel_buffers=[])
    inner = SimpleNamespace(param_groups=[{"params": [main, weight.detach()[:4]]}], state={})
    state = megatron_state([chunk], SimpleNamespace(optimizer=inner))
    assert {kind: storage_bytes(tensors) for kind, tensors in state.items()} == {"gradients": 32, "optimizer": 32}
    assert not buffer.grad_data.any()
