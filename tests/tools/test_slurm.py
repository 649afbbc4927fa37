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
from local_slurm import CPUS, LocalSlurm, until, why_not

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
