"""The parallel sizes of a run."""

from __future__ import annotations

from dataclasses import dataclass
from math import lcm

from solopo_nemo.runtime import kernels
from solopo_nemo.runtime.errors import require
from solopo_nemo.runtime.options import choice, number


@dataclass(kw_only=True)
class ParallelConfig:
    """Megatron parallel sizes."""

    tensor: int = number(minimum=1)
    sequence: bool
    context: int = number(minimum=1)
    cp_comm_type: str = choice(allowed=kernels.OFFERED)
    pipeline: int = number(minimum=1)
    data: int | None = number(minimum=1, optional=True)
    expert: int = number(1, minimum=1)  # absent in the configuration of earlier runs
    expert_tensor: int | None = number(None, minimum=1, optional=True)  # likewise

    @property
    def model_ranks(self) -> int:
        """Ranks that hold one copy of all but the experts: tensor x context x pipeline."""
        return self.tensor * self.context * self.pipeline

    @property
    def expert_tensor_size(self) -> int:
        """Ranks that share each expert's channels: by default one, or the tensor ranks where experts are not split."""
        return self.expert_tensor or (1 if self.expert > 1 else self.tensor)

    @property
    def least_data(self) -> int:
        """The data-parallel size where ``data`` is null, on a machine without GPUs: as few as hold all experts."""
        ranks = self.tensor * self.context
        return self.data or lcm(ranks, self.expert * self.expert_tensor_size) // ranks

    def check(self) -> None:
        """Check the sizes against each other.

        Raises:
            UserError: two of them do not fit.
        """
        require(
            not self.sequence or self.tensor > 1,
            "parallel.sequence=true needs parallel.tensor of 2 or more: sequence parallelism splits over the tensor "
            "ranks",
        )
        require(
            self.tensor % self.expert_tensor_size == 0,
            f"parallel.expert_tensor={self.expert_tensor}: must divide parallel.tensor={self.tensor}",
        )
        require(
            self.expert > 1 or self.expert_tensor_size == self.tensor,
            f"parallel.expert_tensor={self.expert_tensor}: differs from parallel.tensor={self.tensor} only with "
            "parallel.expert of 2 or more",
        )
