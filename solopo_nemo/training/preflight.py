"""Checks a recipe's configuration before a job is submitted.

``python -m solopo_nemo.training.preflight RECIPE RANKS [overrides]`` prints the output folder, or prints one line and
exits with code 2.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from solopo_nemo.config.schema import load_config
from solopo_nemo.runtime import cli
from solopo_nemo.runtime.errors import UserError
from solopo_nemo.training.checks import EVERYWHERE, check_all
from solopo_nemo.training.start import Start


def main(arguments: Sequence[str]) -> None:
    """Makes all checks that need neither model nor data.

    Args:
        arguments: name of the recipe, number of ranks, overrides.

    Raises:
        UserError: the run itself would refuse the configuration, or a requeued job could not resume the run.
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
