"""The methods that the paper compares, each as a recipe, its overrides and the pairs that it sees."""

from __future__ import annotations

from dataclasses import dataclass

OBJECTIVES = {"dpo": "DPO", "simpo": "SimPO", "orpo": "ORPO"}


@dataclass(frozen=True)
class Method:
    """A row of the tables.

    Attributes:
        name: for files and commands.
        title: for readers.
        recipe: of this project.
        overrides: beyond what all methods share.
        pairs: side that the pairs are sampled on, ``short`` or ``long``.
        objective: whose learning rate it takes, a name of :data:`LEARNING_RATES`.
    """

    name: str
    title: str
    recipe: str
    overrides: tuple[str, ...]
    pairs: str
    objective: str


SAFE = "objective.detach_short=true"
"""The paper's form collapses where the gap between short and long contexts is as large as here."""
ALPHA = {"dpo": 3.0, "simpo": 1.0, "orpo": 1.0}
LEARNING_RATES = {"sft": 3e-3, "dpo": 1e-3, "simpo": 1e-3, "orpo": 3e-3}
SHARED = (
    "model=custom",
    "optim.beta2=0.98",
    "trainer.global_batch=16",
    "trainer.micro_batch=16",
    "trainer.checkpoint_every=100000",
    "trainer.keep_checkpoints=1",
    "logger.tensorboard=false",
    "evaluation=none",
)
"""What all methods share."""


def _vanilla(objective: str, title: str) -> list[Method]:
    long_po = f"objective={objective}"
    return [
        Method(
            f"short-{objective}", f"Short-{title}", "long_po", (long_po, "objective.prompt=short"), "short", objective
        ),
        Method(f"long-{objective}", f"Long-{title}", "long_po", (long_po,), "long", objective),
        Method(f"expand-{objective}", f"Expand-Long-{title}", "long_po", (long_po,), "short", objective),
    ]


def solo(objective: str, name: str = "", title: str = "", *overrides: str, alpha: float | None = None) -> Method:
    """SoLoPO over an objective, in the safe form.

    Args:
        objective: ``dpo``, ``simpo`` or ``orpo``.
        name: of the variant, appended.
        title: of the variant, appended.
        *overrides: of the variant.
        alpha: weight of the alignment; the objective's own where not given.
    """
    weight = f"objective.alpha={ALPHA[objective] if alpha is None else alpha:g}"
    return Method(
        f"solo-{objective}{name}",
        f"SoLo-{OBJECTIVES[objective]}{title}",
        f"solo_{objective}",
        (SAFE, weight, *overrides),
        "short",
        objective,
    )


def _methods() -> list[Method]:
    rows = [
        Method("sft-short", "SFT-short", "sft", ("objective.prompt=short",), "short", "sft"),
        Method("sft-long", "SFT-long", "sft", (), "long", "sft"),
    ]
    for objective, title in OBJECTIVES.items():
        rows += _vanilla(objective, title)
        rows += [
            solo(objective),
            solo(objective, "-both", ", both", "objective.align=both"),
            solo(objective, "-kl", ", KL", "objective.align_on=logp"),
        ]
    return [*rows, Method("longpo", "LongPO", "longpo", (), "short", "dpo")]


METHODS = {method.name: method for method in _methods()}
"""By name, in the order of the main table."""
