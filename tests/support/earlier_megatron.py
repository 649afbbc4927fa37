"""An earlier Megatron-core beside the installed one: for the oldest accepted container, and for earlier versions."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

VERSION = "0.15.3"


def install_megatron(folder: Path) -> Path:
    """Install :data:`VERSION` alone into a folder, which processes take by ``PYTHONPATH``."""
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-compile", "--target", str(folder)]
    # a constraint names the pinned version
    environment = {name: value for name, value in os.environ.items() if name != "PIP_CONSTRAINT"}
    subprocess.run([*pip, f"megatron-core=={VERSION}"], env=environment, check=True, timeout=300)
    return folder
