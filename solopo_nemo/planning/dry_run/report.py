"""A dry run of a configuration: the ranks that differ, traced one after the other, and what they say together."""

from __future__ import annotations

import dataclasses
import os
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console

from solopo_nemo.config.schema import RunConfig
from solopo_nemo.families.description import ModelDescription
from solopo_nemo.pages.tables import Table
from solopo_nemo.planning.layout import Layout
from solopo_nemo.planning.run import CPU, GPU, Run
from solopo_nemo.planning.search import with_layout
from solopo_nemo.planning.state import GIB, device_share
from solopo_nemo.planning.step_time import Machine
from solopo_nemo.planning.workload import Lengths
from solopo_nemo.runtime import logs
from solopo_nemo.runtime.errors import UserError
from solopo_nemo.runtime.kernels import ENGINE

if TYPE_CHECKING:
    from solopo_nemo.planning.dry_run.rank import RankTrace

KINDS = ("weights", "gradients", "optimizer", "reference", "inputs", "activations", "temporaries")
"""Kinds of memory: ``activations`` outlive the forward pass of the layer that makes them, ``temporaries`` do not."""

OF_LAYERS = ("activations", "temporaries")
SHOWN = 5
"""Tensors of the peak that are shown."""


@dataclass(frozen=True)
class DryRun:
    """What a dry run found.

    Attributes:
        config: of the run.
        layout: its parallel layout.
        lengths: tokens of the traced sample by column.
        traces: of the ranks that differ, the one with the highest peak first.
        device_bytes: assumed of the device and its libraries, beside the traced tensors.
        memory_gib: memory of a device.
        seconds: that the traces took.
        experts: the model has mixture-of-experts layers.
    """

    config: RunConfig
    layout: Layout
    lengths: Mapping[str, int]
    traces: tuple[RankTrace, ...]
    device_bytes: float
    memory_gib: float
    seconds: float
    experts: bool = False

    @property
    def peak_gib(self) -> float:
        """Highest peak of a rank, with what is assumed of its device."""
        return (self.traces[0].peak.bytes + self.device_bytes) / GIB

    @property
    def budget_gib(self) -> float:
        """What tensors can use of a device."""
        return Machine(memory_gib=self.memory_gib).budget_gib

    @property
    def fits(self) -> bool:
        """Whether every traced rank fits into its device."""
        return self.peak_gib <= self.budget_gib

    def as_json(self) -> dict[str, Any]:
        """The values as plain JSON data; memory in GiB."""
        return {
            "recipe": self.config.recipe,
            "model": self.config.model.init,
            "device": self.config.dry_run.device,
            "layers": self.config.model.layers,
            "layout": self.layout.as_json(),
            "world": self.layout.world,
            "lengths": dict(self.lengths),
            **({"routing": "balanced, assumed"} if self.experts else {}),
            "peak_gib": round(self.peak_gib, 3),
            "device_gib": round(self.device_bytes / GIB, 3),
            "memory_gib": self.memory_gib,
            "fits": self.fits,
            "seconds": round(self.seconds, 1),
            "ranks": [
                {
                    "rank": trace.rank,
                    "stage": trace.stage,
                    "peak_gib": round(trace.peak.bytes / GIB, 3),
                    "moment": trace.peak.moment,
                    "kinds": {kind: round(size / GIB, 4) for kind, size in trace.peak.by("kind").items()},
                    "layers": {
                        name: round(size / GIB, 4) for name, size in trace.peak.by("layer", *OF_LAYERS).items() if name
                    },
                    "highest": [
                        {"gib": round(made.bytes / GIB, 4), "kind": made.kind, "tensor": str(made)}
                        for made in trace.peak.live[:SHOWN]
                    ],
                    "operations": trace.flops,
                    "sent_gib": {group: round(size / GIB, 4) for group, size in trace.sent.items()},
                }
                for trace in self.traces
            ],
        }


