"""Runs a function on several gloo ranks of this machine and brings rank 0's result back."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from zygote import forking


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def _entry(rank: int, world: int, port: int, function: Callable[..., Any], args: tuple[Any, ...], out: str) -> None:
    import sys

    sys.path.insert(0, str(Path(__file__).parent))
    import engine

    engine.start(rank, world, port)
    result = function(*args)
    if rank == 0:
        torch.save(result, out)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def run_ranks(world: int, function: Callable[..., Any], args: tuple[Any, ...], out: Path) -> Any:
    with forking():
        torch.multiprocessing.start_processes(
            _entry, (world, free_port(), function, args, str(out)), nprocs=world, start_method="spawn"
        )
    return torch.load(out, weights_only=False)
