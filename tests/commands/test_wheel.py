"""The wheel, installed in an environment of its own and used in an empty folder outside the checkout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "requirements", "solopo_nemo", "conf", "tools")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        source, copy = ROOT / name, folder / "source" / name
        copy.parent.mkdir(exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, copy, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy(source, copy)
    options = ["--no-deps", "--no-build-isolation", "--wheel-dir", str(folder)]
    run([sys.executable, "-m", "pip", "wheel", *options, str(folder / "source")], folder)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def solopo(wheel: Path) -> Path:
    """The console command, in an environment that takes everything but this package from the one of the tests."""
    environment = wheel.parent / "environment"
    run([sys.executable, "-m", "venv", "--without-pip", str(environment)], wheel.parent)
    python = environment / "bin" / "python"
    where = run([str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], wheel.parent).strip()
    Path(where, "tests.pth").write_text(sysconfig.get_path("purelib") + "\n")
    # no --no-deps: the package asks for nothing, and may change nothing that is there
    install = ["--python", str(python), "install", "--no-index", "--ignore-installed", str(wheel)]
    said = run([sys.executable, "-m", "pip", *install], wheel.parent)
    assert said.strip().splitlines()[-1].startswith("Successfully installed solopo-nemo-")
    assert len(said.strip().splitlines()[-1].split()) == 3
    return environment / "bin" / "solopo"


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    (tmp_path / "empty").mkdir()
    return tmp_path / "empty"


def run(command: list[str], folder: Path, code: int = 0) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout if code == 0 else done.stderr


def test_everything_travels(wheel: Path) -> None:
    tracked = run(["git", "ls-files", "solopo_nemo", "conf"], ROOT).splitlines()
    links = {"solopo_nemo/conf", "solopo_nemo/assets/slurm"}
    wanted = {f"solopo_nemo/{name}" if name.startswith("conf/") else name for name in tracked} - links
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("solopo_nemo/")}
    assert packed == wanted | {"solopo_nemo/assets/slurm/job.sh"}


def test_the_extras_are_the_requirements_files(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    metadata = Parser().parsestr(archive.read(f"{wheel.name.split('-py3')[0]}.dist-info/METADATA").decode())
    requirements = [Requirement(line) for line in metadata.get_all("Requires-Dist", [])]
    assert all(requirement.marker for requirement in requirements), "installing the bare package brings something"
    extras = {"cpu": ("cpu", "base"), "gpu": ("gpu", "base"), "dev": ("dev",), "documents": ("documents",)}
    for extra, files in extras.items():
        lines = [line.split("#")[0].strip() for f in files for line in (ROOT / f"requirements/{f}.txt").open()]
        found = {str(r).split(";")[0].strip() for r in requirements if r.marker and r.marker.evaluate({"extra": extra})}
        assert found == {str(Requirement(line)) for line in lines if line}


def test_commands_in_an_empty_folder(solopo: Path, empty: Path) -> None:
    assert "usage: solopo RECIPE" in run([str(solopo), "--help"], empty)
    assert run([str(solopo), "sft", "--help"], empty).startswith("usage: solopo sft [key=value ...]")
    planned = run([str(solopo), "plan", "sft", "model=qwen2_5_7b", "parallel.tensor=4", "--json"], empty)
    assert json.loads(planned.splitlines()[-1])["recipe"] == "sft"
    row = {"id": "a", "prompt_short": "s", "prompt_long": "l", "chosen": "c", "rejected": "r"}
    (empty / "triplets.jsonl").write_text(json.dumps(row) + "\n")
    assert json.loads(run([str(solopo), "inspect_triplets", "triplets.jsonl", "--json"], empty))["good"] == 1
    refused = run([str(solopo), "solo_dpo", "optim.rate=1"], empty, code=2)
    assert "optim.rate" in refused and "solopo solo_dpo --help" in refused
    assert sorted(path.name for path in empty.iterdir()) == ["triplets.jsonl"]


@pytest.mark.parametrize("arguments", ["solo_dpo output_dir=out", "cache_reference output_dir=out"])
def test_launch_submits_the_installed_package(solopo: Path, empty: Path, arguments: str) -> None:
    script = run([str(solopo), "launch", "--nodes", "2", "--dry-run", *arguments.split()], empty)
    assert f"root={empty}\n" in script
    assert f"output_dir={empty}/out\n" in script
    assert f"program=( -m solopo_nemo {arguments} )\n" in script
    assert f"torchrun=( {solopo.parent}/python -m solopo_nemo.training.torchrun --nnodes 2" in script
    assert "enter_container" in script, "the body of the script is missing"


def test_launch_refuses_what_the_installed_package_refuses(solopo: Path, empty: Path) -> None:
    refused = run([str(solopo), "launch", "--dry-run", "solo_dpo", "parallel.tensor=3"], empty, code=2)
    assert "parallel.tensor=3" in refused


@pytest.mark.long
@pytest.mark.distributed
def test_two_ranks_in_an_empty_folder(solopo: Path, empty: Path) -> None:
    small = "trainer.max_steps=1 data.builtin.samples=8 trainer.global_batch=2 trainer.micro_batch=2 evaluation=none"
    run([str(solopo), "solo_dpo", "parallel.tensor=2", "output_dir=out", *small.split()], empty)
    assert len((empty / "out" / "metrics.jsonl").read_text().splitlines()) == 1
    assert (empty / "out" / "hf" / "model.safetensors").is_file()
