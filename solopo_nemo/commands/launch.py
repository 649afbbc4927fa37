"""Submit a recipe to Slurm, with restarts after time limits, preemption and failures."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import solopo_nemo
from solopo_nemo.runtime.paths import ASSETS


def main(arguments: Sequence[str]) -> int:
    """Replace this process by ``launch.sh``, which uses this Python and its installed package."""
    script = (ASSETS / "launch.sh").resolve()
    installed = {"SOLOPO_PYTHON": sys.executable, "SOLOPO_VERSION": solopo_nemo.__version__}
    os.execvpe("bash", ["bash", str(script), *arguments], os.environ | installed)
