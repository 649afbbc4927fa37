"""A program forked from the helper is, for who starts it, the real process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import zygote

pytestmark = pytest.mark.slow

PROGRAM = """
import atexit, json, multiprocessing, os, signal, sys

def inner(found):
    found.put(["nemo" in sys.modules, os.getppid()])

if __name__ == "__main__":
    atexit.register(lambda: print("atexit"))
    if sys.argv[1:] == ["wait"]:
        print("waits", flush=True)
        signal.pause()
    begun = "nemo" in sys.modules
    context = multiprocessing.get_context("spawn")
    found = context.Queue()
    process = context.Process(target=inner, args=(found,))
    process.start()
    preloaded, parent = found.get()
    process.join()
    json.dump({
        "begun": begun, "argv": sys.argv, "cwd": os.getcwd(), "own": os.environ.get("OWN"),
        "other": os.environ.get("REAL_HOME"), "stdin": sys.stdin.read(), "parent": os.getppid(), "path": sys.path[0],
        "session": os.getsid(0) == os.getpid(), "nested": preloaded and parent == os.getpid(), "file": __file__,
    }, sys.stdout)
    print(flush=True)
    print("to stderr", file=sys.stderr)
    sys.exit(7)
"""


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    if zygote.warm() is None:
        pytest.skip("every start is a real one here")
    monkeypatch.setattr(zygote, "PROGRAMS", (f"{tmp_path}/",))
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return path


def start(program: Path, *words: str, **options: object) -> subprocess.Popen[str]:
    with zygote.forking():
        return subprocess.Popen(
            [sys.executable, program.name, *words], cwd=program.parent, text=True, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options,  # type: ignore[call-overload]
        )  # fmt: skip


def test_it_has_what_its_command_gives_it_and_ends_as_a_program_does(program: Path) -> None:
    import json

    forked = zygote.warm().forked  # type: ignore[union-attr]
    process = start(program, "--flag", "a b", env=os.environ | {"OWN": "x=y"}, start_new_session=True)
    out, err = process.communicate("given", timeout=300)
    assert (process.returncode, err) == (7, "to stderr\n")
    line, last = out.splitlines()
    assert last == "atexit"
    assert json.loads(line) == {
        "begun": True, "argv": ["program.py", "--flag", "a b"], "cwd": str(program.parent), "own": "x=y", "other": None,
        "stdin": "given", "parent": os.getpid(), "path": str(program.parent), "session": True, "nested": True,
        "file": "program.py",
    }  # fmt: skip
    assert zygote.warm().forked == forked + 1  # type: ignore[union-attr]


def test_kill_and_signals_reach_it_and_nothing_of_it_stays(program: Path) -> None:
    for number in (signal.SIGKILL, signal.SIGTERM):
        process = start(program, "wait")
        assert process.stdout is not None and process.stdout.readline() == "waits\n"
        helper = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0]
        assert process.poll() is None
        process.send_signal(number)
        assert process.wait(timeout=300) == -number
        assert process.communicate(timeout=300) == ("", "")  # its helper holds no end of the pipes
        end = time.monotonic() + 60
        while Path(f"/proc/{helper}").exists():
            assert time.monotonic() < end
            time.sleep(0.01)


def test_an_error_is_a_traceback_and_exit_code_1(program: Path) -> None:
    program.write_text("raise ValueError('wrong')")
    process = start(program)
    out, err = process.communicate(timeout=300)
    assert (process.returncode, out) == (1, "")
    assert err.rstrip().endswith("ValueError: wrong")


def test_a_fork_of_the_asking_process_starts_real_ones(program: Path) -> None:
    program.write_text(
        "import os, subprocess, sys\n"
        "if sys.argv[1:]: sys.exit(3)\n"
        "pid = os.fork()\n"
        "command = [sys.executable, 'recipes/solo_dpo.py', '--help']\n"
        "code = subprocess.run(command, cwd=os.environ['PYTHONPATH'].split(':')[0], stdout=subprocess.DEVNULL).returncode\n"
        "print(code) if pid == 0 else os.waitpid(pid, 0)\n"
    )
    process = start(program, env=os.environ | {"PYTHONPATH": str(zygote.ROOT)})
    assert process.communicate(timeout=120) == ("0\n", "")


@pytest.mark.parametrize("change", [{"OMP_NUM_THREADS": "2"}, {"HF_HUB_OFFLINE": "x"}, {"PYTHONHASHSEED": "3"}])
def test_what_libraries_read_at_import_starts_a_real_process(program: Path, change: dict[str, str]) -> None:
    process = start(program, env=os.environ | {"OMP_NUM_THREADS": "1"} | change)
    out, _ = process.communicate("", timeout=120)
    assert process.returncode == 7
    assert '"begun": false' in out
