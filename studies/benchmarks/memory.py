"""Peak memory of training above the loaded model, on a CPU (resident set) or a GPU (allocated memory).

One definition for both sides of every comparison. On a CPU:

* the **peak** is the high-water mark of the process's resident set (``VmHWM``) over the training steps, reset just
  before the first one (``/proc/self/clear_refs``);
* it is taken **above** the resident set just before the first step with the model's weights resident and the heap's
  free memory given back to the system, *less* the bytes of everything that training needs besides the weights and that
  is there already: gradient buffers, optimizer state, a copy of the reference policy.

So gradients and optimizer state count whenever they are allocated: TRL does so in its first step, Megatron before it
(the gradient buffer when DDP wraps the model). Imported libraries and the weights count for neither. With CUDA the same
is asked of torch's allocator.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterable
from pathlib import Path

import torch


def resident_bytes(field: str = "VmRSS") -> int:
    """Resident set of this process now (``VmRSS``) or its high-water mark (``VmHWM``).

    Raises:
        RuntimeError: the system does not say (not Linux).
    """
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.is_file() else ():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"peak memory is measured with /proc/self/status, which has no {field} here")


def storage_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of the distinct storages under some tensors."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def release_free_memory() -> None:
    """Give back to the system what this process has freed, so that it does not hide in the baseline."""
    gc.collect()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


class PeakMemory:
    """The high-water mark from :meth:`start` on.

    Attributes:
        baseline: bytes that the peak is taken above.
    """

    baseline = 0

    def start(self, weights: Iterable[torch.Tensor], training_state: Iterable[torch.Tensor]) -> None:
        """Take the baseline and reset the high-water mark.

        Args:
            weights: the model's parameters; read once, since a weight mapped from a file is resident only when touched.
            training_state: what is allocated already and belongs to training; resident (the caller wrote to it).
        """
        for weight in weights:
            weight.detach().sum()
        release_free_memory()
        state = storage_bytes(training_state)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            self.baseline = torch.cuda.memory_allocated() - state
            torch.cuda.reset_peak_memory_stats()
        else:
            self.baseline = resident_bytes() - state
            Path("/proc/self/clear_refs").write_text("5")

    def peak(self) -> int:
        """Bytes above the baseline at the highest point since :meth:`start`."""
        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated() - self.baseline
        return resident_bytes("VmHWM") - self.baseline
