"""A real Slurm on one machine: a controller and several nodes, each with a network, a name and a daemon of its own.

    python -m tests.rig.slurm up /tmp/rig     # then: SLURM_CONF=/tmp/rig/slurm.conf sinfo
    python -m tests.rig.slurm down /tmp/rig

Needs root, iproute2 and Debian's slurmctld, slurmd, slurm-client and munge. A node is a network namespace on a bridge,
a host name, and a disk of its own below `local`, where `$SLURM_TMPDIR` lies; all else of the file system is shared by
all nodes, as a cluster's storage is. Nothing of the machine's own Slurm or munge is used or changed.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from tests.rig.hosts import Hosts, do

NODES = ("n1", "n2", "n3")
CPUS, MEMORY_MB = 4, 6000  # of each node, as Slurm believes
NEEDS = ("slurmctld", "slurmd", "sbatch", "munged", "ip", "nsenter", "unshare")
NETWORK = Hosts("cvtrig", "10.77.3", NODES)

CONF = """
ClusterName=rig
SlurmctldHost={host}({net}.1)
MailProg=/bin/true
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={root}/munge/socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool/%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/%n.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
TaskProlog={root}/task_prolog
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SlurmdParameters=config_overrides
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=batch_sched_delay=0,sched_interval=2,sched_min_interval=0,bf_interval=2
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SlurmdTimeout=40
KillWait=20
MinJobAge=3600
DefMemPerCPU=1000
{nodes}
PartitionName=batch Nodes=ALL Default=YES PriorityTier=5 GraceTime=10
PartitionName=urgent Nodes=ALL PriorityTier=9 PreemptMode=OFF
"""
TASK_PROLOG = """#!/bin/sh
# Slurm puts what this prints into the environment of the task.
folder={root}/local/$SLURM_JOB_ID
mkdir -p "$folder" && chmod 700 "$folder"
echo "export SLURM_TMPDIR=$folder"
"""


def missing() -> str | None:
    """Why the rig cannot run here; None if it can."""
    if os.geteuid() != 0:
        return "the Slurm rig needs root"
    absent = [name for name in NEEDS if shutil.which(name) is None]
    return f"the Slurm rig needs {', '.join(absent)} (slurmctld slurmd slurm-client munge iproute2)" if absent else None


class Rig:
    """The cluster whose files lie in `root`. `up` starts it, `down` ends all that it started."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.environment = {**os.environ, "SLURM_CONF": str(root / "slurm.conf")}
        for name in [name for name in self.environment if name.startswith(("SLURM_JOB", "RAY_", "SLURM_TMP"))]:
            del self.environment[name]

    def up(self) -> None:
        self.root.mkdir(parents=True)
        self.root.chmod(0o755)
        self._write_files()
        self._start_munge()
        NETWORK.up()
        subprocess.run(["slurmctld", "-c"], env=self.environment, check=True)
        for node in NODES:
            self.start_daemon(node)
        self.wait_idle()

    def wait_idle(self) -> None:
        self._wait_for(lambda: self.idle() == len(NODES), "all nodes to be idle", 90)

    def down(self) -> None:
        """End the daemons and what they started, by process id; take the networks away."""
        for job in self.run("squeue", "--noheader", "--format=%A", check=False).split():
            self.run("scancel", "--signal=KILL", "--full", job, check=False)
        NETWORK.down()
        for name in ("slurmctld.pid", "munge/pid"):
            self._kill_pidfile(self.root / name)

    def start_daemon(self, node: str) -> None:
        local = f"mount --bind {self.root}/{node}.tmp {self.root}/local"
        inside = f"hostname {node} && {local} && exec slurmd -N {node}"
        own = ["unshare", "--uts", "--mount", "sh", "-c", inside]
        subprocess.run(NETWORK.inside(node, *own), env=self.environment, check=True)

    def mount(self, node: str, source: Path, target: Path) -> None:
        """Show another folder in place of `target` on one node."""
        self._in_mounts(node, "mount", "--bind", str(source), str(target))

    def unmount(self, node: str, target: Path) -> None:
        self._in_mounts(node, "umount", str(target))

    def _in_mounts(self, node: str, *command: str) -> None:
        do("nsenter", f"--mount=/proc/{(self.root / f'{node}.pid').read_text().strip()}/ns/mnt", *command)

    def reach_time_limit(self, job: str) -> None:
        """Move a job's time limit close until it was queued again; its signal comes with Slurm's next look at it."""
        before, limit = self.show(job, "Restarts"), self.show(job, "TimeLimit")
        hours, minutes, _ = (int(part) for part in self.show(job, "RunTime").split(":"))
        self.run("scontrol", "update", f"JobId={job}", f"TimeLimit={hours * 60 + minutes + 2}")
        self._wait_for(lambda: self.show(job, "Restarts") != before, f"job {job} to be queued again", 120, job)
        self.run("scontrol", "update", f"JobId={job}", f"TimeLimit={limit}")

    def hosts(self, job: str) -> set[str]:
        """The nodes of a job."""
        return set(self.run("scontrol", "show", "hostnames", self.show(job, "NodeList")).split())

    def ports(self, node: str, owners: str) -> dict[int, str]:
        """Ports on which processes whose names match `owners` listen for other machines -> the process's name."""
        lines = self.on_node(node, "ss", "-Hltnp").splitlines()
        found = {line.split()[3]: re.findall(r'"(.*?)"', line)[0] for line in lines if re.search(owners, line)}
        return {int(at.rpartition(":")[2]): name for at, name in found.items() if not at.startswith("127.")}

    def kill_node(self, node: str) -> None:
        """As if its power failed: every process in its network ends at once, its daemon included."""
        NETWORK.signal(node, signal.SIGKILL)

    def boot(self, node: str) -> None:
        """Power is back after `kill_node`: the node answers, and its own disk is empty as a node-local one is."""
        for left in (self.root / f"{node}.tmp").iterdir():
            shutil.rmtree(left)
        self.start_daemon(node)

    def cut(self, node: str) -> None:
        NETWORK.cut(node)

    def heal(self, node: str) -> None:
        NETWORK.heal(node)

    def on_node(self, node: str, *command: str, check: bool = True) -> str:
        """Run a command in the network of a node."""
        return do(*NETWORK.inside(node, *command), check=check)

    def run(self, *command: str, check: bool = True, environment: Mapping[str, str] | None = None) -> str:
        """Run one of Slurm's commands against this cluster and return what it printed."""
        variables = {**self.environment, **(environment or {})}
        done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False, timeout=180)
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr or done.stdout}")
        return done.stdout

    def idle(self) -> int:
        """How many nodes are free of jobs and answer."""
        return (
            self.run("sinfo", "--noheader", "--Node", "--partition=batch", "--format=%t", check=False)
            .split()
            .count("idle")
        )

    def state(self, job: str) -> str:
        return self.run("squeue", "--noheader", "--states=all", "--format=%T", f"--jobs={job}", check=False).strip()

    def show(self, job: str, field: str) -> str:
        """One field of `scontrol show job`, for example `ExitCode` or `Restarts`."""
        words = self.run("scontrol", "--oneliner", "show", "job", job).split()
        return next(word.split("=", 1)[1] for word in words if word.startswith(field + "="))

    def wait(self, job: str, *states: str, seconds: float) -> str:
        """Wait until a job is in one of `states` and return which."""
        self._wait_for(lambda: self.state(job) in states, f"job {job} to be {' or '.join(states)}", seconds, job)
        return self.state(job)

    def _wait_for(self, answer: object, what: str, seconds: float, job: str | None = None) -> None:
        assert callable(answer)
        until = time.monotonic() + seconds
        while not answer():
            if time.monotonic() > until:
                now = (
                    self.run("scontrol", "show", "job", job, check=False)
                    if job
                    else self.run("sinfo", "-N", check=False)
                )
                raise TimeoutError(f"waited {seconds:g} s for {what}:\n{now}")
            time.sleep(0.5)

    def _write_files(self) -> None:
        nodes = [
            f"NodeName={name} NodeAddr={NETWORK.address(name)} CPUs={CPUS} RealMemory={MEMORY_MB} State=UNKNOWN"
            for name in NODES
        ]
        conf = CONF.format(root=self.root, host=platform.node(), net=NETWORK.net, nodes="\n".join(nodes))
        (self.root / "slurm.conf").write_text(conf)
        (self.root / "task_prolog").write_text(TASK_PROLOG.format(root=self.root))
        (self.root / "task_prolog").chmod(0o755)
        for name in (
            "state",
            "munge",
            "local",
            *(f"spool/{node}" for node in NODES),
            *(f"{node}.tmp" for node in NODES),
        ):
            (self.root / name).mkdir(parents=True)
        for node in NODES:
            (self.root / f"{node}.tmp").chmod(0o1777)

    def _start_munge(self) -> None:
        folder = self.root / "munge"
        (folder / "key").write_bytes(secrets.token_bytes(1024))
        (folder / "key").chmod(0o400)
        for path in (folder, folder / "key"):
            shutil.chown(path, "munge", "munge")
        options = [f"--key-file={folder}/key", f"--socket={folder}/socket", f"--pid-file={folder}/pid"]
        options += [f"--log-file={folder}/log", f"--seed-file={folder}/seed"]
        subprocess.run(["setpriv", "--reuid=munge", "--regid=munge", "--clear-groups", "munged", *options], check=True)

    def _kill_pidfile(self, file: Path) -> None:
        with contextlib.suppress(OSError, ValueError):
            os.kill(int(file.read_text()), 9)


if __name__ == "__main__":
    if problem := missing():
        sys.exit(problem)
    {"up": Rig(Path(sys.argv[2])).up, "down": Rig(Path(sys.argv[2])).down}[sys.argv[1]]()
