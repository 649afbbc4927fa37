"""Runs a script in a process that cannot import NeMo or Lightning: ``no_nemo.py SCRIPT [ARGUMENTS]``."""

from __future__ import annotations

import runpy
import sys

sys.modules.update(dict.fromkeys(("nemo", "lightning", "pytorch_lightning")))  # None: importing them raises
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
