"""Faults of ranks: one line for each rank, and the rank that caused the others to end."""

from __future__ import annotations

import errno
import json
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from solopo_nemo.runtime.credentials import masked_command
from solopo_nemo.runtime.errors import RunFault, UserError
from solopo_nemo.runtime.json_files import write_json
from solopo_nemo.training.checkpoints.files import last_saved

LAST_LINES = 15
"""Number of lines of a rank's log that are printed."""
ROLL_CALL = 15.0
"""Seconds that a rank waits for the faults of the other ranks."""
OWN = ("user", "run", "crash")
"""Kinds of faults that a rank caused itself."""
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO)


@dataclass(frozen=True)
class Fault:
    """The reason why a rank ended.

    Attributes:
        rank: global rank.
        step: the optimizer step that it was in.
        kind: ``user`` (bad input), ``run`` (a ``RunFault``), ``crash`` (any other error), ``lost`` (another rank ended)
            or ``hung`` (no step ended in time).
        message: one line.
        waits: whether the rank waited for other ranks.
        everywhere: whether all ranks ended with this fault at the same place.
        start: id of the start of the job.
    """

    rank: int
    step: int
    kind: str
    message: str
    waits: bool = False
    everywhere: bool = False
    start: str = field(default="", compare=False)

    def error(self) -> UserError | RunFault:
        """The error of the job for a fault of kind ``user``, ``run`` or ``crash``."""
        if self.kind == "user":
            return UserError(self.message)
        return RunFault(self.message if self.everywhere else f"rank {self.rank} in step {self.step}: {self.message}")


class FaultFiles:
    """The faults of a start of the job: one small file for each rank, beside its log.

    Args:
        output: output folder of the run.
        start: id of this start. Files of earlier starts are ignored.
    """

    def __init__(self, output: Path, start: str) -> None:
        self.output, self.start = output, start

    def log(self, rank: int) -> Path:
        """The path of a rank's log."""
        return self.output / "logs" / f"rank_{rank:05d}.log"

    def write(self, fault: Fault) -> None:
        """Writes a fault, unless this rank has written one. If the folder cannot be written, it is printed instead."""
        if fault.rank in self.read():  # a hung rank also loses its connections when the others end
            return
        path, message = self.log(fault.rank).with_suffix(".fault.json"), masked_command(fault.message)
        try:
            write_json(path, asdict(fault) | {"message": message, "start": self.start})
        except OSError:
            print(f"rank {fault.rank}: {message}", file=sys.stderr)

    def read(self) -> dict[int, Fault]:
        """The faults that the ranks of this start have written, by rank."""
        paths = sorted((self.output / "logs").glob("rank_*.fault.json"))
        faults = (Fault(**json.loads(path.read_text())) for path in paths)
        return {fault.rank: fault for fault in faults if fault.start == self.start}

    def roll_call(self, world: int) -> dict[int, Fault]:
        """Waits up to ``ROLL_CALL`` seconds for the faults of all ranks, and returns those that are written."""
        end = time.monotonic() + ROLL_CALL
        while len(faults := self.read()) < world and time.monotonic() < end:
            time.sleep(0.2)
        return faults

    def show_last_lines(self, rank: int) -> None:
        """Prints the last lines of a rank's log on stderr."""
        path = self.log(rank)
        lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
        said = [line for line in lines if line.strip()]
        print(f"rank {rank}, the end of {path}:", *said[-LAST_LINES:], sep="\n  ", file=sys.stderr)

    @property
    def last_saved(self) -> str:
        """One phrase about the newest checkpoint, for messages."""
        return last_saved(self.output / "checkpoints")


def kind_of(error: BaseException) -> str:
    """The kind of an error; see :class:`Fault`."""
    if isinstance(error, UserError):
        return "user"
    if isinstance(error, RunFault):
        return "run"
    import torch.distributed as dist

    # gloo raises plain RuntimeErrors
    communication = isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in ("gloo", "NCCL", "Connection closed"))
    )
    return "lost" if communication else "crash"


