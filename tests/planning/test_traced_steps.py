"""The formulas from which the planner computes are those of a trace now, and hold at sizes of real models."""

from __future__ import annotations

import dataclasses
import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from zygote import forking

from solopo_nemo.config.schema import RunConfig, load_config
from solopo_nemo.core import head
from solopo_nemo.core.layers import blockwise
from solopo_nemo.planning import (
    Lengths,
    ModelShape,
    Run,
    communication,
    forward_flops,
    load_shape,
    memory,
    traced,
)
from solopo_nemo.planning.state import device_share
from solopo_nemo.planning.step_time import rank_flops
from solopo_nemo.planning.traced import STEPS, Formula, Kind, traced_step

RENEW = "run python studies/benchmarks/planner.py steps"
SPLIT = ["parallel.tensor=2", "parallel.sequence=true"]
RING, HEADS = ["parallel.context=4", "parallel.cp_comm_type=p2p"], ["parallel.context=2", "parallel.cp_comm_type=a2a"]
LORA = ["peft=lora"]
STAGES = ["parallel.pipeline=2", "trainer.global_batch=4"]
QWEN, LLAMA, QWEN3 = "Qwen/Qwen2.5-7B-Instruct", "meta-llama/Llama-3.1-8B-Instruct", "Qwen/Qwen3-8B"
GEMMA3 = "google/gemma-3-1b-it"
EXPERTS, MIXTRAL = "Qwen/Qwen3-30B-A3B", "mistralai/Mixtral-8x7B-Instruct-v0.1"
ATTENTION = [*LORA, "peft.targets=[q_proj,k_proj,v_proj,o_proj]"]
SMALL = "Qwen/Qwen2.5-0.5B-Instruct"
Point = tuple[str, str, int, int, list[str]]
"""Device, model, layers of it, tokens of the long prompt, overrides."""
GRID: list[Point] = [
    ("cuda", QWEN, 4, 32768, []),
    ("cuda", QWEN, 6, 131072, [*SPLIT, *RING, "model.recompute=full"]),
    ("cuda", LLAMA, 4, 65536, ["parallel.tensor=8", "parallel.sequence=true", "model.recompute=selective"]),
    ("cuda", LLAMA, 8, 32768, [*STAGES, *SPLIT]),
    ("cuda", QWEN3, 4, 32768, [*HEADS, "model.layers=torch"]),
    ("cuda", QWEN, 4, 8192, ["parallel.tensor=2", "trainer.micro_batch=2", "trainer.global_batch=2"]),
    ("cuda", QWEN, 4, 32768, LORA),
    ("cuda", QWEN, 6, 65536, [*SPLIT, *RING, *LORA, "peft.targets=[q_proj,v_proj,down_proj]"]),
    ("cuda", QWEN, 4, 32768, [*SPLIT, "objective.reference=online"]),
    ("cuda", EXPERTS, 4, 16384, [*RING, "parallel.expert=4"]),
    ("cuda", EXPERTS, 4, 32768, [*SPLIT, *RING, "parallel.expert=8", "model.recompute=full"]),
    ("cuda", EXPERTS, 3, 32768, [*HEADS, "parallel.expert=2", "model.recompute=selective"]),
    ("cuda", EXPERTS, 4, 16384, [*STAGES, *SPLIT, "parallel.context=2", "parallel.expert=4"]),
    (
        "cuda",
        EXPERTS,
        4,
        8192,
        ["parallel.data=8", "parallel.expert=8", "trainer.global_batch=8", "model.layers=torch"],
    ),
    ("cuda", MIXTRAL, 4, 8192, [*SPLIT, "parallel.expert=2", "model.recompute=selective"]),
    ("cuda", MIXTRAL, 3, 16384, ["parallel.tensor=4", "parallel.sequence=true", "model.recompute=full"]),
    ("cuda", MIXTRAL, 3, 8192, [*SPLIT, *HEADS, "parallel.expert=2", "parallel.expert_tensor=2"]),
    ("cuda", EXPERTS, 4, 32768, [*RING, *ATTENTION, "parallel.expert=4", "model.recompute=full"]),
    ("cuda", EXPERTS, 3, 16384, [*SPLIT, *HEADS, *ATTENTION, "parallel.expert=4"]),
    ("cuda", EXPERTS, 4, 16384, [*RING, *LORA, "parallel.expert=4"]),
    ("cuda", EXPERTS, 3, 32768, [*SPLIT, *RING, *LORA, "peft.rank=32", "parallel.expert=8", "model.recompute=full"]),
    ("cuda", MIXTRAL, 3, 8192, [*HEADS, *LORA, "parallel.expert=2", "model.recompute=selective"]),
    ("cpu", SMALL, 4, 2048, []),
    ("cuda", GEMMA3, 6, 16384, ["model.recompute=full"]),
    ("cuda", GEMMA3, 8, 32768, [*HEADS, "model.layers=torch"]),
    ("cpu", GEMMA3, 4, 2048, []),
    ("cpu", SMALL, 4, 4096, [*SPLIT, *LORA, "model.recompute=full"]),
    ("cpu", SMALL, 8, 2048, STAGES),
    ("cpu", SMALL, 4, 4096, [*SPLIT, "model.recompute=full"]),
    ("cpu", SMALL, 4, 4096, [*HEADS, "model.recompute=selective"]),
    ("cpu", SMALL, 4, 4096, [*RING, "model.logits_chunk_size=64"]),
]
FULL: list[Point] = [
    (device, model, layers, long, [*layout, f"model.recompute={recompute}"])
    for device, model, layers, long in (("cuda", QWEN, 28, 65536), ("cuda", QWEN3, 6, 131072), ("cpu", SMALL, 4, 3000))
    for recompute, layout in product(
        ("none", "selective", "full"), ([], SPLIT, RING, HEADS, [*SPLIT, *HEADS], [*STAGES, *SPLIT, *RING])
    )
]
AGAIN = (
    Kind("gpu", "none", "p2p", True, False),
    Kind("gpu", "full", "", True, False),
    Kind("cpu", "selective", "a2a", False, True),
    Kind("gpu", "selective", "", True, True, behind=True),
    Kind("gpu", "full", "p2p", True, True, experts=True),
    Kind("gpu", "none", "", True, True, experts=True, adapters=True),
)


