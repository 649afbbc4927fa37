"""Predict memory and time of a recipe on GPUs: does it fit, which layout is best, how long a context fits.

usage: python tools/plan.py [RECIPE] [the recipe's overrides] [options]

RECIPE is solo_dpo unless given. Nothing is measured and no GPU is needed. Models with a file in conf/model
need neither their folder nor the network. Formulas and assumptions are in solopo_nemo/planning.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from solopo_nemo.config.schema import load_config
from solopo_nemo.config.world import check_model, check_world
from solopo_nemo.planning.overview import count_samples, overview
from solopo_nemo.planning.report import print_overview
from solopo_nemo.planning.run import OPTIMIZERS
from solopo_nemo.planning.shape import load_shape
from solopo_nemo.planning.step_time import Machine
from solopo_nemo.planning.workload import Lengths
from solopo_nemo.runtime import cli
from solopo_nemo.runtime.errors import UserError
from solopo_nemo.runtime.output import check_writable
from solopo_nemo.runtime.paths import CONF

SAMPLES = 5000
"""Of an epoch where the data are not at hand: the paper's number of triplets."""


def main(argv: Sequence[str]) -> int:
    """Run the command."""
    arguments = _parser().parse_intermixed_args(argv)
    words = list(arguments.overrides)
    recipe = words.pop(0) if words and "=" not in words[0] else "solo_dpo"
    if not (CONF / f"{recipe}.yaml").is_file() or recipe == "base":
        raise UserError(f"{recipe}: no such recipe; overrides are written key=value")
    if arguments.plot:
        check_writable(arguments.plot.parent, "--plot")
    machine = _machine(arguments)
    config = load_config(recipe, words)
    shape = load_shape(config.model.init)
    check_world(config, machine.gpus)
    check_model(config, shape)
    window = config.data.max_tokens or shape.max_position_embeddings
    long = arguments.length or max(window - arguments.response, 1)
    lengths = Lengths(long, min(arguments.short, long), arguments.response)
    samples = arguments.samples or count_samples(config) or SAMPLES
    found = overview(config, shape, lengths, machine, samples, arguments.optimizer)
    print_overview(found, recipe, config.model.init, Console(highlight=False))
    if arguments.plot:
        from solopo_nemo.planning.charts import draw_overview

        draw_overview(config, found, arguments.plot)
    if arguments.json:
        print(json.dumps({"recipe": recipe, "model": config.model.init, **found.as_json()}))
    return 0


def _machine(arguments: argparse.Namespace) -> Machine:
    return Machine(
        gpus=arguments.gpus,
        gpus_per_node=min(arguments.gpus_per_node, arguments.gpus),
        memory_gib=arguments.gpu_memory,
        tflops=arguments.tflops,
        mfu=arguments.mfu,
        node_gbs=arguments.node_bandwidth,
        network_gbs=arguments.network_bandwidth,
    )


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise ValueError
    return value


_share.__name__ = "share from 0 to 1"


def _parser() -> cli.ArgumentParser:
    machine = Machine()
    raw = argparse.RawDescriptionHelpFormatter
    parser = cli.ArgumentParser(description=__doc__, formatter_class=raw, usage=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", metavar="[RECIPE] KEY=VALUE", help="as the recipe takes them")
    parser.add_argument("--gpus", type=cli.positive_count, default=machine.gpus, metavar="N", help="in all (default 8)")
    parser.add_argument("--gpus-per-node", type=cli.positive_count, default=8, metavar="N", help="default 8")
    parser.add_argument(
        "--gpu-memory", type=cli.positive_number, default=80.0, metavar="GIB", help="of one GPU (default 80)"
    )
    length = "tokens of the long prompt, such as 131072 or 128K (default: as many as the model's window takes)"
    parser.add_argument("--length", type=cli.positive_count, metavar="N", help=length)
    parser.add_argument(
        "--short", type=cli.positive_count, default=1024, metavar="N", help="of the short prompt (default 1024)"
    )
    parser.add_argument(
        "--response", type=cli.positive_count, default=128, metavar="N", help="of a response (default 128)"
    )
    samples = f"of an epoch (default: those of data.train where it is at hand, else {SAMPLES})"
    parser.add_argument("--samples", type=cli.positive_count, metavar="N", help=samples)
    state = "optimizer state over the data- and context-parallel ranks, on each, or in host memory (default sharded)"
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="sharded", help=state)
    assumed = parser.add_argument_group("assumptions")
    mfu = "share of the peak that a GPU reaches while it computes (default 0.4)"
    assumed.add_argument("--mfu", type=_share, default=machine.mfu, metavar="SHARE", help=mfu)
    peak = "peak of a GPU in bf16 (default 989, H100)"
    assumed.add_argument("--tflops", type=cli.positive_number, default=machine.tflops, metavar="N", help=peak)
    node, network = "GB/s between GPUs of a node (default 300)", "GB/s of a GPU to other nodes (default 40)"
    assumed.add_argument("--node-bandwidth", type=cli.positive_number, default=machine.node_gbs, metavar="N", help=node)
    assumed.add_argument(
        "--network-bandwidth", type=cli.positive_number, default=machine.network_gbs, metavar="N", help=network
    )
    output = parser.add_argument_group("output")
    output.add_argument("--plot", type=Path, metavar="PNG", help="draw the peak against the length of the long prompt")
    output.add_argument("--json", action="store_true", help="print all of it as JSON, as the last line of stdout")
    return parser


if __name__ == "__main__":
    cli.run(lambda: main(sys.argv[1:]))
