"""The virtual environment of the peer, created once from ``studies/benchmarks/peer_trl/requirements.txt``."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

from rich.console import Console

from solopo_nemo.runtime.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = Path(__file__).parent / "peer_trl" / "requirements.txt"
SCRIPT = Path(__file__).parent / "peer_trl" / "trl_dpo.py"
_STAMP = ".requirements"


def peer_python(environment: Path) -> Path:
    """The interpreter of an environment."""
    return environment / "bin" / "python"


def is_ready(environment: Path) -> bool:
    """True if an environment has the current requirements."""
    stamp = environment / _STAMP
    return stamp.is_file() and stamp.read_text() == _wanted()


def make_peer(environment: Path) -> Path:
    """Create the environment unless it is ready, and return its interpreter.

    Raises:
        UserError: the folder is not a virtual environment, or pip fails (for example without network).
    """
    python = peer_python(environment)
    if is_ready(environment):
        return python
    if environment.exists() and not (environment / "pyvenv.cfg").is_file():
        raise UserError(f"--peer-venv {environment}: is there and is no virtual environment: give another folder")
    Console(stderr=True).print(f"installing TRL and torch in {environment}, some minutes", highlight=False)
    if not python.exists():
        _run([sys.executable, "-m", "venv", str(environment)], environment)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    torch = next(line for line in REQUIREMENTS.read_text().splitlines() if line.startswith("torch=="))
    _run([*pip, torch], environment)
    _run([*pip, "-r", str(REQUIREMENTS)], environment)
    (environment / _STAMP).write_text(_wanted())
    return python


def _wanted() -> str:
    return hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()


def _run(command: list[str], environment: Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip() or done.stdout.strip() or f"code {done.returncode}").splitlines()[-1]
        raise UserError(f"--peer-venv {environment}: {' '.join(command[1:5])} failed: {reason}")
