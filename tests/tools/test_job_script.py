"""How a batch job ends: finished, put back into the queue, or given up."""

from __future__ import annotations

from pathlib import Path

import pytest
from slurm_stubs import StubCluster


@pytest.fixture
def script(cluster: StubCluster, tmp_path: Path) -> str:
    program = tmp_path / "program.py"
    program.touch()
    return cluster.script("--max-restarts", "2", str(program), f"output_dir={cluster.output}")


def requeued(cluster: StubCluster) -> int:
    return cluster.calls("scontrol").count(["requeue", str(cluster.job)])


@pytest.mark.parametrize(("code", "exit_code", "requeues"), [("0", 0, 0), ("2", 2, 0), ("75", 75, 1), ("1", 1, 1)])
def test_the_exit_code_of_the_ranks_decides(
    cluster: StubCluster, script: str, code: str, exit_code: int, requeues: int
) -> None:
    done = cluster.run_job(script, SRUN_CODE=code)
    assert done.returncode == exit_code, done.stdout
    assert requeued(cluster) == requeues
    assert not list((cluster.output / "slurm").glob("exit-codes*"))


def test_a_crash_loop_is_given_up(cluster: StubCluster, script: str) -> None:
    codes = [cluster.run_job(script, start, SRUN_CODE="1") for start in range(3)]
    assert [done.returncode for done in codes] == [1, 1, 1]
    assert requeued(cluster) == 2
    assert "3 starts in a row" in codes[-1].stdout
    # Slurm itself may have requeued it after a node failed: then it does not even start
    steps = len(cluster.calls("srun"))
    assert "3 starts in a row" in cluster.run_job(script, 3, SRUN_CODE="0").stdout
    assert len(cluster.calls("srun")) == steps


def test_a_new_checkpoint_starts_the_count_again(cluster: StubCluster, script: str) -> None:
    for start in range(5):
        cluster.run_job(script, start, SRUN_CODE="1", SRUN_SAVES="1")
    assert requeued(cluster) == 5


def test_the_warning_goes_on_to_the_ranks_and_the_job_is_requeued(cluster: StubCluster, script: str) -> None:
    done = cluster.run_job(script, SRUN_CODE="75", SRUN_KILLS="USR1")
    assert (done.returncode, requeued(cluster)) == (75, 1)
    assert "SIGUSR1: the run saves and stops" in done.stdout


def test_a_job_that_slurm_ends_is_not_requeued(cluster: StubCluster, script: str) -> None:
    done = cluster.run_job(script, SRUN_CODE="75", SRUN_KILLS="TERM")
    assert (done.returncode, requeued(cluster)) == (75, 0)


def test_a_chain_does_not_requeue(cluster: StubCluster, tmp_path: Path) -> None:
    (tmp_path / "program.py").touch()
    script = cluster.script("--chain", "2", str(tmp_path / "program.py"), f"output_dir={cluster.output}")
    done = cluster.run_job(script, SRUN_CODE="75")
    assert (done.returncode, requeued(cluster)) == (75, 0)


def test_a_warning_before_the_step_is_known_is_passed_on_too(cluster: StubCluster, script: str) -> None:
    delayed = script.replace("    step=$!\n", "    until [[ -n $stopped_by ]]; do sleep 0.1; done\n    step=$!\n")
    assert delayed != script
    done = cluster.run_job(delayed, SRUN_CODE="75", SRUN_KILLS="USR1")
    assert (done.returncode, requeued(cluster)) == (75, 1)
