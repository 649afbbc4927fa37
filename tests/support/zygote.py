"""Starts Python programs by forking a process that has imported the heavy libraries: 0.1 s instead of 10 s for NeMo.

    with forking():
        subprocess.run([sys.executable, "recipes/solo_dpo.py", ...])

A forked program is a child of the process that started it: ``Popen`` polls, signals and kills it as any other. It has
the arguments, environment, folder and standard streams of the real command, ends as an interpreter does (``atexit``,
exit code), and forks what it starts itself in the same way: ranks, ``torchrun``'s among them, and processes of
``multiprocessing``'s "spawn".

What differs: all have one hash seed, modules are imported already, nothing is freed at the end, and
``/proc/PID/cmdline`` and ``environ`` are the first process's; a rank's name in ``/proc`` is "rank 1", by which tests
find it. ``REAL_PROCESSES=1`` makes every start a real one (``.ci/long`` does that).

How: the process asks a helper, its own child, for a fork. The helper forks twice and the process in the middle ends;
the kernel gives the orphan to its nearest ancestor that has asked for orphans, which is the asking process.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import importlib
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = tuple(f"{ROOT / folder}/" for folder in ("recipes", "tools"))
PRELOADED = (
    "solopo_nemo.training.failures.supervise",
    "solopo_nemo.nemo_model.convert",
    "solopo_nemo.nemo_model.models",
    "solopo_nemo.nemo_model.verify",
    "solopo_nemo.training.launch",
    "solopo_nemo.training.prepare",
    "solopo_nemo.training.ranks",
    "solopo_nemo.training.report.page",
    "solopo_nemo.evaluation.accuracy",
    "transformers.models.qwen2.modeling_qwen2",
    "torch.distributed.run",
    "torch.utils.tensorboard",
)
AT_IMPORT = re.compile(
    r"(HF(?!_TOKEN|_XET)|TRANSFORMERS|TOKENIZERS(?!_PARALLELISM)|OMP|MKL|OPENBLAS|CUDA|NCCL|TORCH(?!ELASTIC|_NCCL|INDUCTOR|DYNAMO)|LD|MALLOC|PYTHON(?!PATH|WARNINGS))_?"
)
"""Variables that libraries read as they are imported: a program that differs in one is started for real."""
SPAWN = re.compile(r"from multiprocessing.spawn import spawn_main; spawn_main\(tracker_fd=(\d+), pipe_handle=(\d+)\)")
TORCHRUN = ["-m", "torch.distributed.run"]
SUBREAPER = 36
"""PR_SET_CHILD_SUBREAPER of Linux's prctl."""


@dataclass
class Request:
    """A program to run; its descriptors come beside it, ``targets`` are their numbers there."""

    argv: list[str]
    cwd: str
    env: dict[str, str]
    targets: list[int]
    new_session: bool = False
    parent: int = field(default_factory=os.getpid)


def _import_environment(env: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if AT_IMPORT.match(name)}


class Helper:
    """The asking side of a helper process."""

    def __init__(self, channel: socket.socket, environment: dict[str, str], log: IO[bytes] | None = None) -> None:
        self.log = log
        self.channel, self.lock, self.forked, self.owner = channel, threading.Lock(), 0, os.getpid()
        self.environment = _import_environment(environment)

    def fork(self, request: Request, descriptors: list[int]) -> int:
        """Fork a program; its process id, a child of this process."""
        prctl = ctypes.CDLL(None).prctl
        with self.lock:
            prctl(SUBREAPER, 1, 0, 0, 0)
            try:
                socket.send_fds(self.channel, [pickle.dumps(asdict(request))], descriptors)
                answers = {self.channel.recv(64) for _ in range(2)}
            except OSError:
                answers = {b""}
            finally:
                prctl(SUBREAPER, 0, 0, 0, 0)
            self.forked += 1
        if b"" in answers:
            if self.log:
                self.log.seek(0)
            raise RuntimeError("the helper has ended: " + (self.log.read().decode()[-3000:] if self.log else ""))
        (pid,) = answers - {b"orphaned"}
        return int(pid)

    def takes(self, request: Request) -> bool:
        """Whether a forked process does what the real one would."""
        words = _without_unbuffered(request.argv)[1:]
        is_ours = bool(words) and str(Path(request.cwd, words[0])).startswith(PROGRAMS)
        is_ours = is_ours or words[:2] == TORCHRUN or (words[:1] == ["-c"] and SPAWN.fullmatch(words[1]) is not None)
        # a fork of the asking process is not the helper's ancestor
        return is_ours and os.getpid() == self.owner and _import_environment(request.env) == self.environment


