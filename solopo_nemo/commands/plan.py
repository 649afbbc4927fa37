"""Predict memory and time of a recipe on GPUs: whether it fits, the fastest layouts, and the longest context.

The default RECIPE is solo_dpo. The prediction needs no GPU and measures nothing. Models with a file in conf/model
need neither their folder nor the network. Memory and traffic are computed from traces of tiny models. --trace runs the
code of the fastest layout with fake tensors (dry_run=true), which takes seconds to minutes, and shows both peaks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from solopo_nemo.commands.dispatch import split_recipe
from solopo_nemo.planning.run import OPTIMIZERS
from solopo_nemo.planning.step_time import Machine
from solopo_nemo.runtime.cli import ArgumentParser, positive_count, positive_number, settings_of, show_json
from solopo_nemo.runtime.errors import UserError

if TYPE_CHECKING:
    from solopo_nemo.config.schema import RunConfig

SAMPLES = 5000
"""Default number of samples in an epoch if the data do not exist yet: the paper's number of triplets."""


def main(arguments: Sequence[str]) -> None:
    """Run the command."""
    given = _parser().parse_intermixed_args(arguments)
    if given.trace and given.optimizer != "sharded":
        raise UserError(f"--trace traces the recipes' optimizer, not --optimizer {given.optimizer}: leave one out")
    recipe, overrides = split_recipe(given.overrides)
    from rich.console import Console

    from solopo_nemo.config.schema import load_config
    from solopo_nemo.config.world import check_model, check_world
    from solopo_nemo.planning.overview import count_samples, overview
    from solopo_nemo.planning.report import print_overview
    from solopo_nemo.planning.shape import load_shape
    from solopo_nemo.planning.workload import Lengths
    from solopo_nemo.runtime.output import check_writable

    if given.plot:
        check_writable(given.plot.parent, "--plot")
    given.gpus_per_node = min(given.gpus_per_node, given.gpus)
    machine = settings_of(given, Machine)
    config = load_config(recipe, overrides)
    shape = load_shape(config.model.init, config.model.rope_scaling)
    check_world(config, machine.gpus)
    check_model(config, shape, on_gpu=True)
    window = config.data.max_tokens or shape.window
    long = given.length or max(window - given.response, 1)
    lengths = Lengths(long, min(given.short, long), given.response, given.rejected)
    counted = None if given.samples else count_samples(config)
    samples = given.samples or counted or SAMPLES
    found = overview(config, shape, lengths, machine, samples, given.optimizer)
    found = replace(found, epoch=f"{samples:,} samples{_whose(given.samples, counted, config)}")
    if given.trace and found.best:
        from solopo_nemo.planning.dry_run.report import trace_layout

        run = found.best[0].run
        traced = trace_layout(config, shape, run.layout, run.recompute, lengths, machine.memory_gib)
        found = replace(found, traced=traced)
    print_overview(found, recipe, config.model.init, Console(highlight=False))
    if given.plot:
        from solopo_nemo.planning.charts import draw_overview

        draw_overview(config, found, given.plot)
    show_json(given, {"recipe": recipe, "model": config.model.init, **found.as_json()})


def _whose(given: int | None, counted: int | None, config: RunConfig) -> str:
    """What the samples of an epoch are, in words."""
    if given:
        return ""
    if counted is None:
        return f" (assumed, as data.train={config.data.train} is not here; --samples sets them)"
    if config.data.train == "builtin":
        return " (the built-in data; data.train or --samples sets yours)"
    return f" of {config.data.train}"


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise ValueError
    return value


_share.__name__ = "share from 0 to 1"


def _parser() -> ArgumentParser:
    machine, count, number = Machine(), {"type": positive_count}, {"type": positive_number}
    parser = ArgumentParser(__doc__, usage="%(prog)s [RECIPE] [KEY=VALUE ...] [options]")
    parser.add_argument("overrides", nargs="*", metavar="[RECIPE] KEY=VALUE", help="overrides of the recipe")
    option = parser.options()
    option("--gpus N", "number of GPUs", machine.gpus, **count)
    option("--gpus-per-node N", "number of GPUs of a node", machine.gpus_per_node, **count)
    option("--gpu-memory GIB", "memory of a GPU", machine.memory_gib, dest="memory_gib", **number)
    length = "tokens of the long prompt, such as 131072 or 128K (default: the largest for the model's window)"
    option("--length N", length, **count)
    option("--short N", "tokens of the short prompt", 1024, **count)
    option("--response N", "tokens of a response", 128, **count)
    option("--rejected N", "rejected responses of a sample", 1, **count)
    samples = f"samples of an epoch (default: those of data.train if the file exists, else {SAMPLES})"
    option("--samples N", samples, **count)
    state = "optimizer state: split over data- and context-parallel ranks, whole on each rank, or in host memory"
    option("--optimizer", state, "sharded", choices=OPTIMIZERS)
    option("--trace", "trace the fastest layout, and show its traced peak beside the computed one")
    option = parser.options("assumptions")
    option("--mfu SHARE", "share of its peak that a GPU reaches while it computes", machine.mfu, type=_share)
    option("--tflops N", "peak of a GPU in bf16; the default is an H100's", machine.tflops, **number)
    option("--node-bandwidth N", "GB/s between GPUs of a node", machine.node_gbs, dest="node_gbs", **number)
    option("--network-bandwidth N", "GB/s of a GPU to other nodes", machine.network_gbs, dest="network_gbs", **number)
    parser.set_defaults(usable=None)
    parser.options("output")("--plot PNG", "plot of the peak by the length of the long prompt", type=Path)
    parser.add_json()
    return parser
