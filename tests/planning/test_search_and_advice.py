"""What is proposed passes the recipe's own checks and fits; what is advised does so too."""

from __future__ import annotations

import dataclasses
import re

import pytest

from solopo_nemo.config.schema import RunConfig, load_config
from solopo_nemo.config.world import check_model, check_world
from solopo_nemo.planning import (
    GPU,
    Layout,
    Lengths,
    Machine,
    Run,
    advise,
    load_shape,
    longest,
    memory,
    search,
    step_time,
)
from solopo_nemo.planning.search import valid_layouts, with_layout


def config_of(*overrides: str, recipe: str = "solo_dpo") -> RunConfig:
    return load_config(recipe, ["model=qwen2_5_7b", *overrides])


@pytest.mark.parametrize(
    "model",
    [
        "Qwen/Qwen2.5-7B-Instruct",
        "Qwen/Qwen2.5-72B-Instruct",
        "meta-llama/Llama-3.1-8B-Instruct",
        "google/gemma-3-1b-it",
    ],
)
@pytest.mark.parametrize("world", [8, 48])
def test_every_proposed_layout_passes_the_recipes_own_checks(model: str, world: int) -> None:
    common = ["model=custom", f"model.init={model}", "trainer.global_batch=192"]
    config, shape = load_config("solo_dpo", common), load_shape(model)
    proposed = list(valid_layouts(config, shape, world, gpus_per_node=8))
    assert proposed
    assert len(set(proposed)) == len(proposed)
    for layout in proposed[::9]:
        composed = load_config("solo_dpo", [*common, *layout.overrides()])
        check_world(composed, world)
        check_model(composed, shape)
        assert layout.world == world
        assert layout.tensor <= 8


def test_plans_fit_and_the_fastest_comes_first() -> None:
    config, machine = config_of(), Machine(gpus=16)
    plans = search(config, load_shape(config.model.init), Lengths(65536, 1024), machine)
    seconds = [plan.time.total for plan in plans]
    assert seconds == pytest.approx(sorted(seconds), abs=1e-3)
    assert all(plan.fits and plan.memory.gib <= machine.budget_gib for plan in plans)


