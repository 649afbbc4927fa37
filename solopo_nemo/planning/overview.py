"""The answers of ``tools/plan.py``: does it fit, what fits better, how far does it go, how long does it take."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from solopo_nemo.planning.advice import advise
from solopo_nemo.planning.run import GPU, Run
from solopo_nemo.planning.search import RECOMPUTE, Plan, longest, search, valid_layouts, with_layout
from solopo_nemo.planning.shape import ModelShape
from solopo_nemo.planning.step_time import Machine
from solopo_nemo.planning.workload import Lengths

if TYPE_CHECKING:
    from solopo_nemo.config.schema import RunConfig


@dataclass(frozen=True)
class Overview:
    """What is known of a recipe on a machine.

    Attributes:
        lengths: of a typical sample.
        machine: GPUs and assumptions.
        plan: the recipe as it is configured.
        advice: what to change, where it does not fit.
        longest: longest long prompt at the configured layout; 0 where none fits.
        best: layouts that fit at these lengths, fastest first.
        furthest: longest long prompt at any layout, and that layout's plan; ``None`` where none fits.
        samples: of an epoch.
    """

    lengths: Lengths
    machine: Machine
    plan: Plan
    advice: str | None
    longest: int
    best: tuple[Plan, ...]
    furthest: tuple[int, Plan] | None
    samples: int

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        furthest = None
        if self.furthest:
            furthest = {"long": self.furthest[0], **self.furthest[1].as_json()}
        return {
            "lengths": dataclasses.asdict(self.lengths),
            "machine": dataclasses.asdict(self.machine),
            "configured": {**self.plan.as_json(), "epoch_hours": round(self.plan.hours(self.samples), 3)},
            "advice": self.advice,
            "longest": self.longest,
            "best": [{**plan.as_json(), "epoch_hours": round(plan.hours(self.samples), 3)} for plan in self.best],
            "furthest": furthest,
            "samples": self.samples,
        }


def overview(
    config: RunConfig,
    shape: ModelShape,
    lengths: Lengths,
    machine: Machine,
    samples: int,
    optimizer: str = "sharded",
    best: int = 5,
) -> Overview:
    """Answer everything about a recipe on a machine.

    Args:
        config: of the recipe; its layout must suit the machine's GPUs.
        shape: of its model.
        lengths: of a typical sample.
        machine: GPUs and assumptions.
        samples: of an epoch.
        optimizer: see :class:`solopo_nemo.planning.run.Run`.
        best: how many layouts to keep.
    """
    run = Run.of(config, shape, lengths, machine.gpus, GPU, optimizer)
    plan = Plan.of(run, machine)
    advice = None
    if not plan.fits:
        advice = advise(config, shape, lengths, machine)
    return Overview(
        lengths=lengths,
        machine=machine,
        plan=plan,
        advice=advice,
        longest=longest(config, run, lengths, machine),
        best=tuple(search(config, shape, lengths, machine, optimizer)[:best]),
        furthest=furthest(config, shape, lengths, machine, optimizer),
        samples=samples,
    )


def furthest(
    config: RunConfig, shape: ModelShape, shorter: Lengths, machine: Machine, optimizer: str = "sharded"
) -> tuple[int, Plan] | None:
    """Longest long prompt that any valid layout takes, and the fastest plan among those that take it."""
    runs = [
        Run.of(with_layout(config, layout, recompute=recompute), shape, shorter, machine.gpus, GPU, optimizer)
        for layout in valid_layouts(config, shape, machine.gpus, machine.gpus_per_node)
        for recompute in RECOMPUTE[-1:]  # the one that takes least
    ]
    found = [(longest(config, run, shorter, machine), run) for run in runs]
    most = max((long for long, _ in found), default=0)
    if not most:
        return None
    plans = search(config, shape, dataclasses.replace(shorter, long=most), machine, optimizer)
    return (most, plans[0]) if plans else None


def count_samples(config: RunConfig) -> int | None:
    """Samples of the recipe's data, where they are at hand."""
    from solopo_nemo.data.rows import read_rows

    if config.data.train == "builtin":
        return config.data.builtin.samples
    path = Path(config.data.train)
    return sum(1 for _ in read_rows(path)) if path.exists() else None
