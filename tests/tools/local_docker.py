"""A Docker engine on this machine, the one that runs or a private one, and a base image made from Debian's packages."""

from __future__ import annotations

import ast
import os
import shutil
import ssl
import subprocess
import sys
import time
from pathlib import Path

BASE = "localhost/solopo-base:test"
SUITE = "bookworm"
PACKAGES = "ca-certificates,python3,python3-venv"
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
PRIVATE = ("/etc/docker", "/run/docker", "/run/containerd")
"""Folders that dockerd writes to whatever its options say: a private engine gets its own."""
PIP_SETTINGS = ("index-url", "extra-index-url", "find-links", "trusted-host", "timeout", "default-timeout")


def find_client() -> str | None:
    """A docker command that builds with BuildKit: since version 23 that takes a plugin."""
    for folder in os.get_exec_path():
        client = shutil.which("docker", path=folder)
        if not client:
            continue
        version = subprocess.run([client, "--version"], capture_output=True, text=True, check=False).stdout
        plugin = subprocess.run([client, "buildx", "version"], capture_output=True, check=False)
        if plugin.returncode == 0 or version.startswith(("Docker version 19.", "Docker version 20.")):
            return client
    return None


def engine_runs(client: str) -> bool:
    """Whether an engine answers already."""
    return subprocess.run([client, "version"], capture_output=True, check=False).returncode == 0


def why_not() -> str | None:
    """The reason why no image can be built here, if there is one."""
    client = find_client()
    if client is None:
        return "not installed: a docker client with BuildKit (apt-get install docker.io)"
    if not shutil.which("mmdebstrap"):
        return "not installed: mmdebstrap (apt-get install mmdebstrap)"
    if engine_runs(client):
        return None
    if os.geteuid() != 0:
        return "no Docker engine runs, and starting one needs root"
    if not shutil.which("dockerd", path=f"{os.environ['PATH']}:/usr/sbin"):
        return "no Docker engine runs, and dockerd is not installed (apt-get install docker.io)"
    probe = subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", "mount", "-t", "tmpfs", "none", "/mnt"], check=False
    )
    return "no Docker engine runs, and unshare and mount are not permitted" if probe.returncode else None


def pip_settings() -> dict[str, str]:
    """Where pip looks on this machine, without indexes that are folders of it."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {}
    for line in listed.splitlines():  # global.index-url='...', :env:.find-links='...'
        name, _, value = line.partition("=")
        key = name.rpartition(".")[2]
        if key in PIP_SETTINGS:
            words = [word for word in ast.literal_eval(value).split() if not word.startswith("file:")]
            found[key] = " ".join(words)
    return {key: value for key, value in found.items() if value} | {"cert": CERTIFICATES}


def control_groups() -> set[Path]:
    """The control groups of Docker's containers, which dockerd leaves behind."""
    root = Path("/sys/fs/cgroup")
    return {*root.glob("docker/**"), *root.glob("*/docker/**")}


class LocalDocker:
    """Runs docker commands, and what they need.

    Args:
        folder: everything a private engine writes.
    """

    def __init__(self, folder: Path) -> None:
        client = find_client()
        assert client
        self.folder = folder
        self.client = client
        self.env = os.environ | {"DOCKER_BUILDKIT": "1", "BUILDKIT_PROGRESS": "plain"}
        self.engine: subprocess.Popen[bytes] | None = None
        self.made: list[Path] = []
        self.groups = control_groups()

    def start(self) -> None:
        """Start an engine, unless one runs, and make the base image."""
        if not engine_runs(self.client):
            self._start_engine()
        self._make_base()

    def _start_engine(self) -> None:
        for name in PRIVATE:
            if not Path(name).exists():
                Path(name).mkdir()
                self.made.append(Path(name))
        address = f"unix://{self.folder}/docker.sock"
        self.env |= {
            "DOCKER_HOST": address,
            "DOCKER_CONFIG": str(self.folder / "client"),
            "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin",
        }
        # all its processes and mounts end with the namespaces
        unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        hide = "".join(f"mount -t tmpfs none {name}; " for name in PRIVATE)
        # no bridge: no rule and no device of the host's network is touched
        dockerd = ["dockerd", "-H", address, "--iptables=false", "--ip6tables=false", "--bridge=none"]
        for option, name in (("data-root", "data"), ("exec-root", "exec"), ("pidfile", "dockerd.pid")):
            dockerd += [f"--{option}", str(self.folder / name)]
        with (self.folder / "dockerd.log").open("wb") as log:
            self.engine = subprocess.Popen(
                [*unshare, "sh", "-ec", f'{hide}exec "$@"', "_", *dockerd],
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        end = time.monotonic() + 60
        while self.run("version", expect=None).returncode:
            assert self.engine.poll() is None and time.monotonic() < end, (self.folder / "dockerd.log").read_text()
            time.sleep(0.2)

    def _make_base(self) -> None:
        """Debian with Python, this machine's certificate authorities and its folders of wheels."""
        command = ["mmdebstrap", "--variant=minbase", f"--include={PACKAGES}"]
        command += [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "man", "locale")]
        authorities = os.environ.get("SSL_CERT_FILE") or ssl.get_default_verify_paths().cafile
        if authorities:
            command.append(f"--customize-hook=upload {authorities} {CERTIFICATES}")
        for place in pip_settings().get("find-links", "").split():
            if Path(place).is_dir():
                command.append(f'--customize-hook=mkdir -p "$1{Path(place).parent}"')
                command.append(f"--customize-hook=copy-in {place} {Path(place).parent}")
        with (self.folder / "mmdebstrap.log").open("wb") as log:
            debian = subprocess.Popen([*command, SUITE, "-"], stdout=subprocess.PIPE, stderr=log)
            imported = subprocess.run(
                [self.client, "import", "-", BASE], env=self.env, stdin=debian.stdout, capture_output=True, check=False
            )
            code = debian.wait()
        assert code == 0, (self.folder / "mmdebstrap.log").read_text()[-2000:]
        assert imported.returncode == 0, imported.stderr

    def run(self, *command: str, expect: int | None = 0) -> subprocess.CompletedProcess[str]:
        """Run a docker command to its end; its output."""
        done = subprocess.run(
            [self.client, *command],
            env=self.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert expect is None or done.returncode == expect, done.stdout[-3000:] + done.stderr[-6000:]
        return done

    def stop(self, *images: str) -> None:
        """Remove the images; end a private engine and remove all it wrote."""
        if not self.engine:
            self.run("image", "rm", "--force", BASE, *images, expect=None)
            return
        inner = Path(f"/proc/{self.engine.pid}/task/{self.engine.pid}/children").read_text().split()
        try:
            if inner:  # dockerd itself ends its containers and their control groups
                os.kill(int(inner[0]), 15)
                self.engine.wait(timeout=30)
        except subprocess.TimeoutExpired:
            pass
        finally:
            self.engine.kill()
            self.engine.wait()
        shutil.rmtree(self.folder)
        for path in [*self.made, *sorted(control_groups() - self.groups, reverse=True)]:
            path.rmdir()
