"""One finished run for all tests of runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from runs import run


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a small run on one rank, logged to Weights & Biases too."""
    output = tmp_path_factory.mktemp("runs") / "finished"
    done = run(output, "logger.wandb=tests", WANDB_MODE="offline")
    (output / "logs" / "terminal.txt").write_text(done.stdout + done.stderr)
    return output
