"""Show what this machine supports: versions, devices, the layers of a run with the reason, and unsupported features.

Each line about an unsupported feature ends with its remedy. The exit code is 0, or 1 if no run can begin.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from importlib import import_module
from itertools import product
from platform import python_version
from typing import Any

from solopo_nemo.runtime import device
from solopo_nemo.runtime.cli import ArgumentParser, show_json
from solopo_nemo.runtime.errors import UserError
from solopo_nemo.runtime.kernels import LAYERS, OFFERED, Installed, Need, choose_layers, version_of

NEEDED = ("torch", "megatron-core", "nemo-toolkit", "lightning", "transformers")
OPTIONAL = ("transformer-engine", "flash-attn", "nvidia-modelopt", "numpy", "lm_eval")
BUILT_FOR_TORCH = {"transformer-engine": "transformer_engine.pytorch", "flash-attn": "flash_attn"}
"""Modules of packages that are compiled for one version of torch and need a GPU."""
HEAD = 128
"""Head size of the models that are asked about: that of nearly all with 1.5B parameters and more."""


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    parser = ArgumentParser(__doc__)
    parser.add_json()
    given = parser.parse_args(arguments)
    found = diagnose()
    print(f"versions: Python {found['python']}, " + ", ".join(f"{k} {v or '-'}" for k, v in found["versions"].items()))
    print(f"devices: {found['devices']}")
    print(f"layers: {found['layers']}")
    for line in found["refused"]:
        print(f"refused: {line}")
    for line in found["problems"]:
        print(f"problem: {line}")
    show_json(given, found)
    return 1 if found["problems"] else 0


def diagnose() -> dict[str, Any]:
    """What the command shows, as plain data."""
    versions = {name: version_of(name) for name in (*NEEDED, *OPTIONAL)}
    problems = [f"{name} is not installed: run tools/setup.sh" for name in NEEDED if versions[name] is None]
    found = {
        "python": python_version(),
        "versions": versions,
        "devices": "",
        "layers": "",
        "refused": [],
        "problems": problems,
    }
    if versions["torch"] is None:
        return found
    if said := _import_error("torch"):
        problems.append(f"torch {versions['torch']} cannot be imported ({said}): install it again with tools/setup.sh")
        return found
    on = Installed.of_run(device.cuda())
    for name, module in BUILT_FOR_TORCH.items() if on is not None else ():
        if versions[name] is not None and (said := _import_error(module)):
            problems.append(
                f"{name} {versions[name]} is installed and cannot be imported ({said}): build it for torch "
                f"{versions['torch']} (tools/setup.sh --engine) or uninstall it"
            )
    need = Need(device.default_precision(), HEAD)
    try:
        chosen = choose_layers("auto", on, need)
        found["layers"] = f"{chosen.name} ({chosen.why})"
    except UserError as error:
        problems.append(str(error))
    found["devices"] = _devices(on)
    found["refused"] = list(dict.fromkeys(_refusals(on)))
    return found


def _refusals(on: Installed | None) -> Iterator[str]:
    """What each choice of layers refuses, of all that a run can ask for."""
    for layers, precision, mode, window in product(LAYERS, ("bf16", "fp32"), (None, *OFFERED), (False, True)):
        try:
            choose_layers(layers, on, Need(precision, HEAD, window, mode))
        except UserError as error:
            yield str(error)


def _devices(on: Installed | None) -> str:
    memory = f"{device.memory_gib():.1f} GiB"
    if on is None:
        return f"no GPU; {os.cpu_count()} CPU cores, {memory}"
    chip = ".".join(map(str, on.chip or ()))
    return f"{device.count()} GPU, the first with {memory} and compute capability {chip}"


def _import_error(module: str) -> str | None:
    """Why a module cannot be imported, in one line; None if it can."""
    try:
        import_module(module)
    except Exception as error:  # what a library of another build raises differs
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return None
