"""What the memory model says against sums made by hand, and the properties that any memory model has."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solopo_nemo.data.packing import Layout as Packing
from solopo_nemo.data.packing import pack
from solopo_nemo.families.family import TARGETS
from solopo_nemo.objectives import build_objective
from solopo_nemo.planning import CPU, GPU, Layout, Lengths, ModelShape, Run, Workload, communication, load_shape, memory
from solopo_nemo.planning.layout import Share
from solopo_nemo.planning.parameters import StageParameters
from solopo_nemo.planning.state import device_share
from solopo_nemo.planning.traced import Kind, Sizes, is_known, traced_step

QWEN = load_shape("Qwen/Qwen2.5-7B-Instruct")
SOLO, VANILLA = build_objective("dpo"), build_objective("dpo", align="none", prompt="long")

runs = st.builds(
    lambda long, tensor, sequence, context, mode, pipeline, data, device, recompute, micro: Run(
        shape=QWEN,
        workload=Workload.of(SOLO, Lengths(long, 1024)),
        layout=Layout(tensor, sequence and tensor > 1, context, mode, pipeline, data),
        device=device,
        precision="bf16" if device == GPU else "fp32",
        recompute=recompute,
        micro_batch=micro,
        global_batch=64 * micro,
    ),
    st.integers(1, 10**6),
    st.sampled_from([1, 2, 4]),
    st.booleans(),
    st.sampled_from([1, 2, 4]),
    st.sampled_from(["p2p", "a2a"]),
    st.sampled_from([1, 2, 4]),
    st.sampled_from([1, 2, 8]),
    st.sampled_from([GPU, CPU]),
    st.sampled_from(["none", "selective", "full"]),
    st.integers(1, 3),
)


@given(runs, st.integers(0, 10**5))
def test_a_longer_context_never_needs_less(run: Run, more: int) -> None:
    longest = max(sequence.inputs for sequence in run.workload.policy)
    longer = Workload.of(SOLO, Lengths(longest + more, 1024))
    assert memory(dataclasses.replace(run, workload=longer)).peak >= memory(run).peak


@given(runs)
def test_what_saves_memory_never_costs_any(run: Run) -> None:
    peak = memory(run).peak
    assert memory(dataclasses.replace(run, optimizer="replicated")).peak >= peak
    assert memory(dataclasses.replace(run, optimizer="offloaded")).peak <= peak
    assert memory(dataclasses.replace(run, online_reference=True)).peak > peak
    assert (
        memory(dataclasses.replace(run, recompute="none")).peak
        >= memory(dataclasses.replace(run, recompute="selective")).peak
        or run.device == CPU
    )
    whole = dataclasses.replace(run.layout, tensor=4, sequence=False)
    split = dataclasses.replace(whole, sequence=True)
    assert (
        memory(dataclasses.replace(run, layout=split)).above_model
        <= 1.05 * memory(dataclasses.replace(run, layout=whole)).above_model
    )


@given(runs)
def test_parts_add_up_to_the_peak_and_every_part_has_its_formula(run: Run) -> None:
    found = memory(run)
    assert sum(found.parts.values()) == pytest.approx(found.peak)
    assert found.parts.keys() == found.formulas.keys()
    assert all(found.formulas.values())
    assert 0 < found.above_model < found.peak


def test_state_of_a_bf16_run_is_eighteen_bytes_a_parameter_over_the_ranks() -> None:
    """2 weight + 4 main gradient, and 4 master + 8 moments over the data- and context-parallel ranks."""
    layout = Layout(tensor=2, sequence=True, context=2, data=4)
    run = Run(QWEN, Workload.of(SOLO, Lengths(8192, 1024)), layout, recompute="full")
    parts, parameters = memory(run).parts, StageParameters.of(QWEN, tensor=2).total
    assert (parts["weights"], parts["gradients"]) == (2 * parameters, 4 * parameters)
    assert parts["optimizer state"] == pytest.approx(12 * parameters / 8)


def saved_by_a_layer(run: Run) -> float:
    return Sizes(run)(traced_step(Kind.of(run)).saved)


def test_saved_activations_of_a_gpu_layer_by_hand() -> None:
    """Per token and layer, bf16: two norm inputs and two norm outputs, q, k, v and the output, 2f and f of the MLP,
    and in fp32 the attention's log-sum-exp and two rsqrt."""
    run = Run(QWEN, Workload.of(VANILLA, Lengths(65536, 1024)), Layout(data=8))
    tokens = 2 * (65536 + 127)
    h, f, a, k, n = 3584, 18944, 3584, 512, 28
    by_hand = tokens * (2 * (4 * h + 2 * a + 2 * k + 3 * f) + 4 * (n + 2))
    assert saved_by_a_layer(run) == by_hand
    assert memory(run).parts["saved by layers"] == pytest.approx(28 * by_hand, rel=0.02)