_helper: Helper | None = None
_active = 0
_set_by_imports: dict[str, str] = {}


def _without_unbuffered(argv: list[str]) -> list[str]:
    return [argv[0], *argv[2:]] if argv[1:2] == ["-u"] else argv


def _as_text(word: str | bytes | os.PathLike[str]) -> str:
    return os.fsdecode(word)


def _install() -> None:
    """Let this process's `subprocess` and `multiprocessing` ask the helper, where one is active."""
    import multiprocessing.util as util

    real_fork_exec: Callable[..., int] = subprocess._fork_exec  # type: ignore[attr-defined]
    real_spawn: Callable[..., int] = util.spawnv_passfds  # type: ignore[attr-defined]

    def fork_exec(*given: Any) -> int:
        (args, executables, _, kept, cwd, env_list, stdin, _, _, stdout, _, stderr, _, errpipe, _, new_session) = given[:16]  # fmt: skip
        if not (_active and _helper) or os.fsencode(sys.executable) not in executables or given[21] is not None:
            return real_fork_exec(*given)
        env = (
            dict(os.environ)
            if env_list is None
            else {k.decode(): v.decode() for k, _, v in (e.partition(b"=") for e in env_list)}
        )
        passed = [fd for fd in kept if fd != errpipe]
        standard = [fd if fd >= 0 else number for number, fd in enumerate((stdin, stdout, stderr))]
        request = Request(
            [_as_text(word) for word in args],
            _as_text(cwd or str(Path.cwd())),
            env,
            [0, 1, 2, *passed],
            bool(new_session),
        )
        if not _helper.takes(request):
            return real_fork_exec(*given)
        return _helper.fork(request, [*standard, *passed])

    def spawn(path: bytes, args: Sequence[str | bytes], passed: Sequence[int]) -> int:
        # the flags of this interpreter, which the helper's own has too
        words = [word for word in map(_as_text, args) if word != "-B" and not word.startswith("-W")]
        request = Request(words, str(Path.cwd()), dict(os.environ), [0, 1, 2, *passed])
        if not (_active and _helper and _helper.takes(request)):
            return real_spawn(path, args, passed)
        return _helper.fork(request, request.targets)

    subprocess._fork_exec = fork_exec  # type: ignore[attr-defined]
    util.spawnv_passfds = spawn  # type: ignore[attr-defined]


def warm() -> Helper | None:
    """Start the helper of this process, unless it runs already or programs are to be started for real."""
    global _helper
    is_known = (3, 11) <= sys.version_info[:2] <= (3, 12)  # the signature of _fork_exec
    if not is_known or os.environ.get("REAL_PROCESSES") or Path("/dev/nvidiactl").exists():
        return None
    if _helper is None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        log = tempfile.TemporaryFile()  # noqa: SIM115
        env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{Path(__file__).parent}"}
        subprocess.Popen(
            [sys.executable, "-c", f"import zygote; zygote.start_serving({theirs.fileno()})"], env=env, cwd=ROOT, pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log,
        )  # fmt: skip
        theirs.close()
        _helper = Helper(ours, env, log)
        atexit.register(ours.close)
        _install()
    return _helper


@contextmanager
def forking() -> Iterator[None]:
    """Inside this block recipes, tools and ``multiprocessing``'s "spawn" are forked from the helper."""
    global _active
    warm()
    _active += 1
    try:
        yield
    finally:
        _active -= 1


