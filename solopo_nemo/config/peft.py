"""The adapters of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from solopo_nemo.families.family import TARGETS
from solopo_nemo.runtime.errors import require
from solopo_nemo.runtime.options import choice, number


@dataclass(kw_only=True)
class PeftConfig:
    """Adapters, which are the only trained parameters. ``peft=lora`` gives the values of all keys but ``name``.

    Attributes:
        name: set by the choice of the group, as in peft=lora.
        rank: rows of each adapter's matrix A.
        alpha: the product of an adapter is scaled by alpha / rank.
        dropout: dropout of the adapters' input in training.
        targets: all-linear, or modules of [q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj].
        merge: also export hf/, the model with its adapters added to the weights.
    """

    name: str = choice("none", allowed=("none", "lora"))
    rank: int | None = number(None, minimum=1, optional=True)
    alpha: float | None = number(None, above=0, optional=True)
    dropout: float | None = number(None, minimum=0, below=1, optional=True)
    targets: Any = None
    merge: bool = False

    @property
    def on(self) -> bool:
        """Whether adapters are trained."""
        return self.name == "lora"

    @property
    def words(self) -> str:
        """The settings as a user reads them."""
        return f"LoRA, rank {self.rank}, alpha {self.alpha:g}, {', '.join(self.modules)}"

    def check(self) -> None:
        """Check what only adapters need.

        Raises:
            UserError: a value is missing, or a target is none.
        """
        for key in ("rank", "alpha", "dropout"):
            require(getattr(self, key) is not None, f"peft.{key}=null: give a number; peft=lora brings one")
        self.modules  # noqa: B018  # refuses what is no target

    @property
    def modules(self) -> tuple[str, ...]:
        """The targets by name, in the model's order.

        Raises:
            UserError: they are no names of modules.
        """
        if self.targets == "all-linear":
            return TARGETS
        named = [self.targets] if isinstance(self.targets, str) else self.targets
        known = isinstance(named, list) and bool(named) and all(n in TARGETS for n in named)
        require(
            known,
            f"peft.targets={self.targets}: give all-linear, or some of {', '.join(TARGETS)}, as in [q_proj,v_proj]",
        )
        return tuple(name for name in TARGETS if name in named)
