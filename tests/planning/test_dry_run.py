"""Traced ranks: what they hold by hand-made sums, what they compute and send, and the faults that a trace finds.

All traces of the module run in one process of their own, which the fake process group needs for itself.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from zygote import forking

from solopo_nemo.config.schema import load_config
from solopo_nemo.families.description import ModelDescription
from solopo_nemo.planning import Lengths, Run, forward_flops, hardware_flops, load_shape
from solopo_nemo.planning.parameters import StageParameters

pytestmark = pytest.mark.slow

LENGTHS = {"prompt_short": 60, "prompt_long": 500, "chosen": 20, "rejected": 20}
CPU = ["dry_run=true", "dry_run.device=cpu", "trainer.micro_batch=1", "trainer.global_batch=2"]
GPU = ["dry_run=true", "model.layers=torch", *CPU[2:]]
LONGER = {**LENGTHS, "prompt_long": 4 * LENGTHS["prompt_long"]}
CELLS: dict[str, tuple[int, int, list[str]]] = {  # rank, world, overrides
    "one rank": (0, 1, CPU),
    "recomputed, online": (0, 1, [*CPU, "model.recompute=full", "objective.reference=online"]),
    "first stage": (0, 2, [*CPU, "parallel.pipeline=2"]),
    "last stage": (
        2,
        4,
        [*CPU, "parallel.pipeline=2", "parallel.tensor=2", "parallel.sequence=true", "objective.reference=online"],
    ),
    "ring": (1, 2, [*CPU, "parallel.context=2", "parallel.cp_comm_type=p2p"]),
    "gpu": (0, 1, GPU),
    "gpu, engine": (0, 1, [*GPU, "model.layers=auto"]),
    "gpu, longer": (0, 1, GPU),
    "gpu, fp32": (0, 1, [*GPU, "trainer.precision=fp32"]),
    "gpu ring": (1, 2, [*GPU, "parallel.context=2", "parallel.cp_comm_type=p2p"]),
    "gpu ring, engine": (1, 2, [*GPU, "model.layers=auto", "parallel.context=2", "parallel.cp_comm_type=p2p"]),
    "gpu stage": (2, 4, [*GPU, "parallel.pipeline=2", "parallel.tensor=2", "parallel.sequence=true"]),
    "heads": (0, 8, [*CPU, "parallel.tensor=8"]),
    "experts": (1, 4, [*CPU, "parallel.tensor=2", "parallel.sequence=true", "parallel.expert=2"]),
    "gpu, experts": (1, 4, [*GPU, "model.layers=auto", "parallel.expert=4", "model.moe_z_loss=0.1"]),
}
EXPERTS = {"model_type": "qwen3_moe", "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 96}
EXPERTS |= {"norm_topk_prob": True, "mlp_only_layers": [1], "architectures": ["Qwen3MoeForCausalLM"]}


def with_experts() -> ModelDescription:
    """The embedded model's shape, its first layer with experts."""
    return ModelDescription.from_hf({**load_shape("builtin").source, **EXPERTS})


def _with_hook(hook: Callable[..., None]) -> Any:
    """Register a forward hook on every built decoder: the way in which a fault is seeded."""
    from megatron.core.transformer.transformer_block import TransformerBlock

    built = TransformerBlock.__init__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        built(self, *args, **kwargs)
        self.register_forward_hook(hook)

    return patch.object(TransformerBlock, "__init__", init)


def _read_on_the_host(_: Any, __: Any, hidden: torch.Tensor) -> None:
    hidden.sum().item()


def _gather_whole(_: Any, __: Any, hidden: torch.Tensor) -> None:
    torch.cat([hidden, hidden])


def _trace_all(_: int, out: str) -> None:
    """Trace every cell, and the seeded faults; runs in a process of its own."""
    import dataclasses

    from solopo_nemo.core.device import prepare_process

    prepare_process()
    from solopo_nemo.planning.dry_run.rank import trace_rank
    from solopo_nemo.planning.dry_run.report import dry_run

    model, found = load_shape("builtin"), dict[str, Any]()

    def attempt(name: str, shape: Any, rank: int, world: int, overrides: list[str]) -> None:
        try:
            lengths = LONGER if name.endswith("longer") else LENGTHS
            found[name] = trace_rank(load_config("solo_dpo", overrides), shape, lengths, rank, world)
        except Exception as error:  # not every error of torch can be sent
            found[name] = RuntimeError(f"{type(error).__name__}: {error}")

    for name, cell in CELLS.items():
        attempt(name, with_experts() if "experts" in name else model, *cell)
    attempt("vocabulary", dataclasses.replace(model, vocab_size=4097), *CELLS["last stage"])
    with _with_hook(_read_on_the_host):
        try:
            dry_run(load_config("solo_dpo", CELLS["one rank"][2]), model, LENGTHS, 1, 8.0)
        except Exception as error:
            found["host sync"] = error
    with _with_hook(_gather_whole):
        attempt("whole sequence", model, *CELLS["ring"])
    torch.save(found, out)


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("traces") / "found.pt"
    with forking():
        torch.multiprocessing.start_processes(_trace_all, (str(out),), nprocs=1, start_method="spawn")
    found: dict[str, Any] = torch.load(out, weights_only=False)
    return found


