"""The ranks of one host under torch's elastic agent: signals reach them, and their exit code comes back."""

from __future__ import annotations

import dataclasses
import logging
import signal
from collections.abc import Sequence
from typing import TYPE_CHECKING

from solopo_nemo import cli
from solopo_nemo.training.signals import StopRequest, handled_by

if TYPE_CHECKING:
    from torch.distributed.launcher.api import LaunchConfig

EXIT_RESUMABLE = 75


def run_ranks(launch: LaunchConfig, command: str, arguments: Sequence[str]) -> int:
    """Run a command as ranks on this host and return the exit code of the job, as far as this host knows it.

    A signal goes on to the ranks, which then save and stop; a second Ctrl-C kills them.

    Returns:
        0; 2 where a rank ended with it; 75 where the ranks stopped on request; 1 for every other failure.
    """
    import psutil
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch

    for name in ("torch.distributed.elastic", "torch.distributed.launcher"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # the ranks' own messages say what went wrong
    # the other signals: torch's agent would kill ranks that have not saved in 30 s
    launch = dataclasses.replace(launch, signals_to_handle="SIGHUP,SIGQUIT")
    stop = StopRequest()

    def forward(number: int, _: object) -> None:
        again = number == signal.SIGINT and stop.received
        stop.note(number, _)
        for rank in psutil.Process().children():
            rank.send_signal(signal.SIGKILL if again else signal.SIGTERM)

    try:
        with handled_by(forward):
            elastic_launch(launch, command)(*arguments)
    except ChildFailedError as error:
        codes = {failure.exitcode for failure in error.failures.values()}
        if stop.received and codes <= {EXIT_RESUMABLE, -signal.SIGTERM}:  # the latter: before it could listen
            return EXIT_RESUMABLE
        return next((code for code in (cli.EXIT_USER_ERROR, EXIT_RESUMABLE) if code in codes), 1)
    return EXIT_RESUMABLE if stop.received else 0
