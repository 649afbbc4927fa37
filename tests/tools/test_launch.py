"""tools/launch.sh: what it submits, what it refuses, and that arguments arrive as they were given."""

from __future__ import annotations

import itertools
import json
import subprocess
from pathlib import Path

import pytest
from slurm_stubs import ROOT, StubCluster

from solopo_nemo.runtime.errors import UserError
from solopo_nemo.training import preflight

NASTY = [
    "two words",
    "",
    "'",
    '"',
    "$HOME `id` $(id)",
    "* ? [a-z] ~ {a,b}",
    "line\nbreak\n",
    "\\ \\n",
    "\t!#;&|<>()",
    "--",
    "--nodes=3",
    "-m",
    "key=[1, 'a b', \"c\"]",
    "größer",
]


@pytest.fixture
def program(cluster: StubCluster, tmp_path: Path) -> list[str]:
    """A program that writes down its arguments, and the argument that says where the output goes."""
    path = tmp_path / "my program.py"
    path.write_text("import json, os, sys\njson.dump(sys.argv[1:], open(os.environ['ARGUMENTS'], 'w'))\n")
    return [str(path), f"output_dir={cluster.output}"]


def test_arguments_reach_the_ranks_as_given(cluster: StubCluster, program: list[str]) -> None:
    done = cluster.run_job(cluster.script("--env", "VALUE=" + "".join(NASTY), *program, *NASTY))
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(cluster.arguments_file.read_text()) == [*program[1:], *NASTY]


@pytest.mark.parametrize("runtime", ["docker", "apptainer"])
def test_arguments_reach_a_container_as_given(cluster: StubCluster, program: list[str], runtime: str) -> None:
    cluster.add_container_runtime(runtime)
    options = ["--container", "my-image:1", "--mounts", "/data:/data:ro,/b:/c", "--gpus-per-node=1", "--env", "A=x y"]
    options += ["--container-option", "--an option"]
    env = {"DOCKER_INFO": "0", "PYTHON": "python"}
    done = cluster.run_job(cluster.script(*options, *program, *NASTY, **env))
    assert done.returncode == 0, done.stdout + done.stderr
    arguments = cluster.arguments_file.read_text().split("\0")[:-1]
    assert arguments[:2] == ["-m", "solopo_nemo.training.torchrun"]
    assert arguments[-len(NASTY) - 2 :] == [*program, *NASTY]
    call = cluster.calls(runtime)[-1]
    mounts = [f"{ROOT}:{ROOT}", f"{cluster.output}:{cluster.output}", "/data:/data:ro", "/b:/c"]
    flag = "--volume" if runtime == "docker" else "--bind"
    assert [b for a, b in itertools.pairwise(call) if a == flag] == mounts
    assert "--an option" in call
    assert ("--gpus" in call and "A" in call) if runtime == "docker" else "--nv" in call


def test_pyxis_is_found_by_its_option_of_srun(cluster: StubCluster, program: list[str]) -> None:
    options = ["--container", "nvcr.io/nvidia/nemo:26.02", "--mounts", "/data:/data"]
    cluster.add("python", 'printf "%s\\0" "$@" >"$ARGUMENTS"\n')
    env = {"SRUN_HELP": "  --container-image=[USER@][REGISTRY#]IMAGE", "PYTHON": "python"}
    cluster.run_job(cluster.script(*options, *program, **env))
    call = cluster.calls("srun")[-1]
    assert "--container-image=nvcr.io#nvidia/nemo:26.02" in call
    assert f"--container-mounts={ROOT}:{ROOT},{cluster.output}:{cluster.output},/data:/data" in call
    assert cluster.arguments_file.read_text().split("\0")[-3:-1] == program


def test_a_container_needs_a_runtime(cluster: StubCluster, program: list[str]) -> None:
    cluster.add_container_runtime("docker")  # on the PATH, and no engine behind it
    done = cluster.launch("--container", "my-image", *program)
    assert done.returncode == 2
    assert "--container-runtime" in done.stderr