def _next_request(channel: socket.socket) -> tuple[Request, list[int]]:
    """Fork what is asked for: returns in the forked process only; this one ends with the asking one."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    os.close(null)
    while True:
        message, descriptors, *_ = socket.recv_fds(channel, 1 << 20, 250)
        if not message:
            os._exit(0)
        middle = os.fork()
        if middle == 0:
            if os.fork() == 0:
                request = Request(**pickle.loads(message))
                if request.new_session:
                    os.setsid()
                channel.send(str(os.getpid()).encode())
                channel.close()
                return request, descriptors
            os._exit(0)
        os.waitpid(middle, 0)
        channel.send(b"orphaned")
        for descriptor in descriptors:
            os.close(descriptor)


def _become(request: Request, descriptors: list[int]) -> None:
    """Make this forked process what the real one would be when it begins."""
    import multiprocessing.process

    while os.getppid() != request.parent:  # PR_SET_PDEATHSIG must mean that one
        time.sleep(0.001)
    above = max([*descriptors, *request.targets]) + 1
    moved = [os.dup2(descriptor, above + i) for i, descriptor in enumerate(descriptors)]
    for descriptor in descriptors:
        os.close(descriptor)
    for descriptor, target in zip(moved, request.targets, strict=True):
        os.dup2(descriptor, target)
        os.close(descriptor)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ.clear()
    os.environ.update(_set_by_imports | request.env)
    os.chdir(request.cwd)
    multiprocessing.process.ORIGINAL_DIR = request.cwd  # type: ignore[attr-defined]
    if "RANK" in request.env:
        Path("/proc/self/comm").write_text(f"rank {request.env['RANK']}")
    if request.argv[1] == "-u":
        sys.stdout.reconfigure(write_through=True)  # type: ignore[union-attr]
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()


def _run(request: Request, libraries: list[str]) -> None:
    sys.orig_argv = request.argv
    words = _without_unbuffered(request.argv)[1:]
    path = [entry for entry in request.env.get("PYTHONPATH", "").split(":") if entry] + libraries
    if words[0] == "-c":
        from multiprocessing.spawn import spawn_main

        sys.argv, sys.path = ["-c", *words[2:]], ["", *path]
        found = SPAWN.fullmatch(words[1])
        assert found
        spawn_main(tracker_fd=int(found[1]), pipe_handle=int(found[2]))
    if words[:2] == TORCHRUN:
        words[:2] = [str(sys.modules[words[1]].__file__)]
    script = Path(request.cwd, words[0])
    sys.argv, sys.path = words, [str(script.parent), *path]
    main = types.ModuleType("__main__")
    vars(main).update(__file__=words[0], __builtins__=__builtins__, __cached__=None)
    sys.modules["__main__"] = main
    exec(compile(script.read_bytes(), words[0], "exec"), vars(main))


def _exit_code(request: Request, libraries: list[str]) -> int:
    try:
        _run(request, libraries)
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):
            return (stop.code or 0) & 0xFF
        print(stop.code, file=sys.stderr)
        return 1
    except Exception:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        return 1
    return 0


def _end(code: int) -> None:
    """End as an interpreter does, except that nothing is freed: what was preloaded takes a second and more."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _serve(channel: socket.socket, libraries: list[str], environment: dict[str, str]) -> None:
    global _helper, _active
    _install()
    while True:
        request, descriptors = _next_request(channel)
        _become(request, descriptors)
        ours, channel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if os.fork():  # the program; its helper is the other one
            channel.close()
            _helper, _active = Helper(ours, environment), 1
            _end(_exit_code(request, libraries))
        ours.close()


def start_serving(channel: int) -> None:
    """Import what is preloaded and serve; in a forked process this returns when its program has ended."""
    environment = dict(os.environ)
    given = [str(Path(__file__).parent), *os.environ.get("PYTHONPATH", "").split(":"), ""]
    for name in PRELOADED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    libraries = [entry for entry in sys.path if entry not in given]
    _set_by_imports.update({k: v for k, v in os.environ.items() if k not in environment})
    _serve(socket.socket(fileno=channel), libraries, environment)
