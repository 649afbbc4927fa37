"""The results of ``tools/plan.py``: whether a run fits, better layouts, the longest context, and the time."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from solopo_nemo.planning.advice import advise
from solopo_nemo.planning.run import GPU, Run
from solopo_nemo.planning.search import LONGEST, RECOMPUTE, Plan, longest, search, valid_layouts, with_layout
from solopo_nemo.planning.shape import ModelShape
from solopo_nemo.planning.step_time import Machine
from solopo_nemo.planning.traced import is_known
from solopo_nemo.planning.workload import Lengths

if TYPE_CHECKING:
    from solopo_nemo.config.schema import RunConfig
    from solopo_nemo.planning.dry_run.report import DryRun

SHOWN = 5
"""Largest number of layouts that are shown."""


@dataclass(frozen=True)
class Overview:
    """The plan of a recipe on a machine.

    Attributes:
        lengths: lengths of a typical sample.
        machine: GPUs and assumptions.
        plan: plan of the configured layout.
        advice: configuration changes with which it fits; ``None`` if it fits already.
        longest: longest long prompt in tokens at the configured layout, by its memory and by the model's window; 0 if
            none fits.
        best: plans that fit at these lengths, fastest first, :data:`SHOWN` at most.
        furthest: longest long prompt in tokens at any layout, by memory and window, and its plan; ``None`` if none
            fits.
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

    def limit(self, long: int) -> str:
        """What bounds a longest long prompt: ``window`` (of the model, with its rope scaling) or ``memory``."""
        return "window" if long == _in_window(self.plan.run.shape, self.lengths) else "memory"

    def as_json(self) -> dict[str, Any]:
        """The values as plain JSON data."""
        furthest = None
        if self.furthest:
            long, plan = self.furthest
            furthest = {"long": long, "limit": self.limit(long), **plan.as_json()}
        return {
            "lengths": dataclasses.asdict(self.lengths),
            "machine": dataclasses.asdict(self.machine),
            "configured": {**self.plan.as_json(), "epoch_hours": round(self.plan.hours(self.samples), 3)},
            "advice": self.advice,
            "longest": self.longest,
            "longest_limit": self.limit(self.longest),
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
) -> Overview:
    """Plan a recipe on a machine.

    Args:
        config: configuration of the recipe; its layout must match the number of GPUs.
        shape: shape of its model.
        lengths: lengths of a typical sample.
        machine: GPUs and assumptions.
        samples: samples in an epoch.
        optimizer: see :class:`solopo_nemo.planning.run.Run`.
    """
    run = Run.of(config, shape, lengths, machine.gpus, GPU, optimizer)
    plan = Plan.of(run, machine)
    return Overview(
        lengths=lengths,
        machine=machine,
        plan=plan,
        advice=None if plan.fits else advise(config, shape, lengths, machine),
        longest=min(longest(config, run, lengths, machine), _in_window(shape, lengths)),
        best=tuple(search(config, shape, lengths, machine, optimizer)[:SHOWN]),
        furthest=furthest(config, shape, lengths, machine, optimizer, _in_window(shape, lengths)),
        samples=samples,
    )


def furthest(
    config: RunConfig,
    shape: ModelShape,
    shorter: Lengths,
    machine: Machine,
    optimizer: str = "sharded",
    within: int = LONGEST,
) -> tuple[int, Plan] | None:
    """The longest long prompt, of at most ``within`` tokens, that fits at any valid layout, and its fastest plan."""
    most = 0
    for layout in valid_layouts(config, shape, machine.gpus, machine.gpus_per_node):
        smallest = with_layout(config, layout, recompute=RECOMPUTE[-1])
        run = Run.of(smallest, shape, shorter, machine.gpus, GPU, optimizer)
        if most < within and is_known(run):
            most = longest(config, run, shorter, machine, above=most)
    most = min(most, within)
    if not most:
        return None
    plans = search(config, shape, dataclasses.replace(shorter, long=most), machine, optimizer)
    return (most, plans[0]) if plans else None


def _in_window(shape: ModelShape, lengths: Lengths) -> int:
    """Tokens of the long prompt with which the longest sequence fills the model's window."""
    return max(shape.window - lengths.response, 0)


def count_samples(config: RunConfig) -> int | None:
    """Number of samples in the recipe's data; ``None`` if the file does not exist."""
    from solopo_nemo.data.rows import read_rows

    if config.data.train == "builtin":
        return config.data.builtin.samples
    path = Path(config.data.train)
    return sum(1 for _ in read_rows(path)) if path.exists() else None
