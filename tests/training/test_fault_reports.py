"""Which rank is named when several end, and in what words."""

from __future__ import annotations

import errno
import time
from pathlib import Path

import pytest

from solopo_nemo.runtime.errors import RunFault, UserError
from solopo_nemo.training.failures.faults import Fault, FaultFiles, as_run_fault, job_fault

AT = 1000.0


@pytest.fixture
def files(tmp_path: Path) -> FaultFiles:
    (tmp_path / "logs").mkdir()
    for rank in range(4):
        (tmp_path / "logs" / f"rank_{rank:05d}.log").write_text(f"old line\nlast words of rank {rank}\n")
    (tmp_path / "checkpoints" / "step_000040").mkdir(parents=True)
    return FaultFiles(tmp_path, "this start")


LOST = [Fault(rank, 42, "lost", "Connection closed by peer") for rank in (0, 2, 3)]
OUT_OF_MEMORY = Fault(1, 42, "run", "out of memory: a smaller trainer.micro_batch")
REPORTS: dict[str, tuple[list[Fault], dict[int, tuple[int, float]], tuple[str, ...], int | None]] = {
    "killed": (
        LOST,
        {1: (-9, AT), 0: (1, AT)},
        ("rank 1 was killed by SIGKILL", "step 42", "of step 40; if the host was short of memory: TP2 fits"),
        1,
    ),
    "killed by the launcher after": (
        LOST[:1],
        {1: (-9, AT), 0: (1, AT), 2: (-9, AT + 30), 3: (-9, AT + 30)},
        ("rank 1 was",),
        1,
    ),
    "no memory": ([*LOST, OUT_OF_MEMORY], {1: (1, AT)}, ("rank 1 in step 42: out of memory",), 1),
    "crash": ([*LOST, Fault(1, 7, "crash", "ValueError: x")], {1: (1, AT)}, ("rank 1 in step 7: ValueError: x",), 1),
    "a fault comes before crashes": (
        [Fault(0, 42, "crash", "ValueError: x"), OUT_OF_MEMORY],
        {0: (1, AT)},
        ("out of memory",),
        1,
    ),
    "exit": ([], {3: (7, AT)}, ("rank 3 ended with exit code 7",), 3),
    "all are lost": ([*LOST, Fault(1, 42, "lost", "x")], {0: (1, AT)}, ("lost each other", "network"), None),
    "busy": (
        [Fault(r, 9, "hung", "is in collate (x.py:3)" if r == 2 else "waits in all_reduce", r != 2) for r in range(4)],
        {0: (1, AT)},
        ("rank 2 is in collate (x.py:3)", "trainer.timeout_minutes", "step 9"),
        2,
    ),
    "busy, and the others lose it when it is ended": (
        [Fault(2, 9, "hung", "is in collate"), *(Fault(r, 9, "lost", "Connection closed") for r in (0, 1, 3))],
        {0: (1, AT)},
        ("rank 2 is in collate;", "trainer.timeout_minutes"),
        2,
    ),
    "a rank's first word counts": (
        [
            *(Fault(r, 9, "hung", "waits", True) for r in range(3)),
            Fault(0, 9, "lost", "x"),
            Fault(3, 9, "hung", "is in f"),
        ],
        {0: (1, AT)},
        ("rank 3 is in f;",),
        3,
    ),
    "silent": (
        [Fault(r, 9, "hung", "waits in all_reduce", True) for r in (0, 2, 3)],
        {0: (1, AT)},
        ("rank 1 did not answer",),
        1,
    ),
}


@pytest.mark.parametrize("case", REPORTS)
def test_the_rank_to_blame_is_named(case: str, files: FaultFiles, capsys: pytest.CaptureFixture[str]) -> None:
    faults, ended, words, blamed = REPORTS[case]
    for fault in faults:
        files.write(fault)
    error = job_fault(files, 4, ended, lambda: "TP2 fits")
    assert isinstance(error, RunFault)
    assert "\n" not in str(error)
    assert all(word in str(error) for word in words), str(error)
    shown = capsys.readouterr().err
    assert [r for r in range(4) if f"last words of rank {r}" in shown] == ([] if blamed is None else [blamed])


def test_bad_input_stays_bad_input(files: FaultFiles) -> None:
    files.write(Fault(1, 0, "user", "data.train: line 3, not http://u:pw@h"))
    assert "pw" not in files.log(1).with_suffix(".fault.json").read_text()
    error = job_fault(files, 2, {1: (2, AT)}, str)
    assert isinstance(error, UserError)
    assert str(error) == "data.train: line 3, not http://h"


def test_what_an_earlier_start_left_does_not_count(files: FaultFiles) -> None:
    FaultFiles(files.output, "another start").write(OUT_OF_MEMORY)
    assert files.read() == {}
    assert "rank 0 was killed" in str(job_fault(files, 2, {0: (-9, AT)}, str))


def test_the_roll_call_ends_when_all_have_spoken(files: FaultFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    files.write(Fault(0, 1, "lost", "x"))
    waits: list[float] = []

    def the_other_speaks(seconds: float) -> None:
        waits.append(seconds)
        files.write(Fault(1, 1, "run", "y"))

    monkeypatch.setattr(time, "sleep", the_other_speaks)
    assert set(files.roll_call(2)) == {0, 1}
    assert len(waits) == 1


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/out/x"), ("/out/x", "No space left", "of step 40")),
        (MemoryError(), ("out of memory", "a smaller batch")),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), ("out of memory",)),
        (RuntimeError("PytorchStreamWriter failed writing file data/0"), ("could not be written",)),
    ],
)
def test_errors_of_libraries_in_our_words(error: Exception, words: tuple[str, ...], files: FaultFiles) -> None:
    fault = as_run_fault(error, files, lambda: "a smaller batch")
    assert isinstance(fault, RunFault)
    assert all(word in str(fault) for word in words), fault


def test_other_errors_stay_what_they_are(files: FaultFiles) -> None:
    error = OSError(errno.ENOENT, "no such file")
    assert as_run_fault(error, files, str) is error
