"""The tables of ``docs/planning.md``: four models on 8 to 128 GPUs, SoLoPO beside vanilla preference optimization."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from solopo_nemo.config.schema import load_config
from solopo_nemo.planning.overview import furthest
from solopo_nemo.planning.search import Plan, search
from solopo_nemo.planning.shape import load_shape
from solopo_nemo.planning.step_time import Machine
from solopo_nemo.planning.workload import Lengths

MODELS = {
    "Qwen2.5-7B": "qwen2_5_7b",
    "Llama-3.1-8B": "llama3_1_8b",
    "Qwen2.5-32B": "qwen2_5_32b",
    "Qwen2.5-72B": "qwen2_5_72b",
}
RECIPES = {"SoLo-DPO": "solo_dpo", "Long-DPO": "long_po"}
GPUS = (8, 16, 32, 64, 128)
LONG = tuple(2**i * 1024 for i in range(5, 11))
SHORT, RESPONSE, SAMPLES = 1024, 128, 5000

Cell = dict[str, Any]


def make_cell(model: str, recipe: str, gpus: int) -> Cell:
    """Best plan at each length, and the longest prompt, of a model and recipe on a number of GPUs."""
    config = load_config(RECIPES[recipe], [f"model={MODELS[model]}"])
    shape, machine = load_shape(config.model.init), Machine(gpus=gpus)
    plans: dict[str, Any] = {}
    for long in LONG:
        found = search(config, shape, Lengths(long, SHORT, RESPONSE), machine)
        plans[str(long)] = _brief(found[0]) if found else None
    far = furthest(config, shape, Lengths(1, SHORT, RESPONSE), machine)
    longest = {"long": far[0], **_brief(far[1])} if far else None
    return {"model": model, "recipe": recipe, "gpus": gpus, "plans": plans, "longest": longest}


def _brief(plan: Plan) -> dict[str, Any]:
    """A plan without the parts of its peak."""
    values = plan.as_json() | {"epoch_hours": round(plan.hours(SAMPLES), 3)}
    del values["memory"]["parts"]
    return values


def all_cells() -> Iterator[tuple[str, str, int]]:
    """Arguments of every :func:`make_cell`."""
    for model in MODELS:
        for gpus in GPUS:
            for recipe in RECIPES:
                yield model, recipe, gpus


def as_json(cells: Iterable[Cell]) -> dict[str, Any]:
    """The file that the document is written from."""
    machine = dataclasses.asdict(Machine()) | {"gpus": None}
    return {"machine": machine, "short": SHORT, "response": RESPONSE, "samples": SAMPLES, "cells": list(cells)}


def markdown(data: dict[str, Any]) -> str:
    """The tables."""
    by_place = {(cell["model"], cell["recipe"], cell["gpus"]): cell for cell in data["cells"]}
    lines = ["## Longest long prompt that fits", "", "SoLo-DPO / Long-DPO, in tokens; fastest layout of any.", ""]
    lines += _head("model", [f"{gpus} GPUs" for gpus in GPUS])
    for model in MODELS:
        lines.append(_row(model, [" / ".join(_far(by_place[model, r, gpus]) for r in RECIPES) for gpus in GPUS]))
    for model in MODELS:
        lines += ["", f"## {model}: hours of an epoch", "", "SoLo-DPO / Long-DPO; - where no layout fits.", ""]
        lines += _head("long prompt", [f"{gpus} GPUs" for gpus in GPUS])
        for long in LONG:
            hours = [" / ".join(_hours(by_place[model, r, gpus], long) for r in RECIPES) for gpus in GPUS]
            lines.append(_row(f"{long // 1024}K", hours))
        lines += ["", f"Fastest layout of SoLo-DPO for {model}, and its peak in GiB a GPU:", ""]
        lines += _head("long prompt", [f"{gpus} GPUs" for gpus in GPUS])
        for long in LONG:
            lines.append(
                _row(
                    f"{long // 1024}K",
                    [_layout(by_place[model, "SoLo-DPO", gpus]["plans"][str(long)]) for gpus in GPUS],
                )
            )
    return "\n".join(lines) + "\n"


def _head(first: str, columns: Sequence[str]) -> list[str]:
    return [_row(first, columns), "|---|" + "---:|" * len(columns)]


def _row(first: str, cells: Sequence[str]) -> str:
    return f"| {first} | {' | '.join(cells)} |"


def _far(cell: Cell) -> str:
    return f"{cell['longest']['long'] // 1024}K" if cell["longest"] else "-"


def _hours(cell: Cell, long: int) -> str:
    plan = cell["plans"][str(long)]
    return f"{plan['epoch_hours']:.1f}" if plan else "-"


def _layout(plan: dict[str, Any] | None) -> str:
    if plan is None:
        return "-"
    layout = plan["layout"]
    names = ("tensor", "TP"), ("context", "CP"), ("pipeline", "PP"), ("data", "DP")
    sizes = " ".join(f"{short}{layout[name]}" for name, short in names if layout[name] > 1)
    return f"{sizes}, {plan['recompute']}, {plan['memory']['peak_gib']:.0f}"
