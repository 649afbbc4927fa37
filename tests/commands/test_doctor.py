"""``solopo doctor``: what it says of a machine, by the table that runs are checked against."""

from __future__ import annotations

import json

import pytest

from solopo_nemo.commands import doctor
from solopo_nemo.runtime import device
from solopo_nemo.runtime.kernels import Installed

H100, T4 = (9, 0), (7, 5)


@pytest.mark.parametrize(
    ("on", "layers", "refused", "problem"),
    [
        (None, "torch (there is no GPU)", "needs a GPU, and this run has none", None),
        (Installed(None, chip=H100), "torch (Transformer Engine is not installed", "tools/setup.sh --engine", None),
        (Installed("2.9.0", "2.8.1", (9, 10, 2), H100), "transformer_engine", "from 2.10 on, and 2.9.0 is", None),
        (Installed(None, chip=T4), "", "set trainer.precision=fp32", "this GPU has 7.5: set trainer.precision=fp32"),
    ],
)
def test_layers_and_refusals_are_those_of_a_run(
    on: Installed | None, layers: str, refused: str, problem: str | None,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(Installed, "of_run", classmethod(lambda cls, gpu: on))
    monkeypatch.setattr(device, "default_precision", lambda: "fp32" if on is None else "bf16")
    monkeypatch.setattr(doctor, "_import_error", lambda module: None)
    assert doctor.main(["--json"]) == (problem is not None)
    shown = capsys.readouterr().out
    found = json.loads(shown.splitlines()[-1])
    assert found["layers"].startswith(layers)
    assert any(refused in line for line in found["refused"])
    assert len(found["refused"]) == len(set(found["refused"])) < 6
    assert len(found["problems"]) == (problem is not None)
    assert problem is None or "problem: model.layers=auto: torch's packed attention takes bf16 from" in shown


def test_a_missing_package_is_a_problem(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    versions = doctor.version_of
    monkeypatch.setattr(doctor, "version_of", lambda name: None if name == "nemo-toolkit" else versions(name))
    assert doctor.main([]) == 1
    assert "problem: nemo-toolkit is not installed: run tools/setup.sh" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("broken", "gpu", "said"),
    [
        ("flash_attn", True, "flash-attn 2.8.3 is installed and cannot be imported (ImportError: undefined symbol)"),
        (
            "transformer_engine.pytorch",
            True,
            "cannot be imported (ImportError: undefined symbol): build it for torch 2.",
        ),
        ("transformer_engine.pytorch", False, None),
        ("torch", True, "cannot be imported (ImportError: undefined symbol): install it again"),
    ],
)
def test_a_package_of_another_torch_is_a_problem_where_it_would_be_used(
    broken: str, gpu: bool, said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    on = Installed("2.11.0", "2.8.3", (9, 10, 2), H100) if gpu else None
    versions, optional = doctor.version_of, {"transformer-engine": "2.11.0", "flash-attn": "2.8.3"}

    def import_module(name: str) -> None:
        if name == broken:
            raise ImportError("undefined\nsymbol")

    monkeypatch.setattr(doctor, "import_module", import_module)
    monkeypatch.setattr(doctor, "version_of", lambda name: optional.get(name) or versions(name))
    monkeypatch.setattr(Installed, "of_run", classmethod(lambda cls, gpu: on))
    found = doctor.diagnose()["problems"]
    assert len(found) == (said is not None)
    assert said is None or said in found[0]
