"""Runs a command that ends together with this process, also when this process is killed.

Example::

    with guarded(["vllm", "serve", "Qwen2.5-7B-Instruct"], grace=10.0) as process:
        process.wait()

The guard is a process that runs this file as a script. It starts the command in a session of its own. When the block
ends, or the process that entered it dies, the guard sends SIGTERM to the command's process group, and SIGKILL after
the grace period.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

_LOOK_EVERY = 0.1


@contextmanager
def guarded(command: Sequence[str], grace: float, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Starts a command, and ends its process group when the block ends.

    Args:
        command: program and arguments.
        grace: seconds from SIGTERM to SIGKILL.
        **options: arguments of ``subprocess.Popen``, such as ``stdout``.

    Yields:
        The guard process. Its exit code is the command's, or 128 + N if signal N ended the command.
    """
    script = [sys.executable, "-I", "-S", __file__, str(grace), *command]
    # the pipe closes when this process ends, for whatever reason
    process = subprocess.Popen(script, stdin=subprocess.PIPE, **options)
    try:
        yield process
    finally:
        process.terminate()
        process.communicate()


def main(grace: float, command: Sequence[str]) -> int:
    """The guard process: runs the command until it ends, SIGTERM arrives, or standard input closes.

    Returns:
        The exit code, as :func:`guarded` describes it.
    """
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    for number in (signal.SIGUSR1, signal.SIGINT):  # a scheduler or a terminal sends them to every process
        signal.signal(number, lambda *_: None)
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
                child.wait(grace)
        os.killpg(child.pid, signal.SIGKILL)  # also the processes that a finished command leaves behind
    code = child.wait()
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    code = main(float(sys.argv[1]), sys.argv[2:])
    os._exit(code)  # the thread holds the lock of standard input
