"""Advice for a run that does not fit into memory: the configuration changes, in one line."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from itertools import product
from typing import TYPE_CHECKING, Any

from solopo_nemo.planning.layout import Layout
from solopo_nemo.planning.memory import memory
from solopo_nemo.planning.run import GPU, Run
from solopo_nemo.planning.search import RECOMPUTE, expert_sizes, is_valid, longest, with_layout
from solopo_nemo.planning.shape import ModelShape
from solopo_nemo.planning.step_time import Machine, step_time
from solopo_nemo.planning.traced import NOT_KNOWN, is_known
from solopo_nemo.planning.workload import Lengths

if TYPE_CHECKING:
    from solopo_nemo.config.schema import RunConfig

SAVING = 0.9
"""Maximum share of the predicted peak after a change: a run may fail although it is predicted to fit."""
MOST = 256
"""Largest number of GPUs that the advice proposes."""


def advise(
    config: RunConfig,
    shape: ModelShape,
    lengths: Lengths,
    machine: Machine,
    device: str = GPU,
    traced: float | None = None,
) -> str:
    """The nearest layout with which a run should fit, on its own devices or on the smallest larger number of GPUs.

    The layout with the fewest changed keys wins, then the fastest. If no layout fits on the run's own devices, the
    advice also names the longest context that does.

    Args:
        config: configuration of the run that does not fit or ran out of memory.
        shape: shape of its model.
        lengths: lengths of its longest sample.
        machine: machine of the run. ``gpus`` is the number of ranks. ``memory_gib`` is the memory of a rank in GiB; on
            CPUs, it is an equal share of the machine's memory.
        device: ``gpu`` or ``cpu``.
        traced: peak of the run in GiB by its dry run; None for one that ran out of memory, or was only predicted to.

    Returns:
        One line, e.g. ``TP2+SP CP4 p2p PP1 DP1 with recompute=full fits: parallel.sequence=true parallel.context=4
        parallel.tensor=2 model.recompute=full (predicted 61.2 GiB instead of 96.3 of 80.0)``.
    """
    now = Run.of(config, shape, lengths, machine.gpus, device)
    if not is_known(now):
        return NOT_KNOWN
    before = traced or memory(now).gib
    budget = machine.budget_gib if traced else min(machine.budget_gib, before * SAVING)
    of = f"GiB instead of {before:.1f} of {machine.memory_gib:.1f})"
    if found := _nearest(config, now, machine, budget):
        return f"{found} {of}"
    runs = [(memory(run).gib, run, changed) for run, changed in _changes(config, now, machine)]
    least, smallest, changed = min(runs, key=lambda found: found[0], default=(before, now, []))
    devices = f"{machine.gpus} {'GPU' if device == GPU else 'rank'}{'s' * (machine.gpus > 1)}"
    parts = [f"no layout of {devices} fits into {budget:.1f} GiB each (predicted {least:.1f} at best)"]
    for more in _larger(machine) if device == GPU else ():
        if any(memory(run).gib <= budget for run, _ in _changes(config, now, more, only_smallest=True)):
            parts.append(f"on {more.gpus}, {_nearest(config, now, more, budget)} {of}")
            break
    fits = longest(config, smallest, lengths, dataclasses.replace(machine, memory_gib=budget / machine.usable))
    if fits >= 2:
        shorter = [*changed, f"data.max_tokens={fits + lengths.response}", "data.too_long=drop"]
        parts.append(f"on {devices}, shorter samples fit: {' '.join(shorter)} (predicted {budget:.1f} {of}")
    if len(parts) == 1:
        other = f"{before:.1f} of {machine.memory_gib:.1f} GiB were predicted: does another process use the devices?"
        parts.append(other if before <= machine.budget_gib else "take devices with more memory")
    return "; ".join(parts)


def _larger(machine: Machine) -> Iterator[Machine]:
    """The same machine with more GPUs: one more at a time up to a full node, then whole nodes."""
    node = machine.gpus_per_node
    whole_nodes = range((machine.gpus // node + 1) * node, MOST + 1, node)
    for gpus in (*range(machine.gpus + 1, node), *whole_nodes):
        yield dataclasses.replace(machine, gpus=gpus)


def _nearest(config: RunConfig, now: Run, machine: Machine, budget: float) -> str | None:
    """The layout within a memory budget (GiB) that differs least from that of a run, as text; None if none fits."""
    runs = ((memory(run).gib, run, changed) for run, changed in _changes(config, now, machine))
    fitting = [
        (len(changed), step_time(run, machine).total, " ".join(changed), str(run.layout), run.recompute, after)
        for after, run, changed in runs
        if after <= budget
    ]
    if not fitting:
        return None
    *_, change, layout, recompute, after = min(fitting)
    return f"{layout} with recompute={recompute} fits: {change} (predicted {after:.1f}"


def _changes(
    config: RunConfig, now: Run, machine: Machine, only_smallest: bool = False
) -> Iterator[tuple[Run, list[str]]]:
    """Runs on a machine with changes that can save memory, and these changes as overrides.

    On as many devices as the run has, all layouts; on more of them those that split no less than the run's. With
    ``only_smallest``, only the run with the lowest memory for each layout.
    """
    world, layout = machine.gpus, now.layout
    least = Layout() if world == layout.world else layout
    sizes = [i for i in range(1, world + 1) if world % i == 0]
    tensors = [t for t in sizes if least.tensor <= t <= max(machine.gpus_per_node, layout.tensor)]
    contexts = [c for c in sizes if c >= least.context]
    pipelines = [p for p in sizes if p >= least.pipeline]
    recomputes = RECOMPUTE[-1 if only_smallest else RECOMPUTE.index(now.recompute) :]
    micro_batches = sorted({1, now.micro_batch})[: 1 if only_smallest else None]
    for tensor, context, pipeline, micro_batch in product(tensors, contexts, pipelines, micro_batches):
        if world % (tensor * context * pipeline):
            continue
        trainer = dataclasses.replace(config.trainer, micro_batch=micro_batch)
        smaller = dataclasses.replace(config, trainer=trainer)
        data = world // (tensor * context * pipeline)
        # p2p is always a candidate: the number of heads does not limit the ring
        modes = {layout.cp_comm_type, "p2p"} if context > 1 else {layout.cp_comm_type}
        experts = [
            (expert, split)
            for expert, split in expert_sizes(now.shape, tensor, tensor * context * data)
            if expert >= least.expert and split >= least.expert_tensor
        ]
        for sequence, mode, shares in product({layout.sequence, tensor > 1}, sorted(modes), experts):
            other = Layout(tensor, sequence, context, mode, pipeline, data, *shares)
            if not is_valid(smaller, now.shape, other, now.device):
                continue
            for recompute in recomputes:
                run = dataclasses.replace(now, layout=other, micro_batch=micro_batch, recompute=recompute)
                if is_known(run) and (changed := _difference(config, run)):
                    yield run, changed


def _difference(config: RunConfig, run: Run) -> list[str]:
    """The differences of a run from a configuration, as overrides."""
    changed = with_layout(config, run.layout, recompute=run.recompute).parallel
    pairs: list[tuple[str, Any, Any]] = [
        ("trainer.micro_batch", config.trainer.micro_batch, run.micro_batch),
        ("model.recompute", config.model.recompute, run.recompute),
        *(
            (f"parallel.{key}", getattr(config.parallel, key), getattr(changed, key))
            for key in ("sequence", "context", "cp_comm_type", "tensor", "pipeline", "expert", "expert_tensor")
        ),
    ]
    if config.parallel.data not in (None, run.layout.data):
        pairs.append(("parallel.data", config.parallel.data, run.layout.data))
    return [f"{key}={'null' if new is None else str(new).lower()}" for key, old, new in pairs if old != new]
