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


def launch(slurm: LocalSlurm, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = slurm.env | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"} | environment
    command = ["tools/launch.sh", "--nodes", "2", "--cpus-per-node", str(CPUS), *arguments]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=120)


def submit(slurm: LocalSlurm, *arguments: str, **environment: str) -> str:
    done = launch(slurm, *arguments, **environment)
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
    assert slurm.end_of(job, 300) == "COMPLETED", log(output, job)
    return output, job


def test_a_training_on_two_nodes_finishes(slurm: LocalSlurm, finished: tuple[Path, str]) -> None:
    output, job = finished
    assert [row["step"] for row in rows(output)] == list(range(1, 11))
    for name in ("config.yaml", "hf/model.safetensors", "report/index.html", f"slurm/job-{job}.sh"):
        assert (output / name).is_file(), name
    assert (output / f"slurm/job-{job}.commit").read_text().strip() in log(output, job)


class Held:
    """A training of two nodes that has taken three steps, the second saved, and waits in the fourth until released."""

    def __init__(self, slurm: LocalSlurm, finished: Path, folder: Path) -> None:
        self.output, self.file = folder / "held", folder / "released"
        shutil.copytree(finished / "initial", self.output / "initial")
        environment = {
            "PYTHONPATH": str(ROOT / "tests/training"),
            "INJECT": json.dumps([{"what": "wait", "rank": 0, "step": 4}]),
            "INJECT_UNTIL": str(self.file),
            "INJECT_IDS": str(folder),
        }
        overrides = [*SMALL, "trainer.checkpoint_every=2", "+plugins=[injected]"]
        recipe = ("recipes/solo_dpo.py", f"output_dir={self.output}", *overrides)
        self.job = submit(slurm, "--grace", "90", *recipe, **environment)
        metrics = self.output / "metrics.jsonl"
        until("three steps", lambda: metrics.exists() and len(rows(self.output)) == 3, 180)
        until("a checkpoint", lambda: list(self.output.glob("checkpoints/step_*")))
        self.computed = folder / "0.jsonl"

    def release(self) -> None:
        """Let it go on."""
        self.file.touch()

    def last_start(self) -> int:
        """How many steps its last start took."""
        return int(json.loads(self.computed.read_text().splitlines()[-1])["step"]) + 1


def saves_and_goes_on(slurm: LocalSlurm, held: Held, finished: Path) -> None:
    """What a warned training does."""
    until("the warning", lambda: "SIGUSR1: the run saves and stops" in log(held.output, held.job), 90)
    held.release()
    slurm.start_requeued(held.job)
    assert "stopped; requeued, to go on from the last checkpoint" in log(held.output, held.job)
    taken = len(rows(held.output))
    assert taken < 10, "it was not stopped on the way"
    slurm.leave_minutes(held.job, 10)
    assert slurm.end_of(held.job, 300) == "COMPLETED", log(held.output, held.job)
    assert held.last_start() == 10 - taken, "it did not save when it stopped"
    assert rows(held.output) == rows(finished)


def test_a_preempted_training_saves_and_goes_on_to_the_same_result(
    slurm: LocalSlurm, finished: tuple[Path, str], tmp_path: Path
) -> None:
    held = Held(slurm, finished[0], tmp_path)
    slurm.ask("sbatch", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=true")
    saves_and_goes_on(slurm, held, finished[0])


def test_ahead_of_the_time_limit_a_training_saves_and_goes_on_to_the_same_result(
    slurm: LocalSlurm, finished: tuple[Path, str], tmp_path: Path
) -> None:
    held = Held(slurm, finished[0], tmp_path)
    slurm.leave_minutes(held.job, 2)
    saves_and_goes_on(slurm, held, finished[0])


def test_a_training_that_loses_a_node_goes_on_from_its_last_checkpoint(
    slurm: LocalSlurm, finished: tuple[Path, str], tmp_path: Path
) -> None:
    held = Held(slurm, finished[0], tmp_path)
    slurm.kill_node("n2")
    try:
        slurm.start_requeued(held.job)
        held.release()
    finally:
        slurm.start_node("n2")
    assert slurm.end_of(held.job, 300) == "COMPLETED", log(held.output, held.job)
    assert held.last_start() == 8
    assert rows(held.output) == rows(finished[0])


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


def test_a_crash_loop_ends(slurm: LocalSlurm, program: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    job = submit(slurm, "--max-restarts", "1", str(program), "crash", f"output_dir={output}")
    slurm.start_requeued(job)
    assert slurm.end_of(job) == "FAILED"
    assert "2 starts in a row without a new checkpoint" in log(output, job)


def test_bad_data_fails_the_job_once(slurm: LocalSlurm, program: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    job = submit(slurm, str(program), "refuse", f"output_dir={output}")
    assert slurm.end_of(job) == "FAILED"
    assert (slurm.job(job)["ExitCode"], slurm.job(job)["Restarts"]) == ("2:0", "0"), log(output, job)


def test_a_cancelled_job_stays_cancelled(slurm: LocalSlurm, program: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    job = submit(slurm, str(program), "wait", f"output_dir={output}")
    until("both ranks", lambda: len(list(output.glob("started-*"))) == 2, 120)
    slurm.ask("scancel", job)
    assert slurm.end_of(job) == "CANCELLED"
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