@pytest.mark.parametrize(
    ("cell", "stage", "tensor", "pipeline", "shards"),
    [("one rank", 0, 1, 1, 1), ("first stage", 0, 1, 2, 1), ("last stage", 1, 2, 2, 1), ("ring", 0, 1, 1, 2)],
)
def test_weights_gradients_and_optimizer_state_are_the_sums_of_the_parameters(
    traces: dict[str, Any], cell: str, stage: int, tensor: int, pipeline: int, shards: int
) -> None:
    kinds, parameters = traces[cell].peak.by("kind"), StageParameters.of(load_shape("builtin"), tensor, pipeline, stage)
    assert traces[cell].stage == stage
    for kind, expected in (("weights", 4.0), ("gradients", 4.0), ("optimizer", 8.0 / shards)):
        assert kinds[kind] == pytest.approx(parameters.total * expected, rel=0.02)  # buckets are padded


def test_a_step_computes_what_the_planner_says(traces: dict[str, Any]) -> None:
    model = load_shape("builtin")
    for cell, online in (("one rank", False), ("recomputed, online", True)):
        run = Run.of(load_config("solo_dpo", CELLS[cell][2]), model, Lengths(500, 60, 20), 1, "cpu")
        assert run.online_reference == online
        planned = hardware_flops(run).total
        # attention's kernels run five products in backward: the scores once more, which model FLOPs leave out
        planned += sum(forward_flops(model, sequence).attention for sequence in run.workload.policy) / 2
        assert traces[cell].flops == pytest.approx(planned * run.global_batch, rel=1e-3), cell


def test_a_step_sends_what_ring_algorithms_send(traces: dict[str, Any]) -> None:
    tokens, hidden, kv, layers, batches = 340, 128, 64, 2, 2  # of a rank of the ring; fp32
    # keys and values once in forward and once in backward; the gradient of the other rank's goes home
    share = tokens * 2 * kv * 4
    numbers = traces["ring"].sent["context"] - 3 * share * layers * batches
    assert 0 <= numbers < 100  # and a few sums of log-probabilities
    assert traces["first stage"].sent == {"pipeline": 677 * hidden * 4 * batches}


def test_experts_are_split_and_counted_as_what_their_tokens_pass(traces: dict[str, Any]) -> None:
    model, trace, batches = with_experts(), traces["experts"], 1
    parameters, kinds = StageParameters.of(model, 2, expert_ranks=2), trace.peak.by("kind")
    state = (
        8.0 * ((parameters.total - parameters.experts) + parameters.experts) / 2
    )  # 2 data ranks, 2 with equal experts
    assert parameters.experts == 8 * 3 * 96 * 128 // 2
    assert kinds["weights"] == pytest.approx(parameters.total * 4.0, rel=0.02)
    assert kinds["gradients"] == pytest.approx(parameters.total * 4.0, rel=0.02)
    assert kinds["optimizer"] == pytest.approx(state, rel=0.02)
    run = Run.of(load_config("solo_dpo", CELLS["experts"][2]), model, Lengths(500, 60, 20), 4, "cpu")
    planned = hardware_flops(run).total
    planned += sum(forward_flops(model, sequence).attention for sequence in run.workload.policy) / 2
    assert trace.flops == pytest.approx(planned * batches / 2, rel=1e-2)  # on two tensor ranks, whose rows are padded
    rows, hidden = 680 // 2 * 2, 128
    # to the experts and back, in forward and backward, and the router's weights with them; half of it to the other rank
    sent = (4 * rows * hidden * 4 + 2 * rows * 4) / 2 * batches
    assert 0 <= trace.sent["expert"] - sent < 100  # and the numbers of tokens


def test_a_gpu_traces_one_grouped_product_for_all_experts(traces: dict[str, Any]) -> None:
    operations = traces["gpu, experts"].operations
    assert operations["_grouped_mm"] == 6  # two in forward, four in backward


def test_recomputation_saves_activations_and_a_reference_policy_costs_its_weights(traces: dict[str, Any]) -> None:
    plain, other = (traces[cell].peak.by("kind") for cell in ("one rank", "recomputed, online"))
    assert other["activations"] < 0.7 * plain["activations"]
    for kinds in (other, traces["last stage"].peak.by("kind")):
        assert kinds["reference"] == pytest.approx(kinds["weights"], rel=0.02)


FLASH, EFFICIENT = "_flash_attention_forward", "_efficient_attention_forward"
ON_CPU = "_scaled_dot_product_flash_attention_for_cpu"