def dry_run(
    config: RunConfig,
    model: ModelDescription,
    lengths: Mapping[str, int],
    world: int,
    memory_gib: float,
    progress: Callable[[str], None] = lambda _: None,
) -> DryRun:
    """Trace the ranks of a run that differ.

    Args:
        config: of the run, checked against model and world.
        model: its model.
        lengths: tokens of its longest sample by column, such as ``prompt_long``.
        world: its ranks.
        memory_gib: of a device.
        progress: told what is done next.

    Raises:
        UserError: what the run would fail of.
    """
    from solopo_nemo.config.world import layers_of
    from solopo_nemo.planning.dry_run.rank import trace_rank

    doing = "start"
    layers = layers_of(config, model, config.dry_run.device == "cuda").name
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, layers=layers))
    started, traces, layout = time.perf_counter(), list[Any](), Layout.of(config.parallel, world)
    for rank in ranks_that_differ(layout, model, config, lengths):
        stage = rank * layout.pipeline // world

        def say(what: str, rank: int = rank, stage: int = stage) -> None:
            nonlocal doing
            doing = what
            progress(f"rank {rank} of {world} (pipeline stage {stage}): {what}")

        try:
            traces.append(trace_rank(config, model, lengths, rank, world, say))
        except UserError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split()) or "no message"
            raise UserError(
                f"dry run: rank {rank} of {world} (pipeline stage {stage}) fails in {doing}: {type(error).__name__}: "
                f"{reason} ({_source(error)})"
            ) from error
    traces.sort(key=lambda trace: -trace.peak.bytes)
    seconds = time.perf_counter() - started
    device_bytes, experts = _device_bytes(config, model, layout, traces[0].stage), model.experts is not None
    return DryRun(config, layout, lengths, tuple(traces), device_bytes, memory_gib, seconds, experts)


def trace_layout(
    config: RunConfig,
    model: ModelDescription,
    layout: Layout,
    recompute: str,
    lengths: Lengths,
    memory_gib: float,
) -> DryRun:
    """Trace what the planner proposes for GPUs, in a process that has not asked for CUDA.

    Args:
        config: of the recipe; ``layout`` and ``recompute`` replace its own.
        model: its model.
        layout: the proposed layout.
        recompute: ``none``, ``selective`` or ``full``.
        lengths: of a typical sample.
        memory_gib: of a GPU.

    Raises:
        UserError: what the run would fail of.
    """
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # fake tensors lie on the CPU, on a machine with GPUs too
    sample = {"prompt_short": lengths.short, "prompt_long": lengths.long}
    sample |= {"chosen": lengths.response, "rejected": lengths.response}
    changed = with_layout(config, layout, recompute=recompute)
    with logs.quiet_imports():
        from solopo_nemo.core.device import prepare_process

        prepare_process()
        return dry_run(changed, model, sample, layout.world, memory_gib)


def ranks_that_differ(
    layout: Layout, model: ModelDescription, config: RunConfig, lengths: Mapping[str, int]
) -> list[int]:
    """The first rank of the first, a middle and the last pipeline stage; of its context ranks the one that scores most.

    Ranks are numbered as Megatron does it: tensor, context, data, pipeline.
    """
    import numpy as np

    from solopo_nemo.data.packing import Layout as Packing
    from solopo_nemo.data.packing import pack

    sample = {name: np.zeros(size, dtype=np.int64) for name, size in lengths.items()}
    names, multiple = config.build_objective().sequences, layout.tensor if layout.sequence else 1
    scored = [
        len(pack([sample], names, Packing(layout.context, rank, multiple))["labels"]) for rank in range(layout.context)
    ]
    context = scored.index(max(scored))
    stages = sorted({0, min(1, layout.pipeline - 1), layout.pipeline - 1})
    return [layout.tensor * (context + layout.context * layout.data * stage) for stage in stages]


