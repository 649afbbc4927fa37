"""Logging: messages of libraries go to one file for each rank, messages of this project to the terminal too."""

from __future__ import annotations

import faulthandler
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.logging import RichHandler

LOUD = ("lightning.pytorch", "lightning.fabric", "megatron", "nv_one_logger", "torch.distributed.launcher")
"""Loggers of libraries that install handlers of their own."""


def show_own_messages(rank: int) -> None:
    """Prints this project's messages on rank 0 only. Later calls in the same process change nothing."""
    own = logging.getLogger("solopo_nemo")
    own.setLevel(logging.INFO)
    own.propagate = False
    if not own.handlers:
        own.addHandler(logging.NullHandler() if rank else RichHandler(show_path=False, show_time=False))


@contextmanager
def quiet_imports() -> Iterator[None]:
    """Suppresses the warnings that NeMo and Megatron print at import, about optional packages that are missing."""
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def to_file(folder: Path, rank: int) -> None:
    """Writes the messages of the libraries and of this rank to ``folder/rank_NNNNN.log``.

    Rank 0 also prints errors to stderr. Messages of the logger ``solopo_nemo.rank`` and the stack of a rank that dies
    of a signal go to the file only.

    Args:
        folder: created if it is missing.
        rank: global rank.
    """
    from nemo.utils import logging as nemo_logging

    folder.mkdir(parents=True, exist_ok=True)
    file = logging.StreamHandler((folder / f"rank_{rank:05d}.log").open("a"))
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    errors = logging.StreamHandler(sys.stderr)
    errors.setLevel(logging.ERROR)
    logging.captureWarnings(True)
    root = logging.getLogger()
    for name in (*LOUD, nemo_logging._logger.name, "py.warnings"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    root.handlers = [file] if rank else [file, errors]
    root.setLevel(logging.INFO)
    own = logging.getLogger("solopo_nemo")
    own.addHandler(file)
    own.getChild("rank").addHandler(file)
    own.getChild("rank").propagate = False
    faulthandler.enable(file.stream.fileno())