def test_the_longest_context_is_where_it_stops_to_fit() -> None:
    config, machine = config_of("parallel.tensor=4", "parallel.sequence=true"), Machine(gpus=8)
    shape, shorter = load_shape(config.model.init), Lengths(1, 1024)

    def run(long: int) -> Run:
        return Run.of(config, shape, dataclasses.replace(shorter, long=long), machine.gpus)

    found = longest(config, run(1), shorter, machine)
    assert memory(run(found)).gib <= machine.budget_gib < memory(run(found + found // 500)).gib
    assert longest(config, run(1), shorter, dataclasses.replace(machine, memory_gib=4)) == 0


def test_solopo_goes_further_than_vanilla() -> None:
    """The paper's own ratio is 2.1; per sample one long sequence instead of two, beside what both hold."""
    lengths, machine = Lengths(1, 1024), Machine(gpus=8)
    shape = load_shape("Qwen/Qwen2.5-7B-Instruct")

    def furthest(recipe: str) -> int:
        config = config_of("parallel.tensor=4", "parallel.sequence=true", recipe=recipe)
        return longest(config, Run.of(config, shape, lengths, machine.gpus), lengths, machine)

    assert 1.9 < furthest("solo_dpo") / furthest("long_po") < 2.1


def test_step_time_of_one_gpu_is_its_flops_over_its_rate() -> None:
    config = config_of("trainer.global_batch=1", "model.recompute=none")
    run, machine = Run.of(config, load_shape(config.model.init), Lengths(8192, 1024), 1), Machine(gpus=1)
    time = step_time(run, machine)
    assert time.total == time.compute
    assert time.utilisation < machine.mfu  # the head forms its logits twice
    assert time.utilisation == pytest.approx(machine.mfu, rel=0.01)
    assert step_time(dataclasses.replace(run, recompute="full"), machine).compute == pytest.approx(
        4 / 3 * time.compute, rel=0.01
    )


def test_a_pipeline_waits_and_slow_links_cost() -> None:
    config, shape, lengths = (
        config_of("trainer.global_batch=16"),
        load_shape("Qwen/Qwen2.5-7B-Instruct"),
        Lengths(32768, 1024),
    )

    def time(layout: Layout, **machine: float) -> float:
        run = Run.of(with_layout(config, layout), shape, lengths, layout.world, GPU)
        return step_time(run, dataclasses.replace(Machine(gpus=layout.world), **machine)).total

    four = Layout(pipeline=4)
    assert step_time(Run.of(with_layout(config, four), shape, lengths, 4), Machine(gpus=4)).bubble == pytest.approx(
        3 / 16 * step_time(Run.of(with_layout(config, four), shape, lengths, 4), Machine(gpus=4)).compute
    )
    assert time(Layout(tensor=4, sequence=True), node_gbs=30) > time(Layout(tensor=4, sequence=True), node_gbs=300)
    a2a = Layout(context=4, cp_comm_type="a2a")
    assert time(a2a) > time(dataclasses.replace(a2a, cp_comm_type="p2p"))


ADVICE = re.compile(
    r"(?P<layout>TP.*) with recompute=\w+ fits: (?P<change>\S+=\S+(?: \S+=\S+)*) "
    r"\(predicted (?P<after>[\d.]+) GiB instead of (?P<before>[\d.]+) of [\d.]+\)"
)
SHORTER = re.compile(ADVICE.pattern.replace("(?P<layout>TP.*) with recompute=\\w+ fits", "shorter samples fit"))


def proved(found: re.Match[str], overrides: list[str], lengths: Lengths, machine: Machine) -> RunConfig:
    """The configuration that a line of advice names, which the recipe's checks let pass and which fits."""
    changed = config_of(*overrides, *found["change"].split())
    shape = load_shape(changed.model.init)
    check_world(changed, machine.gpus)
    check_model(changed, shape, on_gpu=True)
    if changed.data.max_tokens:
        lengths = dataclasses.replace(lengths, long=changed.data.max_tokens - lengths.response)
    run = Run.of(changed, shape, lengths, machine.gpus)
    assert memory(run).gib <= float(found["after"]) + 0.05
    assert memory(run).gib < min(machine.budget_gib, 0.9 * float(found["before"])) + 0.05
    if "layout" in found.re.groupindex:
        assert found["layout"] == str(run.layout)
    return changed


@pytest.mark.parametrize(
    ("overrides", "long", "world"),
    [
        (["trainer.micro_batch=4"], 8192, 8),
        ([], 131072, 8),
        (["parallel.tensor=4", "parallel.sequence=true"], 131072, 16),
        (["parallel.tensor=2", "model.recompute=full"], 65536, 64),
    ],
)
def test_advice_is_one_line_that_works(overrides: list[str], long: int, world: int) -> None:
    config, lengths, machine = config_of(*overrides), Lengths(long, 1024), Machine(world)
    line = advise(config, load_shape(config.model.init), lengths, machine)
    found = ADVICE.fullmatch(line)
    assert found, line
    proved(found, overrides, lengths, machine)


def test_where_the_gpus_are_too_few_more_are_named_and_what_these_take() -> None:
    overrides = ["parallel.tensor=4", "model.recompute=full", "parallel.sequence=true", "parallel.context=2"]
    config, lengths = config_of(*overrides), Lengths(1 << 20, 1024)
    line = advise(config, load_shape(config.model.init), lengths, Machine(8))
    refused, larger, shorter = line.split("; ")
    assert re.match(r"no layout of 8 GPUs fits into 7[\d.]+ GiB each \(predicted ", refused), line
    gpus, more = re.fullmatch(r"on (\d+), (.*)", larger).groups()  # type: ignore[union-attr]
    found = ADVICE.fullmatch(more)
    assert found, line
    proved(found, overrides, lengths, Machine(int(gpus)))
    for fewer in range(16, int(gpus), 8):
        assert not search(config, load_shape(config.model.init), lengths, Machine(fewer))
    fits = SHORTER.fullmatch(shorter.removeprefix("on 8 GPUs, "))
    assert fits, line
    assert proved(fits, overrides, lengths, Machine(8)).data.max_tokens


@pytest.mark.parametrize(("world", "gib", "more"), [(1, 80.0, 2), (1, 40.0, 4), (3, 40.0, 4)])
def test_within_a_node_a_few_more_gpus_are_enough(world: int, gib: float, more: int) -> None:
    config = config_of("model.recompute=full")
    line = advise(config, load_shape(config.model.init), Lengths(8192, 1024), Machine(world, 8, gib))
    assert f"; on {more}, TP" in line, line


def test_advice_without_a_way_out_says_so() -> None:
    config = config_of("parallel.tensor=4", "model.recompute=full")
    line = advise(config, load_shape(config.model.init), Lengths(8192, 1024), Machine(8, memory_gib=2.0))
    assert line.startswith("no layout of 8 GPUs fits")
    assert line.endswith("; take devices with more memory")
    assert "\n" not in line


def test_where_no_rank_is_left_to_split_over_the_micro_batch_shrinks() -> None:
    config = config_of("trainer.micro_batch=2", "parallel.tensor=4", "parallel.sequence=true", "model.recompute=full")
    line = advise(config, load_shape(config.model.init), Lengths(131072, 1024), Machine(4, 4))
    assert "fits: trainer.micro_batch=1 (" in line


def test_experts_are_split_over_every_size_that_the_checks_let_pass() -> None:
    common = ["model=qwen3_30b_a3b", "trainer.global_batch=192"]
    config = load_config("solo_dpo", common)
    proposed = list(valid_layouts(config, load_shape(config.model.init), 8, gpus_per_node=8))
    assert len(set(proposed)) == len(proposed)
    assert {layout.expert for layout in proposed} == {1, 2, 4, 8}
    assert {layout.expert_tensor for layout in proposed} == {1, 2, 4}
    for layout in proposed[::60]:
        composed = load_config("solo_dpo", [*common, *layout.overrides()])
        check_world(composed, 8)
        check_model(composed, load_shape(config.model.init), on_gpu=True)
        assert Layout.of(composed.parallel, 8) == layout
        assert with_layout(config, layout).parallel == composed.parallel


def test_advice_splits_the_experts_of_a_run_that_does_not_fit() -> None:
    overrides = ["model=qwen3_30b_a3b"]
    config, lengths, machine = config_of(*overrides), Lengths(16384, 1024), Machine(8)
    line = advise(config, load_shape(config.model.init), lengths, machine)
    found = ADVICE.fullmatch(line)
    assert found, line
    assert "parallel.expert=" in found["change"] and "EP" in found["layout"]
    proved(found, overrides, lengths, machine)


def test_after_a_dry_run_every_layout_of_the_same_gpus_is_tried() -> None:
    """The planner puts the first run below the limit, its trace above; fewer context ranks fit."""
    overrides = ["model=qwen3_30b_a3b", "parallel.context=8", "parallel.expert=8", "model.recompute=full"]
    config, lengths, machine = config_of(*overrides), Lengths(32768, 1024), Machine(8)
    found = ADVICE.fullmatch(advise(config, load_shape(config.model.init), lengths, machine, traced=76.7))
    assert found and found["before"] == "76.7"
    changed = config_of(*overrides, *found["change"].split())
    after = Run.of(changed, load_shape(changed.model.init), lengths, 8)
    assert after.layout.context < 8 and memory(after).gib <= machine.budget_gib


@pytest.mark.parametrize(("device", "targets"), [("cpu", ["q_proj"]), (GPU, ["q_proj", "up_proj"])])
def test_where_there_are_no_formulas_the_advice_says_so(device: str, targets: list[str]) -> None:
    shape = load_shape("Qwen/Qwen3-30B-A3B")
    config = config_of("peft=lora", f"peft.targets=[{','.join(targets)}]")
    line = advise(config, shape, Lengths(1024, 64), Machine(1), device)
    assert "no formulas" not in line and line.endswith("dry_run=true traces any run"), line
