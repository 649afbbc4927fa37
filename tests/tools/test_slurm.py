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
STEPS = 14
SMALL = [
    f"trainer.max_steps={STEPS}",
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
    assert [row["step"] for row in rows(output)] == list(range(1, STEPS + 1))
    for name in ("config.yaml", "hf/model.safetensors", "report/index.html", f"slurm/job-{job}.sh"):
        assert (output / name).is_file(), name
    assert (output / f"slurm/job-{job}.commit").read_text().strip() in log(output, job)


class Held:
    """A training of two nodes that waits in the fourth step of each start until it is released."""

    def __init__(self, slurm: LocalSlurm, finished: Path, folder: Path) -> None:
        self.slurm = slurm
        self.output, self.released = folder / "held", folder / "released"
        shutil.copytree(finished / "initial", self.output / "initial")
        environment = {
            "PYTHONPATH": str(ROOT / "tests/training"),
            "INJECT": json.dumps([{"what": "wait", "rank": 0, "step": 4}]),
            "INJECT_UNTIL": str(self.released),
            "INJECT_IDS": str(folder),
        }
        overrides = [*SMALL, "trainer.checkpoint_every=2", "+plugins=[injected]"]
        recipe = ("recipes/solo_dpo.py", f"output_dir={self.output}", *overrides)
        self.job = submit(slurm, "--grace", "90", *recipe, **environment)

    def log(self) -> str:
        return log(self.output, self.job)

    def steps(self) -> int:
        return len(rows(self.output)) if (self.output / "metrics.jsonl").exists() else 0

    def wait_for(self, steps: int) -> None:
        """Until so many steps are taken, the last one but one of them saved.

        A start waits three steps after the checkpoint that it went on from: another one gives another number.
        """
        until(f"{steps} steps", lambda: self.steps() == steps, 180)
        until("a checkpoint", (self.output / f"checkpoints/step_{steps - 1:06d}").exists)

    def go_on_after_a_warning(self) -> None:
        """The run is warned, may end the step it is in, saves, and begins again."""
        warnings = self.log().count("SIGUSR1: the run saves and stops")
        until("the warning", lambda: self.log().count("SIGUSR1: the run saves and stops") > warnings, 90)
        steps = self.steps()
        self.released.touch()
        self.slurm.start_requeued(self.job)
        assert "stopped; requeued, to go on from the last checkpoint" in self.log()
        self.released.unlink()
        assert self.steps() == steps + 1, "it was not stopped on the way"
        self.slurm.leave_minutes(self.job, 10)


def test_a_training_is_preempted_reaches_its_time_limit_and_loses_a_node_and_the_result_is_the_same(
    slurm: LocalSlurm, finished: tuple[Path, str], tmp_path: Path
) -> None:
    held = Held(slurm, finished[0], tmp_path)
    held.wait_for(3)
    slurm.ask("sbatch", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=true")
    held.go_on_after_a_warning()

    held.wait_for(4 + 3)
    slurm.leave_minutes(held.job, 2)
    held.go_on_after_a_warning()

    held.wait_for(8 + 3)
    slurm.kill_node("n2")
    try:
        slurm.start_requeued(held.job)
        held.released.touch()
    finally:
        slurm.start_node("n2")
    assert slurm.end_of(held.job, 300) == "COMPLETED", held.log()
    taken = json.loads((tmp_path / "0.jsonl").read_text().splitlines()[-1])["step"] + 1
    assert taken == STEPS - 10, "it did not go on from the last checkpoint"
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
