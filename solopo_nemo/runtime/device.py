"""The device of this process: the only module that asks torch whether CUDA is present.

A dry run traces the code of a *target* device with fake tensors on the CPU (:func:`tracing`). Inside it :func:`cuda`
describes the target, and all functions about memory, streams and random numbers describe the CPU.

torch is imported when a function is called, so that a command without tensors starts without it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


_target: str | None = None
"""``cuda`` or ``cpu`` inside :func:`tracing`."""


@contextmanager
def tracing(target: str) -> Iterator[None]:
    """Inside the block the code of ``target`` runs, with fake tensors on the CPU.

    Args:
        target: ``cuda`` or ``cpu``.
    """
    global _target
    before, _target = _target, target
    try:
        yield
    finally:
        _target = before


def cuda() -> bool:
    """Whether this process computes on a GPU; inside :func:`tracing`, whether the target is ``cuda``."""
    return _present() if _target is None else _target == "cuda"


def _present() -> bool:
    """Whether this process's tensors are on a GPU; False inside :func:`tracing`."""
    import torch

    return _target is None and torch.cuda.is_available()


def count() -> int:
    """Number of GPUs that this process sees; 0 without CUDA."""
    import torch

    return torch.cuda.device_count() if _present() else 0


def current() -> torch.device:
    """The device of this process's tensors: its current GPU, else the CPU."""
    import torch

    return torch.device("cuda", torch.cuda.current_device()) if _present() else torch.device("cpu")


def name_of_current() -> str:
    """Name of this process's GPU in ``CUDA_VISIBLE_DEVICES``, such as ``3``; empty without CUDA."""
    import torch

    if not _present():
        return ""
    index, visible = torch.cuda.current_device(), os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",")[index].strip() if visible else str(index)


def prepare_environment(ranks_of_model: int) -> None:
    """Sets the variables that CUDA and torch read at their first use of a GPU; variables that the user set stay.

    Call it when a process starts, and in a process that starts ranks. Without a GPU it does nothing.

    Args:
        ranks_of_model: tensor-parallel size times context-parallel size.
    """
    chip = _capability_without_cuda()
    if chip is None:
        return
    # packed micro-batches differ in length, which fragments the allocator's blocks of fixed size
    if "PYTORCH_ALLOC_CONF" not in os.environ:  # the name that torch 2.10 prefers
        os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    # nemo/lightning/pytorch/callbacks/megatron_comm_overlap.py:225-256: up to Hopper a single queue starts a collective
    # before the product that it overlaps with; Blackwell needs several queues
    if ranks_of_model > 1:
        os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "32" if chip[0] > 9 else "1")


def _capability_without_cuda() -> tuple[int, int] | None:
    """Compute capability of the machine's first GPU, read from the driver: a call to CUDA would initialize it."""
    try:
        import pynvml

        pynvml.nvmlInit()
        major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(pynvml.nvmlDeviceGetHandleByIndex(0))
    except Exception:  # no library, no driver or no GPU; the error types differ between releases
        return None
    return int(major), int(minor)


def saves_asynchronously() -> bool:
    """Whether checkpoints are written while the training continues.

    Megatron forks the writer process. On a GPU the writer has copies of the tensors. On a CPU the training would change
    the tensors while they are written.
    """
    return cuda()


def capability() -> tuple[int, int] | None:
    """Compute capability of this process's GPU, such as ``(9, 0)``; None without CUDA."""
    import torch

    return torch.cuda.get_device_capability() if _present() else None


def cudnn_version() -> tuple[int, ...] | None:
    """Version of torch's cuDNN, such as ``(9, 10, 2)``; None without CUDA."""
    import torch

    number = torch.backends.cudnn.version() if _present() else None
    return (number // 10_000, number // 100 % 100, number % 100) if number else None


def default_precision(gpu: bool | None = None) -> str:
    """The precision for ``trainer.precision=null``: ``bf16`` on a GPU, ``fp32`` on a CPU.

    Args:
        gpu: whether the run computes on a GPU; by default :func:`cuda`.
    """
    return "bf16" if (cuda() if gpu is None else gpu) else "fp32"


def memory_gib() -> float:
    """Memory of this process's GPU in GiB; without a GPU, memory of the machine."""
    import torch

    if _present():
        size = torch.cuda.get_device_properties(current()).total_memory
    else:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return float(size) / 2**30


def peak_memory_gib() -> float:
    """Peak memory of this process so far in GiB: allocated tensors on a GPU, the resident set on a CPU."""
    import resource

    import torch

    if _present():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def synchronize() -> None:
    """Waits until this process's GPU has finished all its work; without a GPU it does nothing."""
    import torch

    if _present():
        torch.cuda.synchronize()


def release_cached_memory() -> None:
    """Returns the unused memory of torch's CUDA allocator to the GPU."""
    import torch

    if _present():
        torch.cuda.empty_cache()


def random_state() -> torch.Tensor:
    """State of the random-number generator of this process's device, a uint8 tensor."""
    import torch

    return torch.cuda.get_rng_state() if _present() else torch.get_rng_state()


def set_random_state(state: torch.Tensor) -> None:
    """Restores a state of :func:`random_state`."""
    import torch

    (torch.cuda.set_rng_state if _present() else torch.set_rng_state)(state)
