"""What to change in a run that does not fit: one line."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from itertools import product
from typing import TYPE_CHECKING, Any

from solopo_nemo.planning.layout import Layout
from solopo_nemo.planning.memory import memory
from solopo_nemo.planning.run import GPU, Run
from solopo_nemo.planning.search import RECOMPUTE, is_valid, longest, with_layout
from solopo_nemo.planning.shape import ModelShape
from solopo_nemo.planning.step_time import Machine, step_time
from solopo_nemo.planning.workload import Lengths

if TYPE_CHECKING:
    from solopo_nemo.config.schema import RunConfig

SAVING = 0.9
"""Where a run failed that was predicted to fit, a change has to leave less than this share of the predicted peak."""


def advise(
    config: RunConfig,
    shape: ModelShape,
    lengths: Lengths,
    world: int,
    memory_gib: float,
    device: str = GPU,
    gpus_per_node: int = 8,
) -> str:
    """The smallest change of a recipe's configuration with which it should fit, on the same ranks.

    Fewest changed keys first, then the fastest. Without one, the longest context that fits, or that more devices are
    needed.

    Args:
        config: of the run that does not fit, or ran out of memory.
        shape: of its model.
        lengths: of its longest sample.
        world: ranks; the advice keeps them.
        memory_gib: of one device; on a CPU, of the machine divided by the ranks on it.
        device: ``gpu`` or ``cpu``.
        gpus_per_node: ranks on one node, which tensor parallelism should not leave.

    Returns:
        One line, e.g. ``model.recompute=full parallel.context=4: predicted 61.2 GiB instead of 96.3 of 80.0``.
    """
    machine = Machine(gpus=world, gpus_per_node=gpus_per_node, memory_gib=memory_gib)
    now = Run.of(config, shape, lengths, world, device)
    before = memory(now).gib
    budget = min(machine.budget_gib, before * SAVING)
    outcome = f"GiB instead of {before:.1f} of {memory_gib:.1f}"
    changes = [(memory(run).gib, run, changed) for run, changed in _changes(config, now, gpus_per_node)]
    fitting = [
        (len(changed), step_time(run, machine).total, " ".join(changed), after)
        for after, run, changed in changes
        if after <= budget
    ]
    if fitting:
        *_, change, after = min(fitting)
        return f"{change}: predicted {after:.1f} {outcome}"
    least, smallest, changed = min(changes, key=lambda change: change[0], default=(before, now, []))
    smaller = dataclasses.replace(machine, memory_gib=budget / machine.usable)
    fits = longest(config, smallest, lengths, smaller)
    if fits < 2:
        return (
            f"no setting makes it fit on {world} ranks: predicted {least:.1f} GiB at best of {memory_gib:.1f}; take "
            "more ranks, or devices with more memory"
        )
    shorter = [*changed, f"data.max_tokens={fits + lengths.response}", "data.too_long=drop"]
    return f"{' '.join(shorter)}: predicted {budget:.1f} {outcome}"


def _changes(config: RunConfig, now: Run, gpus_per_node: int) -> Iterator[tuple[Run, list[str]]]:
    """Runs on the same ranks that differ where it can save memory, and the differences as overrides."""
    world, layout = now.layout.world, now.layout
    sizes = [i for i in range(1, world + 1) if world % i == 0]
    tensors = [t for t in sizes if layout.tensor <= t <= max(gpus_per_node, layout.tensor)]
    contexts = [c for c in sizes if c >= layout.context]
    pipelines = [p for p in sizes if p >= layout.pipeline]
    recomputes = RECOMPUTE[RECOMPUTE.index(now.recompute) :]
    micro_batches = sorted({now.micro_batch, 1})
    for tensor, context, pipeline, micro_batch in product(tensors, contexts, pipelines, micro_batches):
        if world % (tensor * context * pipeline):
            continue
        trainer = dataclasses.replace(config.trainer, micro_batch=micro_batch)
        smaller = dataclasses.replace(config, trainer=trainer)
        data = world // (tensor * context * pipeline)
        # the ring is bounded by no number of heads
        modes = {layout.cp_comm_type, "p2p"} if context > 1 else {layout.cp_comm_type}
        for sequence, mode in product({layout.sequence, tensor > 1}, sorted(modes)):
            other = Layout(tensor, sequence, context, mode, pipeline, data)
            if not is_valid(smaller, now.shape, other, now.device):
                continue
            for recompute in recomputes:
                run = dataclasses.replace(now, layout=other, micro_batch=micro_batch, recompute=recompute)
                if changed := _difference(config, run):
                    yield run, changed


def _difference(config: RunConfig, run: Run) -> list[str]:
    """What a run has otherwise than a configuration, as overrides."""
    changed = with_layout(config, run.layout, recompute=run.recompute).parallel
    pairs: list[tuple[str, Any, Any]] = [
        ("trainer.micro_batch", config.trainer.micro_batch, run.micro_batch),
        ("model.recompute", config.model.recompute, run.recompute),
        *(
            (f"parallel.{key}", getattr(config.parallel, key), getattr(changed, key))
            for key in ("sequence", "context", "cp_comm_type", "tensor", "pipeline")
        ),
    ]
    if config.parallel.data not in (None, run.layout.data):
        pairs.append(("parallel.data", config.parallel.data, run.layout.data))
    return [f"{key}={str(new).lower()}" for key, old, new in pairs if old != new]
