"""Servers that a command starts for itself (`--serve`), and that end with it."""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx
from rich.console import Console

from solopo_nemo.runtime.credentials import masked, masked_command, secrets_of
from solopo_nemo.runtime.environment import without_ranks
from solopo_nemo.runtime.errors import RunFault, UserError, require
from solopo_nemo.runtime.guard import guarded
from solopo_nemo.runtime.output import check_writable
from solopo_nemo.runtime.signals import stopping_at_once

_LOOK_EVERY, _GRACE = 0.5, 10.0
_LAST_BYTES, _LAST_LINES = 4000, 3


class Address(NamedTuple):
    """A server for :class:`~solopo_nemo.builders.pairs.client.ServerClient`.

    Attributes:
        url: Base address of the API; None if no server was named.
        alive: Raises if the server has ended for good; None for a server that was not started here.
    """

    url: str | None
    alive: Callable[[], None] | None = None


@contextmanager
def serving(command: str | None, model: str, base_url: str | None, patience: float, log: Path) -> Iterator[Address]:
    """Start a server, wait until it lists its models, and stop it when the block ends.

    The server runs in a process group of its own, outside the ranks of this job. The group is stopped on success, on an
    error, on a signal and when this process is killed: SIGTERM, and SIGKILL 10 seconds later.

    Args:
        command: Command of the server, with `{model}` and `{port}`; None to use `base_url`.
        model: Replaces `{model}`; the name that the server must list.
        base_url: Address of a server that runs already.
        patience: Seconds to wait for the server.
        log: File for its output.

    Raises:
        UserError: The command cannot be run, or the server ends or does not answer in time.
        RunFault: From `Address.alive`: the server has ended.
    """
    if command is None:
        yield Address(base_url)
        return
    require(base_url is None, "--serve: starts the server; leave --base-url out")
    require_program(command)
    port = _free_port()
    words = [word.replace("{model}", model).replace("{port}", str(port)) for word in serve_words(command)]
    url = f"http://127.0.0.1:{port}/v1"
    check_writable(log.parent, "--out")
    with (
        stopping_at_once(),
        log.open("wb") as output,
        guarded(words, _GRACE, stdout=output, stderr=output, env=without_ranks()) as process,
    ):
        _wait(process, words[0], url, patience, log)
        yield Address(url, lambda: _require_running(process, log))


def serve_words(command: str) -> list[str]:
    """Return the words of the command of a server.

    Raises:
        UserError: It cannot be split, or lacks `{model}` or `{port}`.
    """
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise UserError(f"--serve {masked_command(command)}: cannot be split into words ({error})") from None
    for name in ("{model}", "{port}"):
        example = "such as --serve 'vllm serve {model} --port {port}'"
        require(name in command, f"--serve {masked_command(command)}: needs {name}, {example}")
    return words


def require_program(command: str) -> None:
    """Refuse the command of a server whose program is not on this machine."""
    program = serve_words(command)[0]
    problem = f"--serve {masked_command(command)}: {program} is no program here"
    require(shutil.which(program) is not None, f"{problem} (a variable is set by env NAME=VALUE before it)")


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def _wait(process: subprocess.Popen[bytes], name: str, url: str, patience: float, log: Path) -> None:
    """Wait until the server answers."""
    console, begun = Console(stderr=True, highlight=False), time.monotonic()
    console.print(f"starting {name} (log: {log})", soft_wrap=True, markup=False)
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    with console.status("waiting for the server"), httpx.Client(trust_env=False, headers=headers) as client:
        while True:
            code = process.poll()
            require(
                code is None,
                f"--serve: the server ended with exit code {code} before it answered: {_words(process, log)}",
            )
            try:
                if client.get(f"{url}/models").status_code < 500:
                    break
            except httpx.HTTPError:
                pass
            require(
                time.monotonic() - begun < patience,
                f"--serve: the server did not answer at {url}/models within {patience:g} s (--patience changes that): "
                + _words(process, log),
            )
            time.sleep(_LOOK_EVERY)
    console.print(f"{name} answers after {time.monotonic() - begun:.0f} s", markup=False)


def _require_running(process: subprocess.Popen[bytes], log: Path) -> None:
    code = process.poll()
    if code is not None:
        raise RunFault(
            f"--serve: the server ended with exit code {code}: {_words(process, log)}: start the same command again, "
            "finished answers are kept"
        )


def _words(process: subprocess.Popen[bytes], log: Path) -> str:
    """Return the last lines of a server's log in one line, without the keys of its command, and where it is."""
    with log.open("rb") as stream:
        stream.seek(max(0, stream.seek(0, os.SEEK_END) - _LAST_BYTES))
        lines = stream.read().decode(errors="replace").split("\n")
    last = [" ".join(line.split()) for line in lines if line.strip()][-_LAST_LINES:]
    said = masked(" / ".join(last), os.environ.get("OPENAI_API_KEY", "").strip(), *secrets_of(process.args))
    return f"{said or 'it said nothing'} (log: {log})"
