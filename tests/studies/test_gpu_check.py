"""The check for one GPU in its CPU mode: tiny sizes, the same rows and files; and that a wrong row is noticed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from studies.gpu_check import cli


@pytest.mark.slow
def test_every_row_runs_on_a_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """About 50 s: a process a row."""
    out = tmp_path / "found.json"
    assert cli.main(["--out", str(out)]) == 0, capsys.readouterr().out
    rows = json.loads(out.read_text())["rows"]
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
    found = checks.check("SwiGLU and linear", "fp32")
    assert not found["ok"]


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
    tried = [(row["system"], row["long"]) for row in json.loads((tmp_path / "a.json").read_text())["rows"]]
    assert tried.count(("transformers", 1)) == 1
    assert ("transformers", 2) not in tried
    assert ("SoLo-DPO", 2) in tried


def test_the_dry_run_stands_beside_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from solopo_nemo.config.schema import load_config

    def run(command: list[str], **_: Any) -> None:
        config = load_config("solo_dpo", command[2:])
        assert config.dry_run.enabled
        assert (config.model.init, config.dry_run.length) == ("Qwen/Qwen2.5-0.5B-Instruct", "8192")
        rank = {"peak_gib": 9.5, "kinds": {"weights": 1.0}}
        (Path(config.output_dir) / "dry_run.json").write_text(json.dumps({"ranks": [rank]}))

    monkeypatch.setattr(cli, "_asked", lambda gpu: iter([{"system": "SoLo-DPO", "shape": "0.5B", "long": 8192}]))
    monkeypatch.setattr(cli, "_run", lambda *_: {"seconds": 1.0, "peak_gib": 8.0})
    monkeypatch.setattr(cli.device, "cuda", lambda: True)
    monkeypatch.setattr(cli.subprocess, "run", run)
    assert cli.main(["--out", str(tmp_path / "a.json")]) == 0
    tables = (tmp_path / "a.md").read_text()
    assert tables.startswith("Measured on ")
    assert "| 0.5B | 8,192 | 1.00 s, 8.0 GiB | - | - | 8.5 GiB |" in tables


def test_a_failure_is_one_of_the_rows_values() -> None:
    from studies.gpu_check import row

    def fail(*_: Any) -> Any:
        raise torch.OutOfMemoryError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("studies.gpu_check.timed.measure", fail)
        assert row.main({"system": "SoLo-DPO", "shape": "tiny", "long": 1}) == {"note": "out of memory"}
    assert row.main({"check": "nothing", "precision": "fp32"}) == {"ok": False, "note": "KeyError: 'nothing'"}
