"""The device of this process: the one place that asks torch whether there is CUDA.

A dry run traces the code of a *target* device with fake tensors that lie on the CPU (:func:`tracing`): inside it,
:func:`cuda` answers for the target, and every function that gives or asks for memory for the CPU.

torch is imported when a function is called, so that a command that needs no tensor starts without it.
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
    """Take the code of another device, whose tensors are fake and lie on the CPU.

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
    """Whether this process computes on a GPU; inside :func:`tracing`, whether the target is one."""
    return _present() if _target is None else _target == "cuda"


def _present() -> bool:
    """Whether this process's tensors lie on a GPU: those of a dry run do not."""
    import torch

    return _target is None and torch.cuda.is_available()


def count() -> int:
    """GPUs that this process sees; 0 without CUDA."""
    import torch

    return torch.cuda.device_count() if _present() else 0


def current() -> torch.device:
    """The device of this process's tensors: its current GPU, else the CPU."""
    import torch

    return torch.device("cuda", torch.cuda.current_device()) if _present() else torch.device("cpu")


def name_of_current() -> str:
    """This process's GPU as ``CUDA_VISIBLE_DEVICES`` names it; empty without CUDA."""
    import torch

    if not _present():
        return ""
    index, visible = torch.cuda.current_device(), os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",")[index].strip() if visible else str(index)


def prepare_environment(ranks_of_model: int) -> None:
    """Set the variables that CUDA and torch read when a process first uses a GPU, where the user has not set them.

    Call it where a process starts, and in one that starts ranks. Nothing on a machine without GPU.

    Args:
        ranks_of_model: tensor- times context-parallel size.
    """
    chip = _capability_without_cuda()
    if chip is None:
        return
    # packed micro-batches differ in length, which leaves holes between the allocator's blocks of fixed size
    if "PYTORCH_ALLOC_CONF" not in os.environ:  # the name that torch 2.10 prefers
        os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    # nemo/lightning/pytorch/callbacks/megatron_comm_overlap.py:225-256: up to Hopper one queue keeps a collective in
    # front of the product that it overlaps with; Blackwell needs many
    if ranks_of_model > 1:
        os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "32" if chip[0] > 9 else "1")


def _capability_without_cuda() -> tuple[int, int] | None:
    """Compute capability of the machine's first GPU, from the driver: asking CUDA would start it."""
    try:
        import pynvml

        pynvml.nvmlInit()
        major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(pynvml.nvmlDeviceGetHandleByIndex(0))
    except Exception:  # no library, no driver, no GPU: each release has its own errors
        return None
    return int(major), int(minor)


def saves_asynchronously() -> bool:
    """Whether checkpoints are written while the training goes on.

    Megatron forks the writer. On a GPU it has its own copies; on a CPU the training would change what it writes.
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
    """The precision where the configuration names none: ``bf16`` on a GPU, ``fp32`` on a CPU.

    Args:
        gpu: whether the run computes on a GPU; by default what this process does.
    """
    return "bf16" if (cuda() if gpu is None else gpu) else "fp32"


def memory_gib() -> float:
    """Memory of this process's GPU in GiB, or of the machine where there is none."""
    import psutil
    import torch

    size = torch.cuda.get_device_properties(current()).total_memory if _present() else psutil.virtual_memory().total
    return float(size) / 2**30


def peak_memory_gib() -> float:
    """Largest memory of this process so far in GiB: allocated tensors on a GPU, the resident set on a CPU."""
    import resource

    import torch

    if _present():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def synchronize() -> None:
    """Wait until this process's GPU has done what it was given."""
    import torch

    if _present():
        torch.cuda.synchronize()


def release_cached_memory() -> None:
    """Give the memory that torch's CUDA allocator holds free back to the GPU."""
    import torch

    if _present():
        torch.cuda.empty_cache()


def random_state() -> torch.Tensor:
    """State of the random-number generator of this process's device, uint8."""
    import torch

    return torch.cuda.get_rng_state() if _present() else torch.get_rng_state()


def set_random_state(state: torch.Tensor) -> None:
    """Set the random-number generator of this process's device to a state of :func:`random_state`."""
    import torch

    (torch.cuda.set_rng_state if _present() else torch.set_rng_state)(state)
