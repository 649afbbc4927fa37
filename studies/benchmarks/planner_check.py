"""Comparison of predicted, traced and measured peaks on this machine."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from solopo_nemo.config.schema import load_config
from solopo_nemo.objectives import build_objective
from solopo_nemo.pages.tables import Table
from solopo_nemo.planning.layout import Layout
from solopo_nemo.planning.memory import Memory, memory
from solopo_nemo.planning.run import CPU, Run
from solopo_nemo.planning.shape import ModelShape
from solopo_nemo.planning.workload import Lengths, Workload
from studies.benchmarks.material import Material
from studies.benchmarks.spec import Shape, StepSpec
from studies.benchmarks.step import overrides_of

TOLERANCE = 0.10
"""Largest relative error of a prediction."""


def _spec(long: int, recipe: str = "solo_dpo", **values: Any) -> StepSpec:
    shape = {name: values.pop(name) for name in tuple(values) if name in Shape.__dataclass_fields__}
    return StepSpec(system=recipe, long=long, shape=Shape(**({"vocabulary": 8192} | shape)), threads=1, **values)


WIDE: dict[str, Any] = {"hidden": 256, "heads": 8, "kv_heads": 2, "ffn": 1344}
DEEP: dict[str, Any] = {"layers": 4}
REAL: dict[str, Any] = {"vocabulary": 152064}
SPECS: tuple[StepSpec, ...] = (
    _spec(8192),
    _spec(16384),
    _spec(8192, recipe="long_po"),
    _spec(8192, recompute="selective"),
    _spec(16384, recompute="full"),
    _spec(8192, **DEEP),
    _spec(8192, **DEEP, recompute="full"),
    _spec(8192, **WIDE),
    _spec(4096, **WIDE, **DEEP),
    _spec(8192, **WIDE, recompute="full"),
    _spec(4096, **REAL),
    _spec(16384, **REAL),
    _spec(8192, **REAL, tied=True),
    _spec(8192, vocabulary=32768, recipe="long_po", recompute="full"),
    _spec(8192, tensor=2),
    _spec(8192, tensor=2, sequence=True),
    _spec(16384, tensor=2, sequence=True, recompute="full"),
    _spec(8192, context=2, context_mode="p2p"),
    _spec(16384, context=2, context_mode="p2p", recompute="full"),
    _spec(8192, context=2, context_mode="a2a"),
    _spec(8192, **REAL, context=2, context_mode="p2p"),
    _spec(8192, **WIDE, context=2, context_mode="p2p", recompute="selective"),
)
"""Configurations that vary model size, length, tensor and context parallelism, recomputation and vocabulary."""


def layout_of(spec: StepSpec) -> Layout:
    """The layout of a measurement."""
    return Layout(spec.tensor, spec.sequence, spec.context, spec.context_mode, spec.pipeline, spec.data)


def predict(spec: StepSpec) -> Memory:
    """The planner's prediction for a specification."""
    s = spec.shape
    shape = replace(ModelShape.from_hf(s.hf_config()), max_position_embeddings=spec.long)
    options = {} if spec.system == "solo_dpo" else {"align": "none", "prompt": "long"}
    workload = Workload.of(build_objective("dpo", **options), Lengths(spec.long, spec.short, spec.response))
    return memory(Run(shape, workload, layout_of(spec), CPU, "fp32", spec.recompute, global_batch=spec.data))


def trace(spec: StepSpec) -> dict[str, float]:
    """A dry run of a specification: bytes by kind at the peak of the highest rank.

    Returns:
        By kind, and ``above_model``: all but the weights, and what is assumed of the process's libraries.
    """
    from solopo_nemo.core.device import prepare_process

    prepare_process()
    from solopo_nemo.planning.dry_run.report import dry_run

    nowhere = Path("nowhere")
    overrides = overrides_of(spec, Material(nowhere, nowhere, nowhere, nowhere), nowhere)
    config = load_config(spec.system, [*overrides, "dry_run=true", "dry_run.device=cpu"])
    lengths = {"prompt_short": spec.short, "prompt_long": spec.long, "chosen": spec.response, "rejected": spec.response}
    found = dry_run(config, ModelShape.from_hf(spec.shape.hf_config()), lengths, spec.ranks, 1.0)
    kinds: dict[str, float] = {**found.traces[0].peak.by("kind")}
    return {**kinds, "above_model": found.traces[0].peak.bytes - kinds["weights"] + found.device_bytes}


@dataclass(frozen=True)
class Row:
    """One configuration with its measured, predicted and traced peak in bytes above the loaded model (highest rank)."""

    spec: StepSpec
    measured: float
    predicted: Memory
    traced: float

    @property
    def error(self) -> float:
        """Relative error of the prediction."""
        return self.predicted.above_model / self.measured - 1

    @property
    def trace_error(self) -> float:
        """Relative error of the trace."""
        return self.traced / self.measured - 1


def compare(spec: StepSpec, measured: dict[str, Any], traced: float) -> Row:
    """Compare a measurement (``peak_bytes`` of each rank) with a new prediction and a trace."""
    return Row(spec, max(measured["peak_bytes"]), predict(spec), traced)


def table(rows: Iterable[Row]) -> Table:
    """All rows as a table, in MiB."""
    head = (
        "recipe",
        "model",
        "long",
        "layout",
        "recompute",
        "moment",
        "measured",
        "predicted",
        "error",
        "traced",
        "error",
    )
    cells = [
        (
            row.spec.system,
            f"{row.spec.shape.layers} x {row.spec.shape.hidden}, {row.spec.shape.vocabulary}",
            f"{row.spec.long}",
            str(layout_of(row.spec)),
            row.spec.recompute,
            row.predicted.moment,
            f"{row.measured / 2**20:.0f}",
            f"{row.predicted.above_model / 2**20:.0f}",
            f"{row.error:+.1%}",
            f"{row.traced / 2**20:.0f}",
            f"{row.trace_error:+.1%}",
        )
        for row in rows
    ]
    return Table(head, cells, "llllllr")
