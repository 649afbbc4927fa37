"""Run a command in a session of its own, and end its process group on SIGTERM or when standard input closes.

:mod:`~solopo_nemo.builders.pairs.serving` starts it as a script and holds the other end of standard input, which closes
however that process ends. The exit code is the command's; after a signal N it is 128 + N.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress

GRACE = 10.0
"""Seconds from SIGTERM to SIGKILL."""
_LOOK_EVERY = 0.1


def main(command: Sequence[str]) -> int:
    """Run the command."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGUSR1, lambda *_: None)  # a scheduler may send its warning to every process of a job
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)

    def wait_for_starter() -> None:
        sys.stdin.read()
        stop.set()

    threading.Thread(target=wait_for_starter, daemon=True).start()
    while child.poll() is None and not stop.wait(_LOOK_EVERY):
        pass
    with suppress(ProcessLookupError):
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                child.wait(GRACE)
        os.killpg(child.pid, signal.SIGKILL)  # also what a server that has ended leaves behind
    code = child.wait()
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    code = main(sys.argv[1:])
    os._exit(code)  # the thread holds the lock of standard input
