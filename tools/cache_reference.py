"""Compute the reference log-probabilities of a recipe's data, without training.

usage: python tools/cache_reference.py [RECIPE] [the recipe's overrides]

RECIPE is solo_dpo unless given. The recipe, started with the same overrides, finds the result below its
output_dir. Interrupted, this goes on where it stopped.
"""

import sys

from solopo_nemo.runtime import cli
from solopo_nemo.training.launch import run_recipe


def main() -> int:
    """Take the recipe's name off the arguments and run it up to its first step."""
    arguments = sys.argv[1:]
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0
    named = bool(arguments) and "=" not in arguments[0]
    recipe = arguments.pop(0) if named else "solo_dpo"
    return run_recipe(recipe, arguments, only_reference=True)


if __name__ == "__main__":
    cli.run(main)
