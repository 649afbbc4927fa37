"""The parallel sizes of a run."""

from __future__ import annotations

from dataclasses import dataclass
from math import lcm

from solopo_nemo.runtime import kernels
from solopo_nemo.runtime.errors import require
from solopo_nemo.runtime.options import choice, number


@dataclass(kw_only=True)
class ParallelConfig:
    """Megatron's parallel sizes.

    Attributes:
        tensor: tensor-parallel size.
        sequence: sequence parallelism: splits the activations between tensor-parallel blocks over the tensor ranks.
        context: context-parallel size: every sequence is split over this many ranks.
        cp_comm_type: p2p is a ring and takes any number of heads; a2a is Ulysses and splits the heads of a tensor rank.
        pipeline: pipeline-parallel size.
        data: data-parallel size; null takes the ranks that are left (one on a machine without GPU).
        expert: expert-parallel size: the experts of a layer are split over this many of the tensor, context and data
            ranks.
        expert_tensor: ranks that share each expert's channels; null takes 1, or parallel.tensor where expert is 1.
    """

    tensor: int = number(minimum=1)
    sequence: bool
    context: int = number(minimum=1)
    cp_comm_type: str = choice(allowed=kernels.OFFERED)
    pipeline: int = number(minimum=1)
    data: int | None = number(minimum=1, optional=True)
    expert: int = number(1, minimum=1)
    expert_tensor: int | None = number(None, minimum=1, optional=True)

    @property
    def model_ranks(self) -> int:
        """Number of ranks of one model replica, experts left out: tensor x context x pipeline."""
        return self.tensor * self.context * self.pipeline

    @property
    def expert_tensor_size(self) -> int:
        """Number of ranks that share each expert's channels: by default 1, or ``tensor`` if ``expert`` is 1."""
        return self.expert_tensor or (1 if self.expert > 1 else self.tensor)

    @property
    def least_data(self) -> int:
        """The data-parallel size on a machine without GPU: ``data``, or the smallest that holds all experts."""
        ranks = self.tensor * self.context
        return self.data or lcm(ranks, self.expert * self.expert_tensor_size) // ranks

    def check(self) -> None:
        """Checks the sizes against each other.

        Raises:
            UserError: two sizes exclude each other.
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
