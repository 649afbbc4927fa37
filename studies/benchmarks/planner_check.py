"""Comparison of predicted and measured peaks on this machine."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from solopo_nemo.objectives import build_objective
from solopo_nemo.pages.tables import Table
from solopo_nemo.planning.layout import Layout
from solopo_nemo.planning.memory import Memory, memory
from solopo_nemo.planning.run import CPU, Run
from solopo_nemo.planning.shape import ModelShape
from solopo_nemo.planning.workload import Lengths, Workload
from studies.benchmarks.spec import Shape, StepSpec

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


@dataclass(frozen=True)
class Row:
    """One configuration with its measured and predicted peak in bytes above the loaded model (the highest rank)."""

    spec: StepSpec
    measured: float
    predicted: Memory

    @property
    def error(self) -> float:
        """Relative error of the prediction."""
        return self.predicted.above_model / self.measured - 1


def compare(spec: StepSpec, measured: dict[str, Any]) -> Row:
    """Compare a measurement (``peak_bytes`` of each rank) with a new prediction."""
    return Row(spec, max(measured["peak_bytes"]), predict(spec))


def table(rows: Iterable[Row]) -> Table:
    """All rows as a table, in MiB."""
    head = ("recipe", "model", "long", "layout", "recompute", "moment", "measured", "predicted", "error")
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
        )
        for row in rows
    ]
    return Table(head, cells, "llllllr")
