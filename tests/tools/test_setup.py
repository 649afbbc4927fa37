"""tools/setup.sh where the shell and pip are set up oddly; Python is a stub that notes how pip is called."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NEEDED = ("bash", "env", "cat", "cut", "dirname", "flock", "mkdir", "rm")
PYTHON = """#!/bin/bash
case "$*" in *"pip install"*) echo "USER=$PIP_USER TARGET=${PIP_TARGET-none} $*" >>calls ;; esac
"""


@pytest.mark.parametrize("hash_command", ["sha256sum", "shasum"])
def test_odd_settings_do_no_harm(tmp_path: Path, hash_command: str) -> None:
    root, programs = tmp_path / "root", tmp_path / "bin"
    shutil.copytree(ROOT / "requirements", root / "requirements")
    for name in ("tools/setup.sh", "pyproject.toml", "studies/pyproject.toml"):
        (root / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    programs.mkdir()
    for name in NEEDED:
        (programs / name).symlink_to(str(shutil.which(name)))
    (programs / hash_command).write_text(f"#!/bin/bash\nexec {shutil.which('sha256sum')}\n")
    (programs / hash_command).chmod(0o755)
    (root / ".venv" / "bin").mkdir(parents=True)
    (root / ".venv" / "bin" / "python").write_text(PYTHON)
    (root / ".venv" / "bin" / "python").chmod(0o755)
    # cd tools/.. would go there
    (tmp_path / "decoy" / "tools").mkdir(parents=True)
    odd = {"PATH": str(programs), "CDPATH": str(tmp_path / "decoy"), "PIP_USER": "1", "PIP_TARGET": "/elsewhere"}
    for _ in range(2):  # the second finds a complete installation
        done = subprocess.run(["tools/setup.sh"], cwd=root, env=odd, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        assert (root / "calls").read_text() == (
            "USER=0 TARGET=none -m pip install --disable-pip-version-check --no-deps -e . -e studies\n"
        )
    (root / "pyproject.toml").write_text("changed")
    subprocess.run(["tools/setup.sh"], cwd=root, env=odd, check=True, capture_output=True)
    assert (root / "calls").read_text().count("\n") == 2
