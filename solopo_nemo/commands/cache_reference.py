"""Compute the reference log-probabilities of a recipe's data, without training.

usage: solopo cache_reference [RECIPE] [the recipe's overrides]

RECIPE is solo_dpo unless given. The recipe, started with the same overrides, finds the result below its
output_dir. Interrupted, this goes on where it stopped.
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
