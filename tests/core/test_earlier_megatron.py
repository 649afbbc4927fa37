"""Megatron-core 0.15.3, which the oldest accepted container has: a part of the parity table, in new processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from earlier_megatron import VERSION, install_megatron

pytestmark = pytest.mark.distributed
ROOT = Path(__file__).parents[2]
LAYOUTS = ("tp2_sp", "cp2_p2p", "pp2", "dp2_distopt")


def test_an_earlier_megatron_agrees_with_one_process(tmp_path: Path) -> None:
    found = "import megatron.core; print(megatron.core.__version__)"
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join((str(install_megatron(tmp_path)), str(ROOT))),
        "REAL_PROCESSES": "1",
    }
    version = subprocess.run(
        [sys.executable, "-c", found], env=environment, capture_output=True, text=True, check=True, timeout=300
    )
    assert version.stdout.split()[-1] == VERSION
    tests = [f"tests/core/test_parity.py::test_layout_trains_as_one_process[{name}-solo_dpo]" for name in LAYOUTS]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "distributed", *tests]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stdout[-3000:]
    assert f"{len(LAYOUTS)} passed" in done.stdout
