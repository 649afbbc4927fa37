"""Check a recipe without training: list everything that a run would refuse or warn of, and whether it is ready.

The checks are those of a run: model folder, weights, tokenizer, template, every row of the data, lengths, layout,
output folder and memory. Nothing is written to output_dir. The default RECIPE is solo_dpo. A recipe with
check_only=true does the same. The last line is "ready: ..." or "not ready: N problems"; the exit code is 0 or 2.
"""

from __future__ import annotations

from collections.abc import Sequence

from solopo_nemo.commands.dispatch import split_recipe
from solopo_nemo.runtime.cli import ArgumentParser, positive_count, positive_number, show_json


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    given = _parser().parse_intermixed_args(arguments)
    recipe, overrides = split_recipe(given.overrides)
    import dataclasses

    from solopo_nemo.training.check import check_recipe

    found = check_recipe(recipe, overrides, given.gpus, given.gpu_memory)
    code = found.show()
    show_json(given, dataclasses.asdict(found))
    return code


def _parser() -> ArgumentParser:
    parser = ArgumentParser(__doc__, usage="%(prog)s [RECIPE] [KEY=VALUE ...] [options]")
    parser.add_argument("overrides", nargs="*", metavar="[RECIPE] KEY=VALUE", help="overrides of the recipe")
    option = parser.options("the run's GPUs", "by default those of this machine, or its CPU")
    option("--gpus N", "number of GPUs (default: the fewest that parallel.* allows)", type=positive_count)
    option("--gpu-memory GIB", "memory of a GPU (default with --gpus: 80)", type=positive_number)
    parser.add_json()
    return parser