def run_of(point: Point) -> tuple[RunConfig, ModelShape, Run]:
    device, model, layers, long, more = point
    words = ["dry_run=true", f"dry_run.device={device}", "trainer.micro_batch=1", "trainer.global_batch=1", *more]
    config = load_config("solo_dpo", words)
    shape = load_shape(model)
    fewer: dict[str, Any] = {"num_hidden_layers": layers, "sliding_layers": shape.sliding_layers[:layers]}
    if shape.experts:
        fewer["experts"] = dataclasses.replace(shape.experts, layers=shape.experts.layers[:layers])
    shape = dataclasses.replace(shape, **fewer, max_position_embeddings=2 * long)
    on = "gpu" if device == "cuda" else "cpu"
    world = config.parallel.model_ranks * config.parallel.least_data
    return config, shape, Run.of(config, shape, Lengths(long, 512, 100), world, on)


def _trace_all(_: int, points: list[Point], kinds: tuple[Kind, ...], out: str) -> None:
    from solopo_nemo.core.device import prepare_process

    prepare_process()
    from solopo_nemo.planning.dry_run.report import dry_run
    from studies.benchmarks import traced_steps

    runs = []
    for point in points:
        config, shape, run = run_of(point)
        lengths = {"prompt_short": 512, "prompt_long": point[3], "chosen": 100, "rejected": 100}
        runs.append(dry_run(config, shape, lengths, run.layout.world, 80.0).traces[0])
    torch.save((runs, [traced_steps.read(kind, traced_steps.trace(kind)) for kind in kinds]), out)