def test_full_recompute_keeps_one_input_a_layer() -> None:
    run = Run(QWEN, Workload.of(VANILLA, Lengths(65536, 1024)), Layout(tensor=4, sequence=True), recompute="full")
    tokens = 2 * (65536 + 128)  # padded to the tensor-parallel ranks
    assert saved_by_a_layer(run) == tokens * 3584 / 4 * 2


def test_the_first_of_four_stages_holds_four_micro_batches() -> None:
    def queued(pipeline: int) -> float:
        layout = Layout(tensor=4, sequence=True, pipeline=pipeline)
        run = Run(QWEN, Workload.of(SOLO, Lengths(16384, 1024)), layout, global_batch=16)
        return memory(run).parts.get("other micro-batches in flight", 0.0)

    alone = Run(QWEN, Workload.of(SOLO, Lengths(16384, 1024)), Layout(tensor=4, sequence=True))
    assert queued(1) == 0
    assert queued(4) == pytest.approx(3 * 7 * saved_by_a_layer(alone), rel=0.03)


@pytest.mark.parametrize("context", [1, 2, 4])
@pytest.mark.parametrize("sequence", [False, True])
def test_a_ranks_share_is_what_packing_gives_it(context: int, sequence: bool) -> None:
    lengths, layout = Lengths(long=333, short=57, response=41), Layout(2, sequence, context)
    sample = {
        "id": "a",
        "prompt_short": [1] * lengths.short,
        "prompt_long": [1] * lengths.long,
        "chosen": [1] * lengths.response,
        "rejected": [1] * lengths.response,
    }
    share = Share.of(Workload.of(SOLO, lengths).policy, 2, layout)
    packed = [
        pack([sample, sample], SOLO.sequences, Packing(context, rank, 2 if sequence else 1)) for rank in range(context)
    ]
    assert {share.tokens} == {batch["tokens"].numel() for batch in packed}
    assert share.rows == max(batch["logit_positions"].numel() for batch in packed)
    assert share.longest == max(packed[0]["lengths"])


@given(runs)
def test_nothing_is_sent_where_nothing_is_split(run: Run) -> None:
    sent, layout = communication(run), run.layout
    assert (sent.tensor == 0) == (layout.tensor == 1)
    assert (sent.context == 0) == (layout.context == 1)
    assert (sent.pipeline == 0) == (layout.pipeline == 1)
    assert (sent.data == 0) == (layout.data * layout.context == 1)


def test_traffic_of_a_layer_by_hand() -> None:
    run = Run(
        QWEN, Workload.of(VANILLA, Lengths(65409, 1024)), Layout(tensor=4, sequence=True, context=2, cp_comm_type="p2p")
    )
    tokens, micro_batches = 2 * 65536 // 2, 64
    sent = communication(run)
    hidden = 3 / 4 * tokens * 3584 * 2
    # and the embedding's, and twice the scored positions
    more = 2 * hidden + 3 / 4 * 2 * 2 * 2 * 128 * 3584 * 2
    assert sent.tensor == pytest.approx((10 * hidden * 28 + more) * micro_batches)
    keys_and_values = tokens * 2 * 512 / 4 * 2
    assert sent.context == pytest.approx(3 * keys_and_values * 28 * micro_batches)
    assert sent.data == pytest.approx(StageParameters.of(QWEN, tensor=4).total * 6 / 2)


def test_shapes_of_other_families_have_memory_too() -> None:
    shape = dataclasses.replace(QWEN, model_type="qwen3", tie_word_embeddings=True)
    assert isinstance(shape, ModelShape)
    assert (
        memory(Run(shape, Workload.of(SOLO, Lengths(1024, 64)))).peak
        < memory(Run(QWEN, Workload.of(SOLO, Lengths(1024, 64)))).peak
    )


EXPERTS = load_shape("Qwen/Qwen3-30B-A3B")  # 128 experts of 768 channels, 8 of them a token; h 2048