@pytest.mark.parametrize(
    ("cell", "kernel"),
    [
        ("one rank", ON_CPU),
        ("ring", ON_CPU),
        ("gpu", FLASH),
        ("gpu ring", FLASH),
        ("gpu ring, engine", FLASH),
        ("gpu, fp32", EFFICIENT),
    ],
)
def test_a_trace_runs_the_attention_of_its_target_alone(traces: dict[str, Any], cell: str, kernel: str) -> None:
    operations = traces[cell].operations
    assert operations.keys() & {FLASH, EFFICIENT, ON_CPU} == {kernel}
    assert operations[kernel.replace("forward", "backward") if kernel != ON_CPU else f"{ON_CPU}_backward"]
    assert not traces[cell].too_long


def test_a_gpu_trace_holds_no_blocks_of_a_cpu_and_the_gpus_fused_norm(traces: dict[str, Any]) -> None:
    short, longer = traces["gpu"].operations, traces["gpu, longer"].operations
    assert short["mm"] == longer["mm"]  # a CPU's blocks of 512 rows are four times as many
    assert "rsqrt" not in short


def test_transformer_engines_layers_hold_the_tensors_of_its_table_beside(traces: dict[str, Any]) -> None:
    model, tokens = load_shape("builtin"), 677
    own, beside = (traces[cell].peak.by("layer", "activations")["layer 1"] for cell in ("gpu", "gpu, engine"))
    norms = 2 * (2 * model.hidden_size + 4)
    assert beside - own == tokens * (norms + 2 * model.intermediate_size)


def test_on_a_gpu_weights_are_bf16_and_the_optimizer_has_fp32_ones_too(traces: dict[str, Any]) -> None:
    kinds, parameters = traces["gpu"].peak.by("kind"), StageParameters.of(load_shape("builtin")).total
    for kind, size in (("weights", 2), ("gradients", 4), ("optimizer", 12)):
        assert kinds[kind] == pytest.approx(parameters * size, rel=0.02)
    # gradients are reduced in fp32 and weights gathered in bf16, each as a ring
    assert traces["gpu ring"].sent["data"] == pytest.approx(parameters * (4 + 2) / 2, rel=0.02)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("heads", "multiple"),
        ("vocabulary", "divi"),
        ("host sync", "_local_scalar_dense reads torch.float32 .* at .*test_dry_run"),
    ],
)
def test_a_seeded_fault_is_found(traces: dict[str, Any], fault: str, message: str) -> None:
    assert isinstance(traces[fault], Exception), traces[fault]
    with pytest.raises(Exception, match=message):
        raise traces[fault]


def test_a_tensor_of_the_whole_sequence_is_found_under_context_parallelism(traces: dict[str, Any]) -> None:
    assert any("of cat" in tensor and "test_dry_run.py" in tensor for tensor in traces["whole sequence"].too_long)


def test_a_fault_is_told_in_one_line_with_rank_part_and_place(traces: dict[str, Any]) -> None:
    from solopo_nemo.runtime.errors import UserError

    assert isinstance(traces["host sync"], UserError)
    text = str(traces["host sync"])
    assert text.startswith("dry run: rank 0 of 1 (pipeline stage 0) fails in forward and backward: HostSync: ")
    assert "\n" not in text
    assert "test_dry_run.py:" in text


def test_a_recipe_writes_what_it_traced_and_says_whether_it_fits(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import json
    import subprocess
    import sys

    def run(*more: str) -> tuple[int, str, dict[str, Any]]:
        words = ["dry_run=true", "dry_run.device=cpu", "dry_run.length=1K", f"output_dir={tmp_path}", *more]
        with forking():
            done = subprocess.run([sys.executable, "recipes/solo_dpo.py", *words], capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr, json.loads((tmp_path / "dry_run.json").read_text())

    code, said, found = run("dry_run.memory=4")
    assert code == 0, said
    assert "fits: " in said
    assert "dry run: rank 0 of 1 (pipeline stage 0): forward and backward" in said
    assert found["fits"]
    assert found["lengths"]["prompt_long"] == 1024
    assert 0 < sum(found["ranks"][0]["kinds"].values()) == pytest.approx(found["ranks"][0]["peak_gib"], abs=0.01)
    code, said, found = run("dry_run.memory=0.01")
    assert code == 2
    assert not found["fits"]
    assert "does not fit: " in said
    assert "by the planner: " in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["dry_run.gpus=4"], "dry_run.*: these keys belong to a dry run"),
        (["dry_run=true", "dry_run.length=long"], "dry_run.length=long: give a number of tokens"),
        (["dry_run=true", "dry_run.length=100M"], "model.rope_scaling extends it"),
        (["dry_run=true", "dry_run.gpus=3", "parallel.tensor=2"], "does not divide the world of 3 ranks"),
        (["dry_run=true", "dry_run.device=tpu"], "dry_run.device must be one of cuda, cpu"),
    ],
)
def test_what_a_dry_run_refuses(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # which a dry run sets for the rest of its process
    from solopo_nemo.runtime.errors import UserError
    from solopo_nemo.training.launch import run_recipe

    with pytest.raises(UserError) as refused:
        run_recipe("solo_dpo", [*words, f"output_dir={tmp_path}"])
    assert message in str(refused.value)