def trace_all(points: list[Point], kinds: tuple[Kind, ...], folder: Path) -> Any:
    """Fresh traces, in a process of their own."""
    arguments = (points, kinds, str(folder / "found.pt"))
    with forking():
        torch.multiprocessing.start_processes(_trace_all, arguments, nprocs=1, start_method="spawn")
    return torch.load(folder / "found.pt", weights_only=False)


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Some 30 s."""
    return trace_all(GRID, AGAIN, tmp_path_factory.mktemp("traces"))


def compare(point: Point, trace: Any) -> None:
    _, _, run = run_of(point)
    computed, kinds = memory(run), trace.peak.by("kind")
    beside = sum(part.bytes for part in device_share(run, computed.stage))
    assert computed.peak - beside == pytest.approx(trace.peak.bytes, rel=0.02), (point, computed, kinds)
    for kind, part in (("weights", "weights"), ("gradients", "gradients"), ("optimizer", "optimizer state")):
        assert kinds[kind] == pytest.approx(computed.parts[part], rel=0.02), (point, kind)
    sent = communication(run)
    for group in ("tensor", "context", "data", "expert"):
        assert getattr(sent, group) == pytest.approx(trace.sent.get(group, 0.0), rel=0.02, abs=2e6), (point, group)
    windows = run.device == "cpu" and run.shape.attention_window  # a CPU computes what they leave out, too
    if run.layout.pipeline == 1 and not windows:
        # attention's kernels run five products in backward: the scores once more, which model FLOPs leave out
        again = sum(forward_flops(run.shape, sequence).attention for sequence in run.workload.policy) / 2
        samples = run.micro_batch * run.micro_batches / run.layout.model_ranks
        assert rank_flops(run).total + again * samples == pytest.approx(trace.flops, rel=0.03), point  # padding


@pytest.mark.slow
@pytest.mark.parametrize("index", range(len(GRID)))
def test_what_is_computed_for_a_run_is_what_its_own_trace_says(fresh: Any, index: int) -> None:
    compare(GRID[index], fresh[0][index])


@pytest.mark.long
def test_the_same_over_the_full_grid(tmp_path: Path) -> None:
    """Some 15 minutes."""
    for point, trace in zip(FULL, trace_all(FULL, (), tmp_path)[0], strict=True):
        compare(point, trace)


@pytest.mark.slow
@pytest.mark.parametrize("index", range(len(AGAIN)))
def test_the_stored_formulas_are_those_of_a_trace_now(fresh: Any, index: int) -> None:
    stored, found = traced_step(AGAIN[index]), fresh[1][index]
    assert [stored.saved.terms, stored.outside.terms] == [Formula(found[key]).terms for key in ("saved", "outside")], (
        RENEW
    )
    assert {group: formula.terms for group, formula in stored.sent.items()} == terms_of(found["sent"]), RENEW
    moments = [(name, {part: formula.terms for part, formula in parts.items()}) for name, parts in stored.moments]
    assert moments == [(name, terms_of(parts)) for name, parts in found["moments"]], RENEW


def terms_of(texts: dict[str, str]) -> dict[str, dict[str, float]]:
    return {name: Formula(text).terms for name, text in texts.items()}


def test_every_kind_of_step_is_there() -> None:
    from studies.benchmarks.traced_steps import all_kinds

    assert [*json.loads(STEPS.read_text())["steps"]] == [str(kind) for kind in all_kinds()]


def test_the_sizes_of_blocks_and_tiles_are_those_of_the_code() -> None:
    assert (traced.BLOCK, traced.GPU_BLOCK) == (blockwise.BLOCK, blockwise.GPU_BLOCK)
    assert (traced.TILE, traced.GPU_TILE) == (head.VOCABULARY_TILE, head.GPU_VOCABULARY_TILE)


@pytest.mark.parametrize(
    ("elements", "context", "terms"),
    [
        (4010 * 1016, 1, {"T*h": 1}),
        (4010 * 1016 // 5, 1, {"T*h/t": 1}),
        (2005 * 129 * 13 * 136, 3, {"T*a": 0.5, "T*k": 1}),
        (9210 * 1419 * 136 // 3, 3, {"S*a/c": 1}),
        (419 * 1013 * 2, 1, {"B*f": 2}),
        (239 * 1013, 1, {}),
        (802 * 29 * 1048 * 7, 1, {"T*q*m*u/t": 1}),
        (802 * 74, 1, {"T*X/t": 1}),
        (37 * 152 * 1016 * 2, 1, {"x*h*r": 2}),
    ],
)
def test_a_size_is_read_as_a_product(elements: int, context: int, terms: dict[str, float]) -> None:
    from studies.benchmarks.traced_steps import term_of

    assert (term_of(elements, context) or {}) == terms


def test_a_size_that_is_no_product_is_refused() -> None:
    from studies.benchmarks.traced_steps import term_of

    with pytest.raises(ValueError, match="53"):
        term_of(53 * 1016 * 4010, 1)
