"""Peak memory of training above the loaded model, on a CPU (resident set) or a GPU (allocated memory).

Both sides of every comparison use this definition. On a CPU:

* The **peak** is the high-water mark of the resident set (``VmHWM``) over the training steps. It is reset just before
  the first step (``/proc/self/clear_refs``).
* The **baseline** is the resident set just before the first step, after the weights have been touched and free heap
  memory has been returned to the system, *minus* the training state that is already allocated: gradient buffers,
  optimizer state, a copy of the reference policy.

The result is the peak minus the baseline. Gradients and optimizer state thus count in both systems: TRL allocates them
in the first step, and Megatron before it (the gradient buffer when DDP wraps the model). Imported libraries and weights
do not count. With CUDA, the values come from torch's allocator.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch


def resident_bytes(field: str = "VmRSS") -> int:
    """Current resident set of this process in bytes (``VmRSS``), or its high-water mark (``VmHWM``).

    Raises:
        RuntimeError: the system does not provide the field (not Linux).
    """
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.is_file() else ():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"peak memory is measured with /proc/self/status, which has no {field} here")


def storage_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Total bytes of the distinct storages of tensors."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def megatron_state(chunks: Iterable[Any], optimizer: Any) -> dict[str, list[torch.Tensor]]:
    """Tensors that Megatron allocates before the first step: gradients, and the optimizer's shards.

    Args:
        chunks: the model, in Megatron's DDP wrappers.
        optimizer: Megatron's.
    """
    state: dict[str, list[torch.Tensor]] = {"gradients": [], "optimizer": []}
    weights = set()
    for module in chunks:
        weights |= {p.untyped_storage().data_ptr() for p in module.parameters()}
        for buffer in (*module.buffers, *module.expert_parallel_buffers):
            buffer.grad_data.zero_()  # every step starts with this; it makes the buffer resident
            state["gradients"].append(buffer.grad_data)
    for part in getattr(optimizer, "chained_optimizers", [optimizer]):
        for group in part.optimizer.param_groups:  # fp32 shards are views of the model's weights
            state["optimizer"] += [p for p in group["params"] if p.untyped_storage().data_ptr() not in weights]
        for values in part.optimizer.state.values():
            state["optimizer"] += [value for value in values.values() if torch.is_tensor(value)]
    return state


def release_free_memory() -> None:
    """Return freed memory to the system, so that it is not part of the baseline."""
    gc.collect()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


class PeakMemory:
    """Measures the peak from :meth:`start` on.

    Attributes:
        baseline: baseline in bytes, which is subtracted from the peak.
    """

    baseline = 0

    def start(self, weights: Iterable[torch.Tensor], training_state: Iterable[torch.Tensor]) -> None:
        """Measure the baseline, and reset the high-water mark.

        Args:
            weights: parameters of the model. They are read, because a memory-mapped weight is resident only after use.
            training_state: tensors of the training state that are already allocated and resident.
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
        """Peak in bytes above the baseline since :meth:`start`."""
        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated() - self.baseline
        return resident_bytes("VmHWM") - self.baseline