def experts_run(**changes: object) -> Run:
    layout = Layout(tensor=2, sequence=True, context=2, cp_comm_type="p2p", data=2, expert=4)
    run = Run(EXPERTS, Workload.of(VANILLA, Lengths(32641, 1024)), layout)
    return dataclasses.replace(run, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(("expert", "split", "sharing"), [(1, 2, 4), (4, 1, 2), (4, 2, 1), (8, 1, 1)])
def test_experts_are_held_by_the_ranks_that_they_are_split_over(expert: int, split: int, sharing: int) -> None:
    """48 layers of 128 experts, each three products of 768 * 2048; their optimizer state by the ranks with the same."""
    layout = dataclasses.replace(experts_run().layout, expert=expert, expert_tensor=split if expert > 1 else 1)
    parts, ours = memory(experts_run(layout=layout)).parts, 48 * 128 * 3 * 768 * 2048 / (expert * split)
    rest = StageParameters.of(EXPERTS, tensor=2, expert_ranks=2).total - 48 * 128 * 3 * 768 * 2048 / 2
    assert parts["weights"] == 2 * (rest + ours)
    assert parts["optimizer state"] == pytest.approx(12 * (rest / 4 + ours / sharing))
    adapters = experts_run(layout=layout, adapter_rank=16, adapter_targets=("q_proj",))
    assert memory(adapters).parts["weights"] == pytest.approx(parts["weights"], rel=0.001)
    assert memory(adapters).parts["gradients"] == 48 * 16 * (2048 + 4096 / 2) * 4
    everywhere = dataclasses.replace(adapters, adapter_targets=TARGETS)
    assert is_known(everywhere) == (split == 1 < expert)
    if is_known(everywhere):
        of_experts = 48 * 128 // expert * 3 * 16 * (2048 + 768)
        of_attention = 48 * 16 * (2 * (2048 + 4096 / 2) + 2 * (2048 + 512 / 2))
        state = memory(everywhere).parts
        assert state["gradients"] == 4 * (of_attention + of_experts)
        assert state["optimizer state"] == pytest.approx(12 * (of_attention / 4 + of_experts / sharing))


def test_saved_activations_of_a_layer_with_experts_by_hand() -> None:
    """Per token, over 2 tensor-parallel ranks: attention; of 8 experts the input, 2m and m; norms, scores, routing."""
    run = experts_run()
    tokens, h, m, a, k = 2 * 32768 // 2, 2048, 768, 4096 / 2, 512 / 2
    attention = 2 * (4 * a + 4 * k) + 4 * (4 / 2 + 2 * 32 / 2)
    rows = 8 * (2 * (h + 3 * m) + 24) / 2
    beside = (2 * 4 * h + 10 * 128 + 8) / 2
    assert saved_by_a_layer(run) == tokens * (attention + rows + beside)
    whole = dataclasses.replace(run, recompute="full")  # the dispatcher keeps which experts, not their weights
    adapters = dataclasses.replace(run, adapter_rank=16, adapter_targets=TARGETS)
    stacks = 2 * 128 / 4 * 16 * (2 * h + 4 * m + m + h)  # A and B of two modules as one, and of the third
    assert saved_by_a_layer(adapters) == saved_by_a_layer(run) + tokens * 8 / 2 * 2 * 3 * 16 + stacks
    assert saved_by_a_layer(whole) == tokens * (2 * h + 128 + 8 * 8) / 2


def test_traffic_of_experts_by_hand() -> None:
    """There and back, in forward and backward: 8 rows of a token, with their weights in fp32 there and the gradients."""
    run = experts_run()
    rows = 8 * (2 * 32768 // 2) / 2
    sent = communication(run).expert / run.micro_batches / 48
    assert sent == pytest.approx(3 / 4 * rows * (4 * 2048 * 2 + 2 * 4), rel=1e-6)
    again = communication(dataclasses.replace(run, recompute="full")).expert
    assert again == pytest.approx(1.5 * communication(run).expert, rel=0.001)
    assert communication(dataclasses.replace(run, layout=dataclasses.replace(run.layout, expert=1))).expert == 0


def test_transformer_engine_keeps_a_placeholder_of_each_shape() -> None:
    run = Run(QWEN, Workload.of(SOLO, Lengths(8192, 1024)), Layout(tensor=2, sequence=True, pipeline=2), layers="torch")
    h, f, a, k, v = 3584, 18944, 3584, 512, 152064

    def kept(layers: str, **changes: object) -> dict[int, float]:
        changed = dataclasses.replace(run, layers=layers, **changes)  # type: ignore[arg-type]
        return {stage: device_share(changed, stage)[-1].bytes for stage in (0, 1)}

    layer = ((a + 2 * k) * (h + 1) + a * h + 3 * f * h) / 2 * 2
    assert kept("transformer_engine") == {0: layer, 1: layer + v * h / 2 * 2}
    assert kept("torch") == kept("transformer_engine", adapter_rank=8) == {0: 0, 1: 0}
    shape, layout = EXPERTS, Layout(tensor=2, sequence=True, expert=4)
    one = 3 * 768 * 2048 * 2
    with_experts = dataclasses.replace(run, shape=shape, layout=layout, layers="transformer_engine")
    outside = ((4096 + 2 * 512) * 2048 + 4096 * 2048 + 151936 * 2048) / 2 * 2
    assert device_share(with_experts, 0)[-1].bytes == outside + one
