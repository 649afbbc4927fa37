"""A cluster of shell scripts: `sbatch`, `srun` and the like that note how they were called."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "tools" / "launch.sh"

NOTE = r"""#!/bin/bash
printf '%s\0' "${0##*/}" "$@" >>"$CALLS"; printf '\n\0' >>"$CALLS"
"""
SBATCH = 'if (( $(grep -zc "^sbatch$" "$CALLS") > ${SBATCH_ACCEPTS:-9} )); then echo "sbatch: no" >&2; exit 1; fi\n'
SBATCH += 'echo $((100 + $(grep -zc "^sbatch$" "$CALLS")))\n'
# runs the command with the task's own variables, or only plays one that ends with SRUN_CODE
SRUN = r"""
if [[ $1 == --help ]]; then echo "${SRUN_HELP:-}"; exit; fi
while [[ $1 == --* ]]; do shift; done
if [[ -z ${SRUN_CODE:-} ]]; then SLURM_NODEID=0 exec "$@"; fi
echo "$SRUN_CODE" >"$SOLOPO_EXIT_CODES/0"
if [[ -n ${SRUN_SAVES:-} ]]; then mkdir -p "$OUTPUT/checkpoints/step_$SLURM_RESTART_COUNT"; fi
if [[ -n ${SRUN_KILLS:-} ]]; then trap 'exit $SRUN_CODE' USR1; kill -"$SRUN_KILLS" $PPID; while :; do sleep 0.1; done; fi
exit "$SRUN_CODE"
"""
SCONTROL = "if [[ $1 == show ]]; then echo localhost; fi\n"
# what follows the image is the task's command
ENGINE = 'if [[ $1 == info ]]; then exit ${DOCKER_INFO:-1}; fi\nwhile [[ $1 != my-image* && $1 != docker://* ]]; do shift; done\nshift\nexec "$@"\n'
PYTHON = 'printf \'%s\\0\' "$@" >"$ARGUMENTS"\n'


class StubCluster:
    """Runs tools/launch.sh and its batch scripts on a PATH of stubs."""

    def __init__(self, folder: Path) -> None:
        self.bin, self.output = folder / "bin", folder / "out put"
        self.calls_file, self.arguments_file = folder / "calls", folder / "arguments"
        self.job = os.getpid()  # decides the port: no two test processes at once may share it
        self.bin.mkdir()
        self.calls_file.touch()
        for name, body in {"sbatch": SBATCH, "srun": SRUN, "scontrol": SCONTROL, "squeue": "", "scancel": ""}.items():
            self.add(name, body)
        self.env = {
            "PATH": f"{self.bin}:/usr/bin:/bin",
            "PYTHON": sys.executable,
            "CALLS": str(self.calls_file),
            "ARGUMENTS": str(self.arguments_file),
            "OUTPUT": str(self.output),
        }

    def add(self, name: str, body: str) -> None:
        """Put a command on the PATH."""
        (self.bin / name).write_text(NOTE + body)
        (self.bin / name).chmod(0o755)

    def add_container_runtime(self, name: str) -> None:
        """A `docker` or `apptainer` that runs the command outside any container, with a `python` that notes it."""
        self.add(name, ENGINE)
        self.add("python", PYTHON)

    def launch(self, *arguments: str, cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess[str]:
        """Run tools/launch.sh."""
        command = [str(LAUNCH), *arguments]
        return subprocess.run(
            command, cwd=cwd, env=self.env | env, capture_output=True, text=True, check=False, timeout=120
        )

    def script(self, *arguments: str, **env: str) -> str:
        """The batch script of a dry run."""
        done = self.launch("--dry-run", *arguments, **env)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    def run_job(self, script: str, start: int = 0, **env: str) -> subprocess.CompletedProcess[str]:
        """Run a batch script as Slurm does on the first node."""
        self.output.joinpath("slurm").mkdir(parents=True, exist_ok=True)
        slurm = {"SLURM_JOB_ID": str(self.job), "SLURM_JOB_NODELIST": "node-[a-b]", "SLURM_RESTART_COUNT": str(start)}
        return subprocess.run(
            ["bash", "-c", script], env=self.env | slurm | env, capture_output=True, text=True, check=False, timeout=120
        )

    def calls(self, name: str) -> list[list[str]]:
        """The arguments of each call of a stub so far."""
        calls = [call.split("\0")[:-1] for call in self.calls_file.read_text().split("\n\0")[:-1]]
        return [call[1:] for call in calls if call[0] == name]
