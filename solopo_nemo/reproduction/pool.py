"""Worker processes that start the parts of a run fast."""

from __future__ import annotations

import contextlib
import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import psutil

from solopo_nemo.model.apart import keep_ready

PRELOADED = (
    "solopo_nemo.training.guarded",
    "solopo_nemo.training.report",
    "solopo_nemo.model.convert",
    "solopo_nemo.model.models",
    "solopo_nemo.model.verify",
    "transformers.models.qwen2.modeling_qwen2",
)
"""What a rank and a conversion import before they begin, NeMo above all."""


def make_pool(workers: int, logs: Path) -> ProcessPoolExecutor:
    """Processes for :func:`solopo_nemo.reproduction.runs.run_method` and whatever else is to run side by side.

    Args:
        workers: processes, each with one thread.
        logs: folder for what they print.
    """
    logs.mkdir(parents=True, exist_ok=True)
    os.environ["OMP_NUM_THREADS"] = "1"  # of the workers and of all that they start
    return ProcessPoolExecutor(workers, get_context("spawn"), initializer=prepare_worker, initargs=(logs,))


def prepare_worker(logs: Path) -> None:
    """Make this process a worker: one thread, its output in a file, and fast starts of its ranks."""
    import torch

    with (logs / f"worker-{os.getpid()}.log").open("a") as log:
        for standard in (1, 2):
            os.dup2(log.fileno(), standard)
    torch.set_num_threads(1)
    keep_ready(PRELOADED)


def kill_children() -> None:
    """End the workers and everything that they started."""
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
