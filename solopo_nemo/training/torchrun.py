"""``torchrun`` for a batch job: ``python -m solopo_nemo.training.torchrun [torchrun's options] PROGRAM [ARGUMENTS]``.

It differs from torch's own in two ways. A signal (SIGTERM, SIGUSR1) is forwarded to the ranks, which may take as long
as they need to save. The exit code of the ranks comes back: as this command's, and in a file for each node where
``SOLOPO_EXIT_CODES`` names a folder, since ``srun`` has one exit code for all nodes and not always a task's.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from solopo_nemo.training.ranks import run_ranks


def main(arguments: Sequence[str]) -> int:
    """Run the ranks of this node; under Slurm its node rank is known without an option."""
    from torch.distributed.run import config_from_args, parse_args

    node = os.environ.get("SLURM_NODEID", "0")
    os.environ.setdefault("PET_NODE_RANK", node)  # torchrun's --node-rank
    launch, command, command_arguments = config_from_args(parse_args(arguments))
    code = run_ranks(launch, str(command), command_arguments)
    if folder := os.environ.get("SOLOPO_EXIT_CODES"):
        (Path(folder) / node).write_text(f"{code}\n")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
