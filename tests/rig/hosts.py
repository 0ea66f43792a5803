"""Several hosts made of one machine: each a network namespace on a bridge and a host name. Needs root and iproute2.

All of the file system is shared by them, as a cluster's storage is.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO


class Hosts:
    """Hosts `names`, with the addresses `net`.11, `net`.12, ...; the machine itself is `net`.1."""

    def __init__(self, bridge: str, net: str, names: Sequence[str]) -> None:
        """`bridge`: what the network devices and namespaces are called after; at most 12 characters."""
        self.bridge, self.net, self.names = bridge, net, tuple(names)

    def up(self) -> None:
        """Make the network between the hosts."""
        do("ip", "link", "add", self.bridge, "type", "bridge")
        do("ip", "addr", "add", f"{self.net}.1/24", "dev", self.bridge)
        do("ip", "link", "set", self.bridge, "up")
        for name in self.names:
            self._add(name)

    def down(self) -> None:
        """Kill what runs on the hosts and take their network away."""
        for name in self.names:
            self.signal(name, signal.SIGKILL)
            do("ip", "link", "del", self._cable(name), check=False)  # else it lives on until the last process is gone
            do("ip", "netns", "del", self.space(name), check=False)
        do("ip", "link", "del", self.bridge, check=False)

    def address(self, name: str) -> str:
        return f"{self.net}.{self.names.index(name) + 11}"

    def space(self, name: str) -> str:
        """The name of a host's network namespace."""
        return f"{self.bridge}-{name}"

    def inside(self, name: str, *command: str) -> list[str]:
        """The command line that runs `command` in a host's network."""
        return [
            "nsenter",
            f"--net=/var/run/netns/{self.space(name)}",
            *command,
        ]  # not `ip netns exec`: it hides cgroups

    def start(self, name: str, *command: str, env: Mapping[str, str], cwd: Path, log: IO[str]) -> subprocess.Popen[str]:
        """Start a command in a host's network and under its name."""
        named = ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', name, *command]
        return subprocess.Popen(
            self.inside(name, *named), env=dict(env), cwd=cwd, stdout=log, stderr=subprocess.STDOUT, text=True
        )

    def processes(self, name: str) -> list[int]:
        """The ids of all processes on a host."""
        return [int(pid) for pid in do("ip", "netns", "pids", self.space(name), check=False).split()]

    def signal(self, name: str, number: signal.Signals) -> None:
        """Send a signal to every process on a host; SIGKILL is as if its power failed."""
        for pid in self.processes(name):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def cut(self, name: str) -> None:
        """Pull a host's cable."""
        do("ip", "link", "set", self._cable(name), "down")

    def heal(self, name: str) -> None:
        """Put it back."""
        do("ip", "link", "set", self._cable(name), "up")

    def _add(self, name: str) -> None:
        space, cable = self.space(name), self._cable(name)
        do("ip", "netns", "add", space)
        do("ip", "link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", space)
        do("ip", "link", "set", cable, "master", self.bridge, "up")
        do("ip", "-n", space, "link", "set", "lo", "up")
        do("ip", "-n", space, "addr", "add", f"{self.address(name)}/24", "dev", "eth0")
        do("ip", "-n", space, "link", "set", "eth0", "up")

    def _cable(self, name: str) -> str:
        """The end of a host's cable that is in the switch."""
        return f"{self.bridge}-{name}"


def do(*command: str, check: bool = True) -> str:
    """Run a command to its end and return what it printed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr}")
    return done.stdout
