"""Specification of a measurement: model shape, lengths, layout and system."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

from solopo_nemo.runtime.errors import UserError

GIB = 2**30
WINDOW = 1 << 22
"""Value of ``max_position_embeddings``; no result depends on it."""
LORA, LORA_OFF = "+lora", "+lora_off"
"""Suffixes of a system that trains LoRA adapters on all linear layers. The reference policy is scored before training,
or in each step by the model with its adapters off."""
PAIR = "+pair"
"""Suffix of a system that trains on the short pair alone."""
PEERS = ("trl_best", "trl_as_is", f"trl_best{LORA}", f"trl_best{LORA_OFF}")
"""TRL's DPOTrainer in its settings. Every other system is a recipe of this project, with or without a suffix."""
ADAPTERS = {"rank": 16, "alpha": 32}
"""LoRA's settings, the same for all systems."""


@dataclass(frozen=True)
class Shape:
    """A Qwen2 model with random weights.

    The defaults are the model of the performance goals: the embedded model of this repository (feed-forward size twice
    the hidden size), with the vocabulary of Qwen2.5-7B and its untied output embedding.
    """

    hidden: int = 128
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    ffn: int = 256
    vocabulary: int = 152064
    tied: bool = False

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise UserError(f"--heads {self.heads}: must be a multiple of --kv-heads ({self.kv_heads})")
        if self.hidden % self.heads:
            raise UserError(f"--hidden {self.hidden}: must be a multiple of --heads ({self.heads})")

    def hf_config(self) -> dict[str, Any]:
        """The shape as fields of a Hugging Face configuration."""
        return {
            "model_type": "qwen2",
            "hidden_size": self.hidden,
            "intermediate_size": self.ffn,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "vocab_size": self.vocabulary,
            "tie_word_embeddings": self.tied,
            "max_position_embeddings": WINDOW,
        }


@dataclass(frozen=True)
class Spec(ABC):
    """Base class of specifications."""

    def as_json(self) -> dict[str, Any]:
        """The specification as plain JSON data."""
        values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return values

    def key(self) -> str:
        """A hash that identifies the measurement."""
        return digest(self.as_json())

    @abstractmethod
    def label(self) -> str:
        """A short description for messages."""


@dataclass(frozen=True)
class StepSpec(Spec):
    """Training steps on one sample, in new processes.

    Attributes:
        system: a recipe (``solo_dpo``, ``long_po``, ...), such a name with :data:`LORA`, :data:`LORA_OFF` or
            :data:`PAIR`, or one of :data:`PEERS`.
        long, short, response: tokens of the long and the short prompt, and of each response with its end token.
        recompute: ``none``, ``selective`` or ``full``.
        shape: shape of the model.
        tensor, sequence, context, context_mode, pipeline, data: layout, as in ``parallel.*``; not for peers.
        threads: OpenMP threads per rank.
        steps: optimizer steps. The first one allocates the optimizer state.
        overrides: additional Hydra overrides of the recipe.
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
    context_mode: str = "p2p"
    pipeline: int = 1
    data: int = 1
    threads: int = 2
    steps: int = 3
    overrides: tuple[str, ...] = ()

    @property
    def recipe(self) -> str:
        """The system without its suffix."""
        return self.system.partition("+")[0]

    @property
    def lora(self) -> bool:
        """True if adapters are trained."""
        return self.system.endswith((LORA, LORA_OFF))

    @property
    def adapters_off(self) -> bool:
        """True if the reference policy is the model with its adapters off."""
        return self.system.endswith(LORA_OFF)

    @property
    def pair_alone(self) -> bool:
        """True if nothing is aligned with a long prompt."""
        return self.system.endswith(PAIR)

    @property
    def ranks(self) -> int:
        """Number of ranks."""
        return self.tensor * self.context * self.pipeline * self.data

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> StepSpec:
        """The specification that :meth:`as_json` wrote."""
        shape, overrides = Shape(**values["shape"]), tuple(values["overrides"])
        return cls(**(values | {"shape": shape, "overrides": overrides}))

    def label(self) -> str:
        """A short description for messages."""
        sizes = {name: getattr(self, name) for name in ("tensor", "context", "pipeline", "data")}
        layout = [f"{name} {size}" for name, size in sizes.items() if size > 1]
        recompute = [] if self.recompute == "none" else [f"{self.recompute} recompute"]
        return ", ".join([f"{self.system} at {self.long:,} tokens", *layout, *recompute])


def digest(value: Any) -> str:
    """A short hash of plain JSON data."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
