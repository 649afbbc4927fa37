"""A parallel layout, and the share of a micro-batch on one rank."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from solopo_nemo.planning.workload import Sequence

if TYPE_CHECKING:
    from solopo_nemo.config.parallel import ParallelConfig


@dataclass(frozen=True)
class Layout:
    """Megatron parallel sizes.

    Attributes:
        tensor, context, pipeline, data: parallel sizes; their product is the world size.
        sequence: True for sequence parallelism.
        cp_comm_type: communication of context parallelism, as in ``parallel.cp_comm_type``.
        expert: ranks that the experts are split over; they are among the tensor, context and data ranks.
        expert_tensor: ranks that share each expert's channels where the experts are split; else the tensor ranks do.
    """

    tensor: int = 1
    sequence: bool = False
    context: int = 1
    cp_comm_type: str = "a2a"
    pipeline: int = 1
    data: int = 1
    expert: int = 1
    expert_tensor: int = 1

    @classmethod
    def of(cls, parallel: ParallelConfig, world: int) -> Layout:
        """The layout of a recipe's configuration on ``world`` ranks."""
        sizes = {field.name: getattr(parallel, field.name) for field in dataclasses.fields(cls)}
        sizes["data"] = max(world // parallel.model_ranks, 1)
        sizes["expert_tensor"] = parallel.expert_tensor_size if parallel.expert > 1 else 1
        return cls(**sizes)

    @property
    def model_ranks(self) -> int:
        """Ranks that share one micro-batch."""
        return self.tensor * self.context * self.pipeline

    @property
    def expert_split(self) -> int:
        """Ranks that share each expert's channels."""
        return self.expert_tensor if self.expert > 1 else self.tensor

    @property
    def expert_ranks(self) -> int:
        """Ranks over which the experts of a layer are split."""
        return self.expert * self.expert_split

    @property
    def expert_data(self) -> int:
        """Ranks that hold the same experts."""
        return self.tensor * self.context * self.data // self.expert_ranks

    @property
    def world(self) -> int:
        """The world size."""
        return self.model_ranks * self.data

    def overrides(self) -> list[str]:
        """The layout as command-line overrides of a recipe."""
        values = {
            "tensor": self.tensor,
            "sequence": str(self.sequence).lower(),
            "context": self.context,
            "pipeline": self.pipeline,
        }
        if self.context > 1:
            values["cp_comm_type"] = self.cp_comm_type
        if self.expert > 1:
            values |= {"expert": self.expert, "expert_tensor": self.expert_tensor}
        return [f"parallel.{key}={value}" for key, value in values.items()]

    def as_json(self) -> dict[str, Any]:
        """The sizes as plain JSON data. A layout without expert parallelism has no keys for it."""
        values = dataclasses.asdict(self)
        if self.expert == 1:
            del values["expert"], values["expert_tensor"]
        return values

    def __str__(self) -> str:
        sequence = "+SP" if self.sequence else ""
        mode = f" {self.cp_comm_type}" if self.context > 1 else ""
        split = f"x{self.expert_tensor}" if self.expert_tensor > 1 else ""
        experts = f" EP{self.expert}{split}" if self.expert > 1 else ""
        return f"TP{self.tensor}{sequence} CP{self.context}{mode} PP{self.pipeline} DP{self.data}{experts}"


@dataclass(frozen=True)
class Share:
    """The share of a micro-batch on one context-parallel rank.

    Attributes:
        tokens: local tokens, padding included.
        rows: scored positions on the rank that has the most of them.
        longest: padded length of the longest sequence, over all ranks.
    """

    tokens: int
    rows: int
    longest: int

    @classmethod
    def of(cls, sequences: Iterable[Sequence], samples: int, layout: Layout) -> Share:
        """The share for ``samples`` equal samples, packed as in :func:`solopo_nemo.data.packing.pack`."""
        return _share(tuple(sequences), samples, layout.context, layout.tensor if layout.sequence else 1)


@lru_cache(maxsize=4096)
def _share(sequences: tuple[Sequence, ...], samples: int, context: int, multiple: int) -> Share:
    from solopo_nemo.data.packing import Layout as Packing
    from solopo_nemo.data.packing import local_chunks

    ranks = [Packing(context, rank, multiple) for rank in range(context)]
    tokens, longest, rows = 0, 0, [0] * context
    for sequence in sequences:
        padded = ranks[0].padded(sequence.inputs)
        tokens += padded // context
        longest = max(longest, padded)
        first = sequence.inputs - sequence.rows
        for rank in ranks:
            for start, stop in local_chunks(padded, rank):
                rows[rank.cp_rank] += max(0, min(stop, sequence.inputs) - max(start, first))
    return Share(tokens * samples, max(rows) * samples, longest)
