"""What one measurement is: a model's shape, lengths, a layout, and the system that trains."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

PEERS = ("trl_best", "trl_as_is")
"""TRL's DPOTrainer in two settings; every other system is a recipe of this project."""


@dataclass(frozen=True)
class Shape:
    """A Qwen2 model with random weights.

    The defaults are the model of the goals: the embedded model of this repository (feed-forward width twice the hidden
    size) with the vocabulary of Qwen2.5-7B and, like it, an output embedding of its own.
    """

    hidden: int = 128
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    ffn: int = 256
    vocabulary: int = 152064
    tied: bool = False


@dataclass(frozen=True)
class StepSpec:
    """Training steps of one sample, in fresh processes.

    Attributes:
        system: a recipe (``solo_dpo``, ``long_po``, ...) or one of :data:`PEERS`.
        long, short, response: tokens of the long and the short prompt, and of each response with its end token.
        recompute: ``none``, ``selective`` or ``full``.
        tensor, sequence, context, context_mode, pipeline, data: the layout, as ``parallel.*``; the peers have none.
        threads: OpenMP threads of each rank.
        steps: optimizer steps; from the second on the optimizer's state is there.
        overrides: further Hydra overrides of the recipe.
    """

    system: str
    long: int
    short: int = 1024
    response: int = 128
    shape: Shape = field(default_factory=Shape)
    recompute: str = "none"
    tensor: int = 1
    sequence: bool = False
    context: int = 1
    context_mode: str = "a2a"
    pipeline: int = 1
    data: int = 1
    threads: int = 2
    steps: int = 3
    overrides: tuple[str, ...] = ()

    @property
    def ranks(self) -> int:
        """Processes that train together."""
        return self.tensor * self.context * self.pipeline * self.data

    def as_json(self) -> dict[str, Any]:
        """Plain data that :meth:`from_json` takes."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> StepSpec:
        """The specification that :meth:`as_json` wrote."""
        shape, overrides = Shape(**values["shape"]), tuple(values["overrides"])
        return cls(**(values | {"shape": shape, "overrides": overrides}))

    def key(self) -> str:
        """A short name that is the same for the same measurement."""
        return digest(self.as_json())


def digest(value: Any) -> str:
    """Short hash of plain data."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
