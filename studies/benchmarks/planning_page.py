"""``docs/planning.md``, made of the JSON files beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from studies.benchmarks import planning_tables as tables

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs" / "planning.md"
RESULTS = ROOT / "docs" / "planning"

_HEAD = """# Planning

<!-- Written by `python studies/benchmarks/planner.py table`; edit studies/benchmarks/planning_page.py, not this. -->

`python tools/plan.py` predicts memory and time of any recipe on GPUs. The tables here are predictions,
**not measurements**: nobody has run these configurations on GPUs yet.

Memory is a list of tensors with their sizes, run through forward and backward; the peak is read off
(`solopo_nemo/planning/gpu_layers.py`, one line a tensor, read off Transformer Engine's source). On top come assumed
constants: 1 GiB for CUDA and workspaces, 0.25 GiB for each NCCL group.

Assumed of the machine: {gpus_per_node} GPUs a node, {memory_gib:g} GiB a GPU of which {usable:.0%} can be used,
{tflops:g} TFLOPS at {mfu:.0%} while it computes, {node_gbs:g} GB/s in a node, {network_gbs:g} GB/s between nodes.
Options of `tools/plan.py` replace them. Short prompt {short:,} tokens, responses {response}, 64 samples a step, an
epoch of {samples:,} samples. Both objectives have their reference policy scored beforehand. Lengths past a model's
window need `model.rope_scaling`.

![Longest long prompt that fits](planning/longest.png)

"""


def write_document(data: dict[str, Any], document: Path = DOCUMENT) -> None:
    """Write the document from :func:`studies.benchmarks.planning_tables.as_json`'s data."""
    document.write_text(text(data), encoding="utf-8")


def text(data: dict[str, Any]) -> str:
    """The document."""
    values = {name: data[name] for name in ("short", "response", "samples")}
    return _HEAD.format(**data["machine"], **values) + tables.markdown(data)


def read_data(results: Path = RESULTS) -> dict[str, Any]:
    """The data that the committed document is made of."""
    data: dict[str, Any] = json.loads((results / "layouts.json").read_text(encoding="utf-8"))
    return data
