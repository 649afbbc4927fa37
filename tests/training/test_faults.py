"""What goes wrong in a run ends it with one line that says what, where and what to do; what is saved stays good."""

from __future__ import annotations

import math
import os
import subprocess
from pathlib import Path

import pytest
from runs import command, inject, rows, run, start, started, until

from solopo_nemo.training.checkpoints.files import find_damage, saved_checkpoints

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

SETTINGS = ["evaluation.name=none", "trainer.max_steps=6", "+plugins=[injected]", "logger.tensorboard=false"]
TWO = ["parallel.data=2"]


def complaint(stderr: str) -> str:
    (line,) = [line for line in stderr.splitlines() if line.startswith("error: ")]
    return line


def test_a_run_through_everything_that_can_happen_to_it(finished: Path, tmp_path: Path) -> None:
    """One run, started again after each fault: it goes on from its last checkpoint every time."""
    output = started(finished, tmp_path / "out")

    failed = run(output, *SETTINGS, *TWO, expect=1, orders=[inject("nan", rank=1, step=3)]).stderr
    line = complaint(failed)
    assert all(word in line for word in ("step 3", "loss/po", "the weights were not changed", "of step 2")), line
    assert line.count("2hop__train") == 2, "the samples of one micro-batch on one rank"
    assert "Traceback" not in failed
    assert [row["step"] for row in rows(output)] == [1, 2]

    failed = run(output, *SETTINGS, torchrun=True, expect=1, orders=[inject("kill", rank=1, step=2)]).stderr
    assert "error: rank 1 ended without a report" in failed
    assert "solopo_nemo.rank step 3: loss" in failed, "the last log line of the rank that is gone"

    quick = "trainer.timeout_minutes=0.5"
    failed = run(output, *SETTINGS, *TWO, quick, expect=1, real=True, orders=[inject("hang", rank=1, step=1)]).stderr
    assert all(word in complaint(failed) for word in ("rank 1", "injected.py", "timeout_minutes", "step 3")), failed
    assert "time.sleep" in failed, "the stack of the rank that hangs"

    failed = run(output, *SETTINGS, "trainer.micro_batch=4", expect=1, orders=[inject("memory", rank=0, step=1)]).stderr
    assert all(word in complaint(failed) for word in ("rank 0", "step 3", "out of memory", "trainer.micro_batch"))

    orders = [inject("nan", rank=1, step=1), inject("nan gradient", rank=0, step=2)]
    run(output, *SETTINGS, *TWO, "trainer.nonfinite=skip", orders=orders)
    got = rows(output)
    assert [row["step"] for row in got] == [1, 2, 3, 4, 5, 6]
    assert [row.get("skipped") for row in got] == [None, None, 1, 2, 2, 2]
    assert [math.isfinite(row["loss"]) for row in got] == [True, True, False, True, True, True]
    assert not list(output.rglob(".*.tmp"))


def test_a_disk_that_fills_during_a_save(finished: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if (
        os.geteuid()
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100m", "tmpfs", disk], check=False).returncode
    ):
        pytest.skip("a small file system needs the right to mount one")
    try:
        output = started(finished, disk / "out")
        long = ["trainer.max_steps=100000", "trainer.checkpoint_every=30", "evaluation.name=none"]
        process = start(command(output, *long), stdout=subprocess.DEVNULL)
        until(lambda: saved_checkpoints(output / "checkpoints"), process)
        with (disk / "filler").open("wb", buffering=0) as stream, pytest.raises(OSError, match="No space"):
            while True:
                stream.write(bytes(1 << 16))
        os.truncate(disk / "filler", (disk / "filler").stat().st_size - (4 << 20))  # room for lines, not for weights
        _, failed = process.communicate()
        assert process.returncode == 1
        assert "no space left on device" in complaint(failed).lower()
        assert "the last good checkpoint is of step" in complaint(failed)
        assert "Traceback" not in complaint(failed)
        assert find_damage(saved_checkpoints(output / "checkpoints")[-1]) is None
    finally:
        subprocess.run(["umount", disk], check=True)
