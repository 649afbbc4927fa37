"""Check a recipe's configuration where it is submitted: ``python -m solopo_nemo.training.preflight RECIPE RANKS
[overrides]`` prints the output folder, or ends with one line and exit code 2.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from solopo_nemo.config.schema import load_config
from solopo_nemo.runtime import cli
from solopo_nemo.runtime.errors import UserError
from solopo_nemo.training.checks import EVERYWHERE, Start, check_all


def main(arguments: Sequence[str]) -> None:
    """Check everything that needs neither model nor data, for a job of so many ranks.

    Raises:
        UserError: as in the run itself, or a run that a requeued job could not go on with.
    """
    recipe, ranks, *overrides = arguments
    config = load_config(recipe, overrides)
    check_all(Start(config, int(ranks)), EVERYWHERE)
    if config.trainer.resume != "auto":
        raise UserError(
            f"trainer.resume={config.trainer.resume}: a job that is requeued would not go on from its own checkpoints; "
            "leave it at auto and choose another output_dir"
        )
    print(config.output)


if __name__ == "__main__":
    cli.run(lambda: main(sys.argv[1:]))
