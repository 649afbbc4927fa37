"""The lock of an output folder: ``output_dir/.lock`` names the process of the one run that owns it.

1. The first process of a start (the recipe, or rank 0 under ``torchrun`` and Slurm) writes host, process and time.
2. It touches the file every :data:`BEAT` seconds, and removes it at its end.
3. Another start checks whether the owner is alive: by its process on the same machine, else by the time of the file.
   It refuses the folder of a living owner, and takes over that of a dead one. A restarted job first waits for its
   earlier start to end.
4. An owner that could not touch the file for so long that another start took over ends itself and its ranks with exit
   code 2. It notices at its next touch of the file, when rank 0 ends a step (``callbacks/ownership.py``), or at its
   end.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
import sys
import threading
import time
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import psutil

from solopo_nemo.runtime import cli, environment
from solopo_nemo.runtime.errors import UserError

BEAT = 5.0
"""Seconds between two touches of the file."""
PATIENCE = 30.0
"""Seconds without a touch after which an owner on another host counts as dead."""

RESTART_PATIENCE = 120.0
"""Seconds that a job waits for its earlier start to end, after its scheduler has restarted it."""

logger = logging.getLogger("solopo_nemo")


class OutputLock:
    """Context manager that owns an output folder.

    Args:
        output: the folder, which is created if it is missing.
        patience: seconds without a touch after which an owner on another host counts as dead.

    Raises:
        UserError: at entry, if another run owns the folder or it cannot be written; at exit, if another start has taken
            the folder over.
    """

    def __init__(self, output: Path, patience: float = PATIENCE) -> None:
        self.path, self.patience = lock_file(output), patience
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="output lock", daemon=True)

    def refuse_if_owned(self) -> None:
        """Checks that no other run owns the folder, without a change.

        Raises:
            UserError: another run owns it.
        """
        with suppress(OSError):
            self._refuse_if_owned(self.path.read_text(encoding="utf-8"))

    def __enter__(self) -> OutputLock:
        try:
            while not self._taken():
                pass  # an owner removed the file after it was opened here
        except OSError as error:
            raise UserError(f"output_dir={self.path.parent}: cannot be written ({error.strerror})") from None
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._done.set()
        self._thread.join()
        if not self._is_mine():
            raise taken_over(self.path.parent) from None
        self.path.unlink(missing_ok=True)
        with suppress(OSError):
            self.path.parent.rmdir()  # if a refused run wrote nothing else

    def _taken(self) -> bool:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+", encoding="utf-8") as stream:
            with suppress(OSError):  # some shared file systems do not support it
                fcntl.flock(stream, fcntl.LOCK_EX)  # orders two starts at the same time
            stream.seek(0)
            self._refuse_if_owned(stream.read())
            if not self.path.exists() or self.path.stat().st_ino != os.fstat(stream.fileno()).st_ino:
                return False
            stream.truncate(0)
            stream.write(json.dumps(_this_process()) + "\n")
        return True

    def _refuse_if_owned(self, text: str) -> None:
        try:
            owner = json.loads(text)
            # a scheduler may restart a job while its earlier start still saves
            until = time.monotonic() + (RESTART_PATIENCE if environment.restarted() else 0)
            while (alive := self._lives(owner)) and time.monotonic() < until:
                time.sleep(0.5)
        except (ValueError, KeyError, TypeError):  # empty, or cut short by a kill
            return
        if alive:
            raise UserError(
                f"output_dir={self.path.parent}: in use by another run (host {owner['host']}, process {owner['pid']}, "
                f"since {owner['since']}): wait for it, stop it, or choose another output_dir"
            )
        logger.info("%s: process %s on %s is gone; taking over", self.path.parent, owner["pid"], owner["host"])

    def _lives(self, owner: dict[str, Any]) -> bool:
        own = _this_process()
        if owner["machine"] == own["machine"]:
            try:
                process = psutil.Process(owner["pid"])
                # in a container an ended process may stay a zombie
                is_over = process.status() == psutil.STATUS_ZOMBIE
                return not is_over and abs(process.create_time() - owner["created"]) < 1
            except psutil.NoSuchProcess:
                return False
        logger.info("%s: a run on %s was here; looking whether it lives", self.path.parent, owner["host"])
        touched, until = self.path.stat().st_mtime_ns, time.monotonic() + self.patience
        while self.path.stat().st_mtime_ns == touched:  # only a change counts, as the clocks of hosts differ
            if time.monotonic() >= until:
                return False
            time.sleep(min(0.5, self.patience))
        return True

    def _beat(self) -> None:
        while not self._done.wait(BEAT):
            if not self._is_mine():
                end_at_once(self.path.parent)
            with suppress(OSError):
                os.utime(self.path)

    def _is_mine(self) -> bool:
        """Whether the file names this process. True if the file cannot be read."""
        own = _this_process()
        try:
            owner = json.loads(self.path.read_text(encoding="utf-8"))
            return (owner["pid"], owner["created"]) == (own["pid"], own["created"])
        except OSError:
            return True
        except (ValueError, KeyError, TypeError):
            return False


def lock_file(output: Path) -> Path:
    """The path of the lock of an output folder."""
    return output / ".lock"


def taken_over(output: Path) -> UserError:
    """The error of a run whose output folder another start has taken over."""
    who = ""
    with suppress(OSError, ValueError, KeyError, TypeError):
        owner = json.loads(lock_file(output).read_text(encoding="utf-8"))
        who = f" (host {owner['host']}, process {owner['pid']}, since {owner['since']})"
    return UserError(
        f"output_dir={output}: another start{who} has taken this folder over, because this run gave no sign of life "
        f"for {PATIENCE:.0f} seconds (host suspended, file system stuck?): this run ends; the other one goes on"
    )


def end_at_once(output: Path) -> NoReturn:
    """Kills the children of this process and exits with code 2 at once, without another write to the folder.

    A rank that the recipe started prints nothing, as the recipe prints the error.
    """
    if not environment.started_here():
        print("error:", taken_over(output), file=sys.stderr, flush=True)
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            child.kill()
    os._exit(cli.EXIT_USER_ERROR)


def _this_process() -> dict[str, Any]:
    """The content of the lock for this process. Equal ``machine`` means the same host and process-id namespace."""
    process = psutil.Process()
    machine = "unknown"
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        machine = f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    return {
        "host": socket.gethostname(),
        "pid": process.pid,
        "since": datetime.now().astimezone().isoformat(timespec="seconds"),
        "created": process.create_time(),
        "machine": machine,
    }