def test_the_script_asks_for_what_the_options_say(cluster: StubCluster, program: list[str]) -> None:
    script = cluster.script(
        *(
            "--nodes",
            "2",
            "--gpus-per-node",
            "8",
            "--cpus-per-node",
            "64",
            "--time",
            "1-04:00:00",
            "--partition",
            "p q",
        ),
        *(
            "--account",
            "lab",
            "--job-name",
            "mine",
            "--dependency",
            "afterok:5",
            "--grace",
            "60",
            "--sbatch=--exclusive",
        ),
        *("--sbatch", "--qos=high", *program),
    )
    directives = [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH")]
    assert directives == [
        '--job-name="mine"',
        "--nodes=2 --ntasks-per-node=1",
        "--gpus-per-node=8",
        "--cpus-per-task=64",
        "--time=1-04:00:00",
        '--partition="p q"',
        '--account="lab"',
        '--dependency="afterok:5"',
        "--exclusive",
        '--qos="high"',
        "--requeue --open-mode=append --signal=B:USR1@60",
        f'--output="{cluster.output}/logs/slurm-%j.log"',
    ]
    cluster.run_job(script, SRUN_CODE="0")
    step = cluster.calls("srun")[-1]
    assert step[: step.index("--nnodes")][:4] == [
        *("--ntasks-per-node=1", "--kill-on-bad-exit=1", "--cpu-bind=none", "--cpus-per-task=64"),
    ]
    torchrun = step[step.index("--nnodes") : step.index(program[0])]
    assert torchrun == [
        *("--nnodes", "2", "--nproc-per-node", "8", "--rdzv-id", f"{cluster.job}.0"),
        *("--master-addr", "localhost", "--master-port", str(20000 + cluster.job % 10000)),
    ]


def test_variables_of_slurm_do_not_undo_what_the_launcher_sets(cluster: StubCluster, program: list[str]) -> None:
    """Those of sbatch win over directives, and a site's --export=NONE keeps the environment from the tasks."""
    for command in ("sbatch", "srun"):
        cluster.add(command, f"env | grep ^S >{cluster.bin}/{command}.env; echo 7\n")
    set_ = {"SBATCH_ARRAY_INX": "0-3", "SBATCH_SIGNAL": "KILL", "SBATCH_PARTITION": "p", "SBATCH_ACCOUNT": "a"}
    assert not cluster.launch("--account", "lab", *program, **set_).returncode
    left = (cluster.bin / "sbatch.env").read_text()
    assert "SBATCH_PARTITION=p\n" in left and left.count("SBATCH_") == 1
    cluster.run_job(cluster.script(*program, "--x"), SLURM_EXPORT_ENV="NONE")
    assert "SLURM_EXPORT_ENV" not in (cluster.bin / "srun.env").read_text()


def test_a_site_with_gres_only_and_a_job_that_is_not_requeued(cluster: StubCluster, program: list[str]) -> None:
    for gres in ("gpu:4", "gpu:a100:4", "shard:1,gpu:h100_80:4"):
        options = ["--gpus-per-node", "4", f"--sbatch=--gres={gres}", "--sbatch=--no-requeue"]
        script = cluster.script(*options, *program)
        assert "--gpus-per-node" not in script.split("torchrun=")[0]
        assert f'#SBATCH --gres="{gres}"\n' in script and "#SBATCH --no-requeue\n" in script
        assert "#SBATCH --open-mode=append" in script and "--requeue" not in script.split("torchrun=")[0]
        assert "--nproc-per-node 4" in script
    done = cluster.run_job(script, SRUN_CODE="75")
    assert "not requeued (--no-requeue)" in done.stdout and not cluster.calls("scontrol")[1:]


def test_what_a_tool_writes_is_watched(cluster: StubCluster, tmp_path: Path) -> None:
    """The restarts of a tool are counted by what it adds to --out, a folder or a file with others of its name."""
    tool = ["tools/evaluate.py", "--model", "m", "--suite", "builtin", "--out"]
    for out, folder in (
        (tmp_path / "scores", tmp_path / "scores"),
        (tmp_path / "pairs" / "pairs.jsonl", tmp_path / "pairs"),
    ):
        script = cluster.script(*tool, str(out))
        assert f"output_dir={folder}\n" in script and f"watched=( {out} )\n" in script
        cluster.output = folder
        for size in range(6):  # more starts than --max-restarts allows, each with progress
            done = cluster.run_job(script, SRUN_CODE="1")
            assert "requeued" in done.stdout, done.stdout + done.stderr
            sample = folder / "cells.json" if out == folder else folder / "pairs.jsonl.samples.sqlite"
            sample.write_text("x" * size)
        for _ in range(4):
            done = cluster.run_job(script, SRUN_CODE="1")
        assert "without a new checkpoint" in done.stdout


def test_a_tool_is_one_process_and_starts_its_server(cluster: StubCluster, tmp_path: Path) -> None:
    serve = "vllm serve {model} --port {port} --tensor-parallel-size 8"
    sampling = [
        "--backend",
        "openai",
        "--model",
        "/models/Qwen 7B",
        "--serve",
        serve,
        "--out",
        str(tmp_path / "p.jsonl"),
    ]
    script = cluster.script("--gpus-per-node", "8", "tools/sample_pairs.py", *sampling)
    assert "#SBATCH --gpus-per-node=8\n" in script and "--nodes 1 --nproc-per-node 1 " in script.replace(
        "nnodes", "nodes"
    )
    cluster.output = tmp_path
    cluster.run_job(script, SRUN_CODE="0")
    assert cluster.calls("srun")[-1][-len(sampling) :] == sampling
    for options in (["--nodes", "2"], ["--ranks-per-node", "2"]):
        done = cluster.launch("--dry-run", *options, "tools/sample_pairs.py", *sampling)
        assert done.returncode == 2 and "sample_pairs is one process" in done.stderr
    grown = cluster.script("--gpus-per-node", "8", "grow", "--lengths", "2", "--out", str(tmp_path / "g"))
    assert "program=( -m solopo_nemo grow --lengths 2" in grown and f"watched=( {tmp_path / 'g'} )" in grown
    done = cluster.launch("--dry-run", "tools/grow.py", "--lengths", "2")
    assert done.returncode == 2 and "grow: give --out" in done.stderr


def test_a_dry_run_needs_no_container_runtime_and_an_odd_cdpath_does_no_harm(
    cluster: StubCluster, program: list[str], tmp_path: Path
) -> None:
    (tmp_path / "tools").mkdir()
    done = cluster.launch("--dry-run", "--container", "i:1", *program, CDPATH=str(tmp_path), PYTHON="python")
    assert done.returncode == 0 and "runtime=pyxis\n" in done.stdout
    assert done.stderr.startswith("note: no container runtime here") and done.stderr.count("\n") == 1


def test_a_dry_run_leaves_nothing(cluster: StubCluster, program: list[str]) -> None:
    cluster.script(*program)
    assert not cluster.output.exists()
    assert not cluster.calls("sbatch")


def test_script_and_commit_are_kept(cluster: StubCluster, program: list[str]) -> None:
    (cluster.output / "slurm").mkdir(parents=True)
    (cluster.output / "slurm" / "starts").write_text("3\nfound\n")  # of an earlier submission
    done = cluster.launch(*program)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("submitted 101\n")
    assert (cluster.output / "slurm" / "job-101.sh").read_text() == cluster.script(*program)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert (cluster.output / "slurm" / "job-101.commit").read_text().startswith(commit.strip())
    assert not (cluster.output / "slurm" / "starts").exists()
    assert (cluster.output / "logs").is_dir()


def test_a_chain_goes_on_only_after_what_did_not_finish(cluster: StubCluster, program: list[str]) -> None:
    assert cluster.launch("--chain", "3", *program).stdout.startswith("submitted 101 102 103\n")
    waits = [[a for a in call if a.startswith("--dependency")] for call in cluster.calls("sbatch")]
    assert waits == [[], ["--dependency=afternotok:101"], ["--dependency=afternotok:101,afternotok:102"]]


def test_a_chain_is_submitted_whole_or_not_at_all(cluster: StubCluster, program: list[str]) -> None:
    done = cluster.launch("--chain", "3", *program, SBATCH_ACCEPTS="2")
    assert done.returncode == 2
    assert cluster.calls("scancel") == [["101", "102"]]


def test_secrets_are_passed_and_never_written(cluster: StubCluster, program: list[str]) -> None:
    done = cluster.launch("--env", "WANDB_API_KEY", "--env", "NCCL_DEBUG=INFO", *program, WANDB_API_KEY="s3cret")
    assert done.returncode == 0, done.stderr
    written = "".join(path.read_text() for path in (cluster.output / "slurm").iterdir())
    assert "s3cret" not in written
    assert "export NCCL_DEBUG=INFO" in written
    assert "s3cret" not in json.dumps(cluster.calls("sbatch"))


def test_an_output_folder_in_use_is_refused(cluster: StubCluster, program: list[str]) -> None:
    assert cluster.launch(*program).returncode == 0
    cluster.add("squeue", "echo 101\n")
    done = cluster.launch(*program)
    assert done.returncode == 2
    assert "101" in done.stderr
    assert cluster.launch("--dependency", "afterany:101", *program).returncode == 0


BAD = {
    "no program": ([], "no program"),
    "unknown option": (["--node", "2", "PROGRAM"], "--node"),
    "option without value": (["--nodes"], "--nodes"),
    "empty value": (["--nodes=", "PROGRAM"], "--nodes"),
    "nodes not a number": (["--nodes", "two", "PROGRAM"], "--nodes two"),
    "no nodes": (["--nodes", "0", "PROGRAM"], "--nodes 0"),
    "gpus": (["--gpus-per-node", "-1", "PROGRAM"], "--gpus-per-node"),
    "ranks beside gpus": (["--gpus-per-node", "8", "--ranks-per-node", "4", "PROGRAM"], "--ranks-per-node 4"),
    "time": (["--time", "4 hours", "PROGRAM"], "--time 4 hours"),
    "time shorter than the grace": (["--time", "00:02:00", "PROGRAM"], "--grace"),
    "grace": (["--grace", "soon", "PROGRAM"], "--grace soon"),
    "max-restarts": (["--max-restarts", "-1", "PROGRAM"], "--max-restarts"),
    "chain": (["--chain", "0", "PROGRAM"], "--chain 0"),
    "line break": (["--partition", "a\nb", "PROGRAM"], "--partition"),
    "env name": (["--env", "1A=2", "PROGRAM"], "--env 1A=2"),
    "env not set": (["--env", "NOT_SET_HERE", "PROGRAM"], "NOT_SET_HERE"),
    "secret on the command line": (["--env", "HF_TOKEN=abc", "PROGRAM"], "HF_TOKEN"),
    "password in an address": (["PROGRAM", "--sampling=--base-url http://u:abc@h/v1"], "give --env NAME"),
    "key in an address": (["PROGRAM", "--base-url", "http://h/v1?api-key=abc"], "give --env NAME"),
    "key in an option": (["PROGRAM", "--serve", "vllm serve {model} --api-key abc"], "give --env NAME"),
    "key in two words": (["PROGRAM", "--api_key", "abc"], "give --env NAME"),
    "password with a slash": (["PROGRAM", "--base-url", "http://u:p/x@h"], "give --env NAME"),
    "code in an address": (["PROGRAM", "--base-url", "https://h/v1?code=abc"], "give --env NAME"),
    "key in a variable": (["PROGRAM", "--serve", "env HF_TOKEN=abc vllm serve {model}"], "give --env NAME"),
    "mounts": (["--container", "i", "--mounts", "data:/data", "PROGRAM"], "data:/data"),
    "mounts without container": (["--mounts", "/data:/data", "PROGRAM"], "--container"),
    "runtime": (["--container", "i", "--container-runtime", "podman", "PROGRAM"], "podman"),
    "runtime without container": (["--container-runtime", "docker", "PROGRAM"], "--container"),
    "sbatch": (["--sbatch", "qos=high", "PROGRAM"], "--sbatch"),
    "array": (["--sbatch=--array=0-3", "PROGRAM"], "--array=0-3"),
    "gres without gpus": (["--sbatch=--gres=gpu:8", "PROGRAM"], "--gpus-per-node"),
    "gres of another number": (["--gpus-per-node", "8", "--sbatch=--gres=gpu:a100:4", "PROGRAM"], "gpu:8"),
    "what launch.sh sets": (["--sbatch=--output=x", "PROGRAM"], "--output=x"),
    "no such program": (["recipes/none.py"], "recipes/none.py"),
    "no such python": (["PROGRAM", "PYTHON=nopython"], "nopython"),
    "output_dir": (["PROGRAM", "output_dir=/proc/x"], "/proc/x"),
}


@pytest.mark.parametrize(("arguments", "culprit"), BAD.values(), ids=BAD.keys())
def test_bad_arguments_are_one_line(
    cluster: StubCluster, program: list[str], arguments: list[str], culprit: str
) -> None:
    env = dict(a.split("=") for a in arguments if a.startswith("PYTHON="))
    done = cluster.launch(*[program[0] if a == "PROGRAM" else a for a in arguments if a[:7] != "PYTHON="], **env)
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert culprit in done.stderr
    assert "abc" not in done.stderr.replace("HF_TOKEN=abc", "")
    assert not cluster.calls("sbatch")


def test_elsewhere_than_in_the_repository_it_says_so(cluster: StubCluster, program: list[str], tmp_path: Path) -> None:
    done = cluster.launch(*program, cwd=tmp_path)
    assert (done.returncode, str(ROOT) in done.stderr) == (2, True)


def test_without_slurm_it_says_so(cluster: StubCluster, program: list[str], tmp_path: Path) -> None:
    without = tmp_path / "without"
    without.mkdir()
    for command in Path("/usr/bin").iterdir():
        if command.name != "sbatch":
            (without / command.name).symlink_to(command)
    done = cluster.launch(*program, PATH=str(without))
    assert (done.returncode, "sbatch" in done.stderr) == (2, True)


def test_a_recipe_is_checked_before_it_is_submitted(cluster: StubCluster) -> None:
    done = cluster.launch("recipes/solo_dpo.py", f"output_dir={cluster.output}", "trainer.no_such_key=1")
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert "no_such_key" in done.stderr
    assert not cluster.calls("sbatch")
    assert not cluster.output.exists()


@pytest.mark.parametrize(
    ("arguments", "culprit"),
    [
        ("parallel.tensor=4", "world of 2 ranks"),
        ("trainer.resume=never", "trainer.resume"),
    ],
)
def test_a_job_has_to_fit_and_to_go_on(arguments: str, culprit: str) -> None:
    with pytest.raises(UserError, match=culprit):
        preflight.main(["solo_dpo", "2", arguments])


def test_the_output_folder_is_the_resolved_one(capsys: pytest.CaptureFixture[str]) -> None:
    preflight.main(["solo_dpo", "2", "parallel.context=2", "output_dir='a b/${recipe}'"])
    assert capsys.readouterr().out == "a b/solo_dpo\n"
