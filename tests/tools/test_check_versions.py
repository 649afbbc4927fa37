"""What tools/check_versions.py accepts as a base to install on, and what the image copies before it installs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import tomllib

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools" / "check_versions.py"


def check(site: Path, *options: str, **versions: str) -> subprocess.CompletedProcess[str]:
    for name, version in versions.items():
        folder = site / f"{name}-{version}.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    command = [sys.executable, str(TOOL), *options]
    return subprocess.run(command, env={"PYTHONPATH": str(site)}, capture_output=True, text=True, check=False)


def test_this_environment_fits(tmp_path: Path) -> None:
    assert check(tmp_path).returncode == 0


@pytest.mark.parametrize(
    ("torch", "nemo", "megatron", "engine"),
    [
        ("2.9.0a0+50eac811a6.nv25.9", "2.6.0rc0", "0.15.0rc8+abc", "2.9.0+70f53666"),  # 25.11
        ("2.10.0a0+b4e4ee81d3.nv25.12", "2.7.0rc0", "0.16.0rc0+abc", "2.12.0+5671fd36"),  # 26.02
    ],
)
def test_the_builds_of_the_nemo_containers_fit(
    tmp_path: Path, torch: str, nemo: str, megatron: str, engine: str
) -> None:
    versions = {"torch": torch, "nemo_toolkit": nemo, "megatron_core": megatron, "transformer_engine": engine}
    done = check(tmp_path, "--gpu", **versions)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("name", "version"),
    [("megatron_core", "0.17.0rc0"), ("nemo_toolkit", "3.0.0"), ("torch", "2.6.0"), ("transformer_engine", "2.13.0")],
)
def test_another_version_is_one_line(tmp_path: Path, name: str, version: str) -> None:
    done = check(tmp_path, **{name: version})
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert f"{name.replace('_', '-') if name != 'nemo_toolkit' else name} {version}" in done.stderr


def test_a_gpu_needs_transformer_engine(tmp_path: Path) -> None:
    done = check(tmp_path, "--gpu")
    assert done.returncode == 2
    assert "transformer-engine is not installed" in done.stderr


def test_both_images_copy_every_package_before_they_install() -> None:
    settings = tomllib.loads((ROOT / "studies" / "pyproject.toml").read_text())
    copied = (ROOT / "Dockerfile").read_text()
    for package in settings["tool"]["setuptools"]["packages"]:
        assert copied.count(f" {package.replace('.', '/')}/__init__.py ") == 2, package
