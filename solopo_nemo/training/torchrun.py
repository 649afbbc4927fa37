"""``torchrun`` for a batch job: ``python -m solopo_nemo.training.torchrun [torchrun's options] PROGRAM [ARGUMENTS]``.

It differs from torch's ``torchrun`` in two ways. It forwards SIGTERM and SIGUSR1 to the ranks, and gives them as much
time as they need to save. It exits with the exit code of the ranks, and writes that code to a file for each node in the
folder ``SOLOPO_EXIT_CODES``, because ``srun`` has a single exit code for all nodes, which is not always a task's.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from solopo_nemo.training.ranks import begin_ranks


def main(arguments: Sequence[str]) -> int:
    """Runs the ranks of this node and returns their exit code. Under Slurm the node rank comes from the environment."""
    from torch.distributed.run import config_from_args, parse_args

    node = os.environ.get("SLURM_NODEID", "0")
    os.environ.setdefault("PET_NODE_RANK", node)  # torchrun's --node-rank
    launch, command, command_arguments = config_from_args(parse_args(arguments))
    with begin_ranks(launch, str(command), command_arguments) as ranks:
        code = ranks()
    if folder := os.environ.get("SOLOPO_EXIT_CODES"):
        (Path(folder) / node).write_text(f"{code}\n")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
