#!/usr/bin/env python3
"""Compare what is installed with the versions this project runs on (requirements/container.txt).

Needs nothing but `packaging`, and imports none of the packages: no GPU is touched.
"""

from __future__ import annotations

import argparse
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

try:
    from packaging.requirements import Requirement
    from packaging.version import Version
except ModuleNotFoundError:
    print(f"error: packaging is not installed in {sys.executable}: run the Python of the container", file=sys.stderr)
    sys.exit(2)

SUPPORTED = Path(__file__).resolve().parents[1] / "requirements" / "container.txt"
GPU_ONLY = ("transformer-engine",)


def problem(requirement: Requirement, gpu: bool) -> str | None:
    """Why what is installed does not satisfy a requirement; None if it does."""
    try:
        installed = version(requirement.name)
    except PackageNotFoundError:
        missing = gpu or requirement.name not in GPU_ONLY
        return f"{requirement.name} is not installed, {requirement.specifier} is needed" if missing else None
    # 2.9.0a0+nv25.10 is NVIDIA's build of what became 2.9.0
    if requirement.specifier.contains(Version(installed).base_version):
        return None
    return f"{requirement.name} {installed} is installed, {requirement.specifier} is needed"


def main() -> int:
    """Print one line and return 2 where something does not fit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gpu", action="store_true", help="also ask for what only a GPU needs")
    gpu = parser.parse_args().gpu
    lines = (line.split("#")[0].strip() for line in SUPPORTED.read_text().splitlines())
    problems = [p for p in (problem(Requirement(line), gpu) for line in lines if line) if p]
    if problems:
        print(f"error: {'; '.join(problems)}: choose a container that fits (the Dockerfile names one)", file=sys.stderr)
    return 2 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
