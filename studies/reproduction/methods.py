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
        objective: its own; that of the preference term, for SoLoPO.
        sequences: short and long ones that the policy runs of each sample.
    """

    name: str
    title: str
    recipe: str
    overrides: tuple[str, ...]
    pairs: str
    objective: str
    sequences: tuple[int, int] = (2, 1)


SAFE = "objective.detach_short=true"
"""The paper's form collapses where the gap between short and long contexts is as large as here."""
ALPHA = {"dpo": 3.0, "simpo": 1.0, "orpo": 1.0}
LEARNING_RATE = 1e-3
"""Of all methods; see the page for how it was chosen."""
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
    """SoLoPO over an objective, in the safe form.

    Args:
        objective: ``dpo``, ``simpo`` or ``orpo``.
        name: of the variant, appended.
        title: of the variant, appended.
        *overrides: of the variant.
        alpha: weight of the alignment; the objective's own where not given.
        longs: long sequences of a sample.
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
        if objective == "orpo":  # for the others it is the same as their reward, up to alpha
            rows.append(solo(objective, "-kl", ", KL", "objective.align_on=logp"))
    return [*rows, Method("longpo", "LongPO", "longpo", (), "short", "dpo", (0, 2))]


METHODS = {method.name: method for method in _methods()}
"""By name, in the order of the main table."""