def _device_bytes(config: RunConfig, model: ModelDescription, layout: Layout, stage: int) -> float:
    device = CPU if config.dry_run.device == "cpu" else GPU
    return sum(part.bytes for part in device_share(Run.of(config, model, Lengths(1, 1), layout.world, device), stage))


def _source(error: BaseException) -> str:
    """``file:line`` of the innermost frame outside torch."""
    from solopo_nemo.planning.dry_run.tracker import place_of

    frames = reversed(traceback.extract_tb(error.__traceback__))
    return next(filter(None, (place_of(frame.filename, frame.lineno or 0) for frame in frames)), "")


def gib(size: float) -> str:
    """Bytes as GiB with two places."""
    return f"{size / GIB:.2f}"


def _runs(layers: Mapping[str, int]) -> list[tuple[str, int]]:
    """The layers in their order, those alike that follow each other as one: ``layer 2 to 28``."""
    runs = list[tuple[str, str, int]]()
    order = sorted(layers.items(), key=lambda item: [int(part) if part.isdigit() else -1 for part in item[0].split()])
    for name, size in order:
        first, _, before = runs[-1] if runs else ("", "", -1)
        if name.startswith("layer ") and first.startswith("layer ") and gib(size) == gib(before):
            runs[-1] = first, f"{first} to {name.removeprefix('layer ')}", size
        else:
            runs.append((name, name or "backward, and between layers", size))
    return [(shown, size) for _, shown, size in runs]


def print_dry_run(found: DryRun, console: Console) -> None:
    """Print what a dry run found."""
    highest, target = found.traces[0], found.config.dry_run.device
    sample = ", ".join(f"{name} {size:,}" for name, size in found.lengths.items())
    console.print(f"{found.config.recipe} of {found.config.model.init}, {found.layout}")
    engine = found.config.model.layers == ENGINE
    beside = ", with what Transformer Engine's hold beside them" * engine
    console.print(f"traced for {target}: torch's layers{beside}")
    if found.experts:
        console.print("experts: assumed to get equally many tokens each; the busiest rank of a real step holds more")
    console.print(f"longest sample: {sample} tokens; {found.config.trainer.micro_batch} a micro-batch")
    shown = [("peak", *(gib(trace.peak.bytes) for trace in found.traces))]
    shown += [
        (kind, *(gib(trace.peak.by("kind").get(kind, 0)) for trace in found.traces))
        for kind in KINDS
        if any(kind in trace.peak.by("kind") for trace in found.traces)
    ]
    shown += [
        (f"sent to {group} ranks", *(gib(trace.sent.get(group, 0)) for trace in found.traces))
        for group in sorted({group for trace in found.traces for group in trace.sent})
    ]
    shown.append(("operations", *(f"{trace.flops:.3g}" for trace in found.traces)))
    heads = [f"rank {trace.rank}, stage {trace.stage}" for trace in found.traces]
    title = "GiB at the peak of an optimizer step, and what a step sends and computes"
    console.print(Table(("", *heads), shown, title=title).terminal())
    layers = _runs(highest.peak.by("layer", *OF_LAYERS))
    console.print(Table(("made in, on the first", "GiB each"), [(name, gib(size)) for name, size in layers]).terminal())
    tensors = [(gib(made.bytes), made.kind, str(made)) for made in highest.peak.live[:SHOWN]]
    title = f"Largest blocks there, in {highest.peak.moment}"
    console.print(Table(("GiB", "kind", "tensor"), tensors, "rll", title=title).terminal())
    for tensor in dict.fromkeys(tensor for trace in found.traces for tensor in trace.too_long):
        console.print(f"warning: a tensor as long as a whole sequence on a context-parallel rank: {tensor}")
    verdict = "fits" if found.fits else "does not fit"
    console.print(
        f"{verdict}: {found.peak_gib:.1f} GiB of {found.memory_gib:.1f} ({found.device_bytes / GIB:.2f} of it assumed "
        f"for the device's libraries); traced in {found.seconds:.0f} s, not run"
    )
