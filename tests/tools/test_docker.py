"""The Dockerfile with a real engine: the image for CPUs is built and trains, the one for GPUs is refused a poor base."""

from __future__ import annotations

import json
import re
import secrets
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from local_docker import BASE, LocalDocker, pip_settings, why_not

pytestmark = pytest.mark.docker

ROOT = Path(__file__).parents[2]
IMAGE = "localhost/solopo-cpu:test"
HOME = "/opt/solopo_nemo"
SMALL = [
    "trainer.max_steps=2",
    "trainer.global_batch=4",
    "trainer.micro_batch=2",
    "data.builtin.samples=10",
    "data.builtin.long_paragraphs=16",
    "evaluation.questions=2",
]
SECRET = f"solopo-{secrets.token_hex(16)}"
REVISION = "0123abc"


@pytest.fixture(scope="module")
def docker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalDocker]:
    reason = why_not()
    if reason:
        pytest.skip(reason)
    engine = LocalDocker(tmp_path_factory.mktemp("docker"))
    try:
        engine.start()
        yield engine
    finally:
        engine.stop(IMAGE)


def reachable(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=10):
            return True
    except OSError:
        return False


@pytest.fixture(scope="module")
def image(docker: LocalDocker, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The target ``cpu``, built with this machine's pip settings and a password among them."""
    settings = tmp_path_factory.mktemp("settings") / "pip.conf"
    lines = ["[global]", *(f"{key} = {value}" for key, value in pip_settings().items())]
    settings.write_text("\n".join([*lines, "[unused]", f"password = {SECRET}", ""]))
    options = ["--network", "host", "--secret", f"id=pip.conf,src={settings}", "--target", "cpu", "--tag", IMAGE]
    options += ["--build-arg", f"CPU_BASE_IMAGE={BASE}", "--build-arg", f"REVISION={REVISION}"]
    wheels = re.findall(r"^ARG PIP_EXTRA_INDEX_URL=(\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    if not reachable(wheels[0]):
        options += ["--build-arg", "PIP_EXTRA_INDEX_URL="]
    docker.run("build", *options, str(ROOT))
    return IMAGE


def inside(docker: LocalDocker, image: str, *command: str, options: tuple[str, ...] = ()) -> str:
    return docker.run("run", "--rm", "--network", "none", *options, image, *command).stdout


def test_the_main_job_runs_in_the_container(docker: LocalDocker, image: str, tmp_path: Path) -> None:
    tmp_path.chmod(0o777)  # the container's user is none of this machine's
    said = inside(
        docker, image, "python", "recipes/solo_dpo.py", *SMALL, options=("--volume", f"{tmp_path}:{HOME}/outputs")
    )
    print(said)
    assert "Answer accuracy by context length" in said
    assert "report: outputs/solo_dpo/report/index.html" in said
    output = tmp_path / "solo_dpo"
    steps = [json.loads(line)["step"] for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2]
    for name in ("hf/model.safetensors", "report/index.html"):
        assert (output / name).is_file(), name
        assert (output / name).stat().st_uid == 10000


def test_the_image_is_for_an_ordinary_user_and_says_what_it_is(docker: LocalDocker, image: str) -> None:
    config = json.loads(docker.run("image", "inspect", image).stdout)[0]["Config"]
    assert config["User"] == "10000:10000"
    labels = {key.removeprefix("org.opencontainers.image."): value for key, value in config["Labels"].items()}
    assert labels.keys() >= {"title", "description", "licenses"}
    assert labels["revision"] == REVISION


def test_torch_is_the_build_for_cpus(docker: LocalDocker, image: str) -> None:
    assert inside(docker, image, "python", "-c", "import torch; print(torch.version.cuda)").strip() == "None"


def test_the_context_is_small(docker: LocalDocker, image: str) -> None:
    copied = ["LICENSE", "README.md", "pyproject.toml", "conf", "recipes", "requirements", "solopo_nemo"]
    copied += ["studies", "tools"]
    made = [".venv", "outputs", "solopo_nemo.egg-info"]
    assert inside(docker, image, "ls", "-A", HOME).split() == sorted([*copied, *made])
    assert inside(docker, image, "ls", "-A", f"{HOME}/outputs") == ""
    foreign = ("find", HOME, "-path", f"{HOME}/.venv", "-prune", "-o", "-name", ".git", "-print")
    assert inside(docker, image, *foreign) == ""


def test_no_secret_reaches_the_image(docker: LocalDocker, image: str) -> None:
    assert SECRET not in docker.run("history", "--no-trunc", image).stdout
    # the mount may leave an empty file behind
    search = f"test ! -s /etc/pip.conf && ! grep -rlF {SECRET} / --exclude-dir=proc --exclude-dir=sys --exclude-dir=dev"
    assert inside(docker, image, "sh", "-c", search, options=("--user", "0")) == ""


def test_a_base_without_transformer_engine_is_refused(docker: LocalDocker, image: str) -> None:
    options = ["--network", "none", "--target", "gpu", "--build-arg", f"BASE_IMAGE={image}"]
    said = docker.run("build", *options, str(ROOT), expect=1).stderr
    assert "error: transformer-engine is not installed, <2.13,>=2.9 is needed: choose a container that fits" in said
