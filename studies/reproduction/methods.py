"""The methods that the paper compares, each with its recipe, overrides and pairs."""

from __future__ import annotations

from dataclasses import dataclass

OBJECTIVES = {"dpo": "DPO", "simpo": "SimPO", "orpo": "ORPO"}


@dataclass(frozen=True)
class Method:
    """A row of the tables.

    Attributes:
        name: name in files and commands.
        title: display name.
        recipe: name of the recipe.
        overrides: overrides in addition to :data:`SHARED`.
        pairs: side on which the pairs are sampled, ``short`` or ``long``.
        objective: objective; for SoLoPO, that of the preference term.
        sequences: numbers of short and long sequences that the policy runs for each sample.
    """

    name: str
    title: str
    recipe: str
    overrides: tuple[str, ...]
    pairs: str
    objective: str
    sequences: tuple[int, int] = (2, 1)


SAFE = "objective.detach_short=true"
"""Detaches the short side. The paper's form collapses with a gap between short and long contexts as large as here."""
ALPHA = {"dpo": 3.0, "simpo": 1.0, "orpo": 1.0}
LEARNING_RATE = 1e-3
"""Learning rate of all methods. The page explains the choice."""
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
"""Overrides of all methods."""


def _vanilla(objective: str, title: str) -> list[Method]:
    on = f"objective={objective}"
    rows = (
        ("short", "Short", (on, "objective.prompt=short"), "short", (2, 0)),
        ("long", "Long", (on,), "long", (0, 2)),
        ("expand", "Expand-Long", (on,), "short", (0, 2)),
    )
    return [
        Method(f"{name}-{objective}", f"{label}-{title}", "long_po", overrides, pairs, objective, sequences)
        for name, label, overrides, pairs, sequences in rows
    ]


def solo(
    objective: str, name: str = "", title: str = "", *overrides: str, alpha: float | None = None, longs: int = 1
) -> Method:
    """SoLoPO with an objective, in the safe form.

    Args:
        objective: ``dpo``, ``simpo`` or ``orpo``.
        name: suffix of the name, for a variant.
        title: suffix of the title, for a variant.
        *overrides: overrides of a variant.
        alpha: weight of the alignment; None uses :data:`ALPHA`.
        longs: number of long sequences per sample.
    """
    weight = f"objective.alpha={ALPHA[objective] if alpha is None else alpha:g}"
    return Method(
        f"solo-{objective}{name}",
        f"SoLo-{OBJECTIVES[objective]}{title}",
        f"solo_{objective}",
        (SAFE, weight, *overrides),
        "short",
        objective,
        (2, longs),
    )


def _methods() -> list[Method]:
    rows = [
        Method("sft-short", "SFT-short", "sft", ("objective.prompt=short",), "short", "sft", (1, 0)),
        Method("sft-long", "SFT-long", "sft", (), "long", "sft", (0, 1)),
    ]
    for objective, title in OBJECTIVES.items():
        rows += _vanilla(objective, title)
        rows += [
            solo(objective),
            solo(objective, "-both", ", both", "objective.align=both", longs=2),
        ]
        if objective == "orpo":  # for the others, KL equals the reward up to alpha
            rows.append(solo(objective, "-kl", ", KL", "objective.align_on=logp"))
    return [*rows, Method("longpo", "LongPO", "longpo", (), "short", "dpo", (0, 2))]


METHODS = {method.name: method for method in _methods()}
"""Methods by name, in the order of the main table."""
