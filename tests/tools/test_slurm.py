"""tools/launch.sh on a real Slurm of two nodes: finish, be preempted and go on, lose a node, give up."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from local_slurm import CPUS, GPUS, LocalSlurm, until, why_not

pytestmark = pytest.mark.slurm

ROOT = Path(__file__).parents[2]
SMALL = [
    "trainer.max_steps=10",
    "trainer.global_batch=4",
    "trainer.micro_batch=2",
    "trainer.checkpoint_every=100",
    "data.builtin.samples=10",
    "data.builtin.long_paragraphs=16",
    "evaluation.name=none",
]
NOT_EXACT = ("seconds", "peak_memory_gib")


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalSlurm]:
    reason = why_not()
    if reason:
        pytest.skip(reason)
    cluster = LocalSlurm(tmp_path_factory.mktemp("slurm"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def launch(slurm: LocalSlurm, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = slurm.env | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    command = ["tools/launch.sh", "--nodes", "2", "--cpus-per-node", str(CPUS), *arguments]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=120)


def submit(slurm: LocalSlurm, *arguments: str) -> str:
    done = launch(slurm, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[0].removeprefix("submitted ")


def log(output: Path, job: str) -> str:
    return (output / "logs" / f"slurm-{job}.log").read_text()


def rows(output: Path) -> list[dict[str, Any]]:
    read = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in NOT_EXACT} for row in read]


@pytest.fixture(scope="session")
def finished(slurm: LocalSlurm, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    output = tmp_path_factory.mktemp("runs") / "finished"
    job = submit(slurm, "recipes/solo_dpo.py", f"output_dir={output}", *SMALL)
    slurm.wait_for_state(job, "COMPLETED", "FAILED", seconds=300)
    assert slurm.state(job) == "COMPLETED", log(output, job)
    return output, job


def test_a_training_on_two_nodes_finishes(slurm: LocalSlurm, finished: tuple[Path, str]) -> None:
    output, job = finished
    assert [row["step"] for row in rows(output)] == list(range(1, 11))
    for name in ("config.yaml", "hf/model.safetensors", "report/index.html", f"slurm/job-{job}.sh"):
        assert (output / name).is_file(), name
    assert (output / f"slurm/job-{job}.commit").read_text().strip() in log(output, job)


def test_a_preempted_training_goes_on_to_the_same_result(
    slurm: LocalSlurm, finished: tuple[Path, str], tmp_path: Path
) -> None:
    output = tmp_path / "preempted"
    shutil.copytree(finished[0] / "initial", output / "initial")
    job = submit(slurm, "recipes/solo_dpo.py", f"output_dir={output}", *SMALL)
    until("first step", lambda: (output / "metrics.jsonl").exists() and rows(output), 180)
    slurm.ask("sbatch", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=true")
    slurm.start_requeued(job)
    assert "SIGUSR1: the run saves and stops" in log(output, job)
    assert 1 <= len(rows(output)) < 10, "it was not stopped on the way"
    slurm.wait_for_state(job, "COMPLETED", "FAILED", seconds=300)
    assert slurm.state(job) == "COMPLETED", log(output, job)
    assert rows(output) == rows(finished[0])


PROGRAM = """
import os, pathlib, signal, sys

kind, folder = sys.argv[1], pathlib.Path(sys.argv[2].removeprefix("output_dir="))
rank, again = os.environ["RANK"], os.environ.get("SLURM_RESTART_COUNT", "0") != "0"

def stop(*_):
    (folder / f"saved-{rank}").touch()
    sys.exit(75)

signal.signal(signal.SIGTERM, stop)
(folder / f"started-{rank}-of-{os.environ['WORLD_SIZE']}").touch()
if kind in ("crash", "refuse"):
    sys.exit(2 if kind == "refuse" else 1)
while not again:
    signal.pause()
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A program that does what its first argument says on its first start and ends well on a later one."""
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return path


def ended(slurm: LocalSlurm, job: str) -> str:
    slurm.wait_for_state(job, "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", seconds=120)
    return slurm.state(job)


def test_a_crash_loop_ends(slurm: LocalSlurm, program: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    job = submit(slurm, "--max-restarts", "1", str(program), "crash", f"output_dir={output}")
    slurm.start_requeued(job)
    assert ended(slurm, job) == "FAILED"
    assert "2 starts in a row without a new checkpoint" in log(output, job)


def test_bad_data_fails_the_job_once(slurm: LocalSlurm, program: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    job = submit(slurm, str(program), "refuse", f"output_dir={output}")
    assert ended(slurm, job) == "FAILED"
    assert (slurm.job(job)["ExitCode"], slurm.job(job)["Restarts"]) == ("2:0", "0"), log(output, job)


def test_a_cancelled_job_stays_cancelled(slurm: LocalSlurm, program: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    job = submit(slurm, str(program), "wait", f"output_dir={output}")
    until("both ranks", lambda: len(list(output.glob("started-*"))) == 2, 120)
    slurm.ask("scancel", job)
    assert ended(slurm, job) == "CANCELLED"
    until("all processes gone", lambda: not slurm.ask("squeue", "-h", "-j", job, "-t", "COMPLETING"))
    assert slurm.state(job) == "CANCELLED"


@pytest.mark.parametrize(
    ("arguments", "culprit"),
    [(["--partition", "none"], "partition"), (["--gpus-per-node", str(GPUS + 1)], "configuration is not available")],
)
def test_what_slurm_refuses_is_one_line(
    slurm: LocalSlurm, program: Path, tmp_path: Path, arguments: list[str], culprit: str
) -> None:
    done = launch(slurm, *arguments, str(program), "wait", f"output_dir={tmp_path / 'out'}")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert culprit in done.stderr
