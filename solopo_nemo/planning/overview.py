"""The results of ``tools/plan.py``: whether a run fits, better layouts, the longest context, and the time."""

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
from solopo_nemo.planning.traced import is_known
from solopo_nemo.planning.workload import Lengths

if TYPE_CHECKING:
    from solopo_nemo.config.schema import RunConfig
    from solopo_nemo.planning.dry_run.report import DryRun


@dataclass(frozen=True)
class Overview:
    """The plan of a recipe on a machine.

    Attributes:
        lengths: lengths of a typical sample.
        machine: GPUs and assumptions.
        plan: plan of the configured layout.
        advice: configuration changes with which it fits; ``None`` if it fits already.
        longest: longest long prompt in tokens at the configured layout; 0 if none fits.
        best: plans that fit at these lengths, fastest first.
        furthest: longest long prompt in tokens at any layout, and its plan; ``None`` if none fits.
        samples: samples in an epoch.
        epoch: what an epoch is of, such as ``5,000 samples of data.train``.
        traced: dry run of the first of ``best``, where it was asked for.
    """

    lengths: Lengths
    machine: Machine
    plan: Plan
    advice: str | None
    longest: int
    best: tuple[Plan, ...]
    furthest: tuple[int, Plan] | None
    samples: int
    traced: DryRun | None = None
    epoch: str = ""

    def as_json(self) -> dict[str, Any]:
        """The values as plain JSON data."""
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
            "epoch": self.epoch,
            "traced": self.traced.as_json() if self.traced else None,
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
    """Plan a recipe on a machine.

    Args:
        config: configuration of the recipe; its layout must match the number of GPUs.
        shape: shape of its model.
        lengths: lengths of a typical sample.
        machine: GPUs and assumptions.
        samples: samples in an epoch.
        optimizer: see :class:`solopo_nemo.planning.run.Run`.
        best: maximum number of layouts in :attr:`Overview.best`.
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
    """The longest long prompt in tokens that fits at any valid layout, and the fastest plan with that length."""
    most = 0
    for layout in valid_layouts(config, shape, machine.gpus, machine.gpus_per_node):
        smallest = with_layout(config, layout, recompute=RECOMPUTE[-1])
        run = Run.of(smallest, shape, shorter, machine.gpus, GPU, optimizer)
        if is_known(run):
            most = longest(config, run, shorter, machine, above=most)
    if not most:
        return None
    plans = search(config, shape, dataclasses.replace(shorter, long=most), machine, optimizer)
    return (most, plans[0]) if plans else None


def count_samples(config: RunConfig) -> int | None:
    """Number of samples in the recipe's data; ``None`` if the file does not exist."""
    from solopo_nemo.data.rows import read_rows

    if config.data.train == "builtin":
        return config.data.builtin.samples
    path = Path(config.data.train)
    return sum(1 for _ in read_rows(path)) if path.exists() else None
