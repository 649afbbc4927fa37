"""Compute the reference log-probabilities of a recipe's data, without training.

usage: solopo cache_reference [RECIPE] [the recipe's overrides]

The default RECIPE is solo_dpo. The recipe with the same overrides reads the result from its output_dir. To resume an
interrupted run, start the same command again.
"""

from __future__ import annotations

from collections.abc import Sequence

from solopo_nemo.commands.dispatch import split_recipe
from solopo_nemo.runtime.errors import require


def main(arguments: Sequence[str]) -> int:
    """Run a recipe up to its first step."""
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0
    from solopo_nemo.config.schema import load_config
    from solopo_nemo.training.launch import run_recipe

    recipe, overrides = split_recipe(arguments)
    config = load_config(recipe, overrides)
    needed = bool(config.build_objective().reference_sequences)
    require(needed, f"objective={config.objective['name']}: has no reference policy, so there is nothing to compute")
    require(
        config.reference == "cached",
        f"objective.reference={config.reference}: this reference policy scores each batch in the run itself; "
        "objective.reference=cached has its scores computed before",
    )
    return run_recipe(recipe, overrides, only_reference=True)
