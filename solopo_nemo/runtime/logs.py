"""Logs: the libraries' messages go to one file a rank, this project's to the terminal."""

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


def show_own_messages(rank: int) -> None:
    """Print this project's messages on rank 0 only; set up once a process."""
    own = logging.getLogger("solopo_nemo")
    own.setLevel(logging.INFO)
    own.propagate = False
    if not own.handlers:
        own.addHandler(logging.NullHandler() if rank else RichHandler(show_path=False, show_time=False))


@contextmanager
def quiet_imports() -> Iterator[None]:
    """Keep NeMo's and Megatron's notes about packages that this project does not use off the terminal."""
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def to_file(folder: Path, rank: int) -> None:
    """Send what the libraries and this rank say to ``folder``, and on rank 0 errors also to stderr.

    ``solopo_nemo.rank`` goes to the file alone, as does the stack of a rank that dies of a signal.
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