def as_run_fault(error: BaseException, files: FaultFiles, advice: Callable[[], str]) -> BaseException:
    """Converts an error of a library about memory or the disk to a ``RunFault``; returns any other error unchanged.

    Args:
        error: the error that ended a rank.
        files: the faults of this start, for the last checkpoint.
        advice: returns what to change if memory is short.
    """
    import torch
    from torch.distributed.checkpoint import CheckpointException

    if isinstance(error, CheckpointException):
        causes = [str(cause) for cause, _ in error.failures.values()]
        reason = causes[0] if causes else "another rank says why"
        if "inline_container" in reason:  # torch's writer reports a full disk like this
            reason += "; no space left on device?"
        return RunFault(f"a checkpoint could not be written ({reason}); {files.last_saved}")
    if isinstance(error, OSError) and error.errno in _DISK:
        return RunFault(f"{error.filename or files.output}: {error.strerror}; {files.last_saved}")
    text = str(error)
    if isinstance(error, RuntimeError) and "PytorchStreamWriter failed" in text:
        return RunFault(f"a checkpoint could not be written (no space left?); {files.last_saved}")
    on_gpu = isinstance(error, torch.OutOfMemoryError)
    if on_gpu or isinstance(error, MemoryError) or "can't allocate memory" in text:
        what = "GPU memory" if on_gpu else "memory"
        return RunFault(f"out of {what} ({text.splitlines()[0] if text else 'MemoryError'}): {advice()}")
    return error


def lost_ranks(gone: Iterable[int], how: str, step: int, files: FaultFiles) -> str:
    """The message about ranks that ended without a report.

    Args:
        gone: these ranks.
        how: how they ended, in words.
        step: the optimizer step of the other ranks.
        files: the faults of this start, for the last checkpoint.
    """
    names = _ranks(gone)
    if not names:
        return f"the ranks lost each other in step {step} (a network fault?); {files.last_saved}"
    return f"{names} {how} in step {step}; {files.last_saved}"


def hung_ranks(faults: Mapping[int, Fault], world: int, files: FaultFiles) -> tuple[list[int], str]:
    """The ranks that the others waited for, and the message that names them.

    Args:
        faults: the faults that were written, by rank.
        world: number of ranks.
        files: the faults of this start, for the last checkpoint.
    """
    some = next(iter(faults.values()))
    silent = [rank for rank in range(world) if rank not in faults]
    busy = [rank for rank, fault in faults.items() if fault.kind == "hung" and not fault.waits]
    if silent:
        culprits, what = silent, f"{_ranks(silent)} did not answer"
    elif busy and len(busy) < world:
        culprits, what = busy, "; ".join(f"rank {rank} {faults[rank].message}" for rank in busy[:3])
    else:
        culprits, what = sorted(faults)[:1], "; ".join(f"rank {r} {faults[r].message}" for r in sorted(faults)[:8])
    return culprits, f"no step ended in time (trainer.timeout_minutes), in step {some.step}: {what}; {files.last_saved}"


def _ranks(ranks: Iterable[int]) -> str:
    names = [str(rank) for rank in ranks]
    more = ", ..." if len(names) > 8 else ""
    return f"rank {names[0]}" if len(names) == 1 else f"ranks {', '.join(names[:8])}{more}" if names else ""


def job_fault(
    files: FaultFiles, world: int, ended: Mapping[int, tuple[int, float]], advice: Callable[[], str]
) -> Exception:
    """The error of a job, for the process that started its ranks. Prints the last log lines of the ranks at fault.

    Args:
        files: the faults of this start.
        world: number of ranks.
        ended: exit code (negative for a signal) and end time of each failed rank.
        advice: returns what to change if memory is short. A host without memory kills ranks without a message.

    Returns:
        A ``UserError`` or a ``RunFault``, which the caller raises.
    """
    faults = files.read()
    own = next((fault for kind in OWN for fault in faults.values() if fault.kind == kind), None)
    if own is not None:
        if own.kind != "user" and not own.everywhere:
            files.show_last_lines(own.rank)
        return own.error()
    if any(fault.kind == "hung" for fault in faults.values()):
        culprits, message = hung_ranks(faults, world, files)
    else:
        gone = {rank: end for rank, end in ended.items() if rank not in faults}
        first = min((at for _, at in gone.values()), default=0.0)
        culprits = [rank for rank, (_, at) in gone.items() if at < first + 5]  # the launcher kills the others later
        how = ", ".join(sorted({_how(gone[rank][0]) for rank in culprits}))
        step = next((fault.step for fault in faults.values()), 0)
        message = lost_ranks(culprits, how, step, files)
        if any(gone[rank][0] == -signal.SIGKILL for rank in culprits):
            message += f"; if the host was short of memory: {advice()}"
    for rank in culprits[:3]:
        files.show_last_lines(rank)
    return RunFault(message)


def _how(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    return f"was killed by {signal.Signals(-code).name}"
