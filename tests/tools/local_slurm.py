"""A real Slurm of two nodes on this machine: each node in namespaces of its own, nothing outside a folder changed."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

NODES = ("n1", "n2")
CPUS = 4
"""CPU cores that each node says it has."""
GPUS = 2
"""Devices that each node says are GPUs."""
COMMANDS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "unshare", "mknod")

CONF = """
ClusterName=local
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
# no cgroups, no binding: works in any container or virtual machine
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
MpiDefault=none
PropagateResourceLimits=NONE
MailProg=/bin/true
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=bf_interval=1,sched_interval=2,batch_sched_delay=0,defer_batch
ReturnToService=2
KillWait=5
MinJobAge=3600
SlurmctldTimeout=10
SlurmdTimeout=10
AccountingStorageType=accounting_storage/none
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
GresTypes=gpu
{nodes}
PartitionName=normal Nodes=ALL Default=YES DefaultTime=10 PriorityTier=1 PreemptMode=REQUEUE GraceTime=60
PartitionName=urgent Nodes=ALL DefaultTime=10 PriorityTier=2 PreemptMode=OFF
"""


def until(what: str, condition: Callable[[], object], seconds: float = 60) -> None:
    """Wait for a condition to become true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {seconds:g} s"
        time.sleep(0.1)


def why_not() -> str | None:
    """The reason why Slurm cannot run here, if there is one."""
    if os.geteuid() != 0:
        return "Slurm's daemons need root"
    missing = [name for name in COMMANDS if not shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")]
    if missing:
        return f"not installed: {', '.join(missing)} (apt-get install munge slurm-client slurmctld slurmd)"
    probe = subprocess.run(["unshare", "--uts", "--mount", "--pid", "--fork", "--mount-proc", "true"], check=False)
    return "no namespaces for nodes: unshare is not permitted" if probe.returncode else None


def free_port() -> int:
    """A TCP port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class LocalSlurm:
    """Starts and stops the daemons, and asks them.

    Args:
        folder: everything they write.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
        self.env = os.environ | {
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin",
        }

    def start(self) -> None:
        """Configure, start, and wait until both nodes are idle."""
        folder = self.folder
        (folder / "state").mkdir(parents=True)
        folder.chmod(0o755)
        (folder / "munge.key").write_bytes(os.urandom(1024))
        (folder / "munge.key").chmod(0o600)
        for i in range(GPUS):  # slurmd insists on device files: these are /dev/null
            subprocess.run(["mknod", folder / f"gpu{i}", "c", "1", "3"], check=True)
        (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu[0-{GPUS - 1}]\n")
        nodes, hosts = [], ["127.0.0.1 localhost"]
        for number, node in enumerate(NODES, start=1):
            address = f"127.0.1.{number}"
            hosts.append(f"{address} {node}")
            nodes.append(
                f"NodeName={node} NodeAddr={address} Port={free_port()} CPUs={CPUS} Gres=gpu:{GPUS} RealMemory=1000"
            )
        (folder / "hosts").write_text("\n".join(hosts) + "\n")
        conf = CONF.format(host=socket.gethostname(), port=free_port(), folder=folder, nodes="\n".join(nodes))
        (folder / "slurm.conf").write_text(conf)
        options = [f"--socket={folder}/munge.sock", f"--key-file={folder}/munge.key", f"--pid-file={folder}/munge.pid"]
        options += [f"--log-file={folder}/munge.log", f"--seed-file={folder}/munge.seed"]
        self._daemon("munged", "munged", "--foreground", "--force", *options)
        until("munge", (folder / "munge.sock").exists)
        self._daemon("slurmctld", "slurmctld", "-D", "-c")
        for node in NODES:
            self.start_node(node)

    def _daemon(self, name: str, *command: str) -> None:
        log = (self.folder / f"{name}.log").open("ab")
        self.daemons[name] = subprocess.Popen(
            command, env=self.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )

    def start_node(self, node: str) -> None:
        """Start a node, with its own host name, hosts file and processes, and wait until it takes jobs."""
        inside = 'mount --bind "$1/hosts" /etc/hosts; hostname "$2"; exec slurmd -D -N "$2"'
        unshare = ["unshare", "--uts", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        self._daemon(node, *unshare, "sh", "-c", inside, "_", str(self.folder), node)
        state = ("sinfo", "-h", "-n", node, "-o", "%T", "-p", "normal")
        until(f"node {node}", lambda: self.ask(*state) in ("idle", "allocated"))  # a job may have waited for it

    def kill_node(self, node: str) -> None:
        """End a node and all its processes at once, as a power cut does."""
        self.daemons[node].kill()
        self.daemons.pop(node).wait()

    def stop(self) -> None:
        """Cancel all jobs and end all daemons; with the nodes' first processes go all others in them."""
        if "slurmctld" in self.daemons:
            self.ask("scancel", "--user=root", "--full")
            self.ask("scancel", "--user=root", "--signal=KILL")
        for name in [*NODES, "slurmctld", "munged"]:
            if daemon := self.daemons.pop(name, None):
                daemon.kill()
                daemon.wait()

    def ask(self, *command: str) -> str:
        """Run a Slurm command and return what it prints; empty where it fails, or has no answer within a minute."""
        try:
            done = subprocess.run(command, env=self.env, capture_output=True, text=True, check=False, timeout=60)
        except subprocess.TimeoutExpired:
            return ""
        return done.stdout.strip() if done.returncode == 0 else ""

    def job(self, job: str) -> dict[str, str]:
        """What ``scontrol show job`` says; a controller that is busy is asked again."""
        shown: dict[str, str] = {}

        def answered() -> bool:
            fields = self.ask("scontrol", "-o", "show", "job", job).split()
            shown.update(field.split("=", 1) for field in fields if "=" in field)
            return bool(shown)

        until(f"job {job}: shown", answered)
        return shown

    def state(self, job: str) -> str:
        """The state of a job, such as RUNNING."""
        return self.job(job)["JobState"]

    def end_of(self, job: str, seconds: float = 120) -> str:
        """Wait until a job has ended and return its state."""
        ends = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        until(f"job {job}: end", lambda: self.state(job) in ends, seconds)
        return self.state(job)

    def leave_minutes(self, job: str, minutes: int) -> None:
        """Set a job's time limit to so many minutes from now, or up to one less."""
        hours, passed, _ = self.job(job)["RunTime"].split(":")
        limit = int(hours) * 60 + int(passed) + minutes
        assert self.ask("scontrol", "update", f"jobid={job}", f"TimeLimit={limit}") == ""
        until("the limit", lambda: self.job(job)["TimeLimit"] == f"00:{limit:02}:00")

    def start_requeued(self, job: str, seconds: float = 60) -> None:
        """Wait until a job is back in the queue, and start it without the two minutes that Slurm lets it wait."""
        until(
            f"job {job}: requeued", lambda: self.job(job)["Restarts"] != "0" and self.state(job) == "PENDING", seconds
        )
        # in the second in which its end was noted, a node takes its new start for the old one
        assert self.ask("scontrol", "update", f"jobid={job}", "StartTime=now+3") == ""
