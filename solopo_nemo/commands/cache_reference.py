"""Compute the reference log-probabilities of a recipe's data, without training.

usage: solopo cache_reference [RECIPE] [the recipe's overrides]

The default RECIPE is solo_dpo. The recipe with the same overrides reads the result from its output_dir. To resume an
interrupted run, start the same command again.
"""

from __future__ import annotations

from collections.abc import Sequence

from solopo_nemo.commands.dispatch import split_recipe


def main(arguments: Sequence[str]) -> int:
    """Run a recipe up to its first step."""
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0
    from solopo_nemo.training.launch import run_recipe

    return run_recipe(*split_recipe(arguments), only_reference=True)
