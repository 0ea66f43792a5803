"""Wall clock, CPU time and memory of a command and of everything it starts, daemons included."""

from __future__ import annotations

import contextlib
import subprocess
import time
import uuid
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

SAMPLE_S = 0.2
MEMORY_S = 1.0  # at least; more where a look takes more than 2 % of that
MARKER = "PROCESS_TREE_METER"


@dataclass(frozen=True)
class Usage:
    """What a command took. CPU time and memory are those of its whole tree of processes."""

    returncode: int
    started: float  # seconds since 1970
    wall_s: float
    cpu_s: float
    peak_pss_mb: float


@dataclass(frozen=True)
class Times:
    """CPU seconds of one process when it was last seen: its own, and those of the children it has waited for."""

    parent: int
    own: float
    waited: float
    ended: bool = False


class Meter:
    """Follows the processes whose environment carries this meter's mark, and all their descendants.

    A process that nobody waits for (Ray's workers) loses what it does after its last sample; what a parent did wait
    for (a DataLoader's workers, however short) is exact, for the system hands the children's times to the parent.
    """

    def __init__(self) -> None:
        self.mark = {MARKER: uuid.uuid4().hex}
        self.peak_pss_mb = 0.0
        self._alive: dict[int, psutil.Process] = {}
        self._others: set[int] = set()
        self._last: dict[psutil.Process, Times] = {}
        self._self = psutil.Process()
        self._waited_before = _times(self._self).waited
        self._memory_due = 0.0

    def sample(self) -> int:
        """Look at every process of the tree; returns how many are alive."""
        self._follow()
        for pid, process in list(self._alive.items()):
            try:
                self._last[process] = _times(process)
            except psutil.NoSuchProcess:
                del self._alive[pid]
                continue
            if self._last[process].ended:
                del self._alive[pid]
                self._others.add(pid)  # where no init collects orphans it stays listed for good
        self._last[self._self] = Times(0, 0.0, _times(self._self).waited - self._waited_before)
        if time.monotonic() >= self._memory_due:
            begun = time.thread_time()
            self.peak_pss_mb = max(self.peak_pss_mb, sum(map(_pss_mb, self._alive.values())))
            # The system walks every page of the tree for this, on the cores that are being measured
            self._memory_due = time.monotonic() + max(MEMORY_S, 50 * (time.thread_time() - begun))
        return len(self._alive)

    @property
    def cpu_s(self) -> float:
        """CPU seconds (user and system) of all processes so far. What was waited for counts once."""
        dead: defaultdict[int, list[psutil.Process]] = defaultdict(list)  # by parent, whose `waited` holds theirs
        for process, times in self._last.items():
            if process.pid not in self._alive:
                dead[times.parent].append(process)

        def handed_up(process: psutil.Process) -> float:
            """What its parent waited for. It may have waited for its own children after its last sample."""
            times = self._last[process]
            return times.own + max(times.waited, sum(map(handed_up, dead[process.pid])))

        return sum(
            times.own + max(0.0, times.waited - sum(map(handed_up, dead[process.pid])))
            for process, times in self._last.items()
        )

    def drain(self, limit_s: float) -> None:
        """Go on until the tree is gone, at most `limit_s`; then kill what is left."""
        until = time.monotonic() + limit_s
        while self.sample() and time.monotonic() < until:
            time.sleep(SAMPLE_S)
        for _ in range(50):
            if not self.sample():
                return
            for process in self._alive.values():
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            time.sleep(SAMPLE_S)

    def _follow(self) -> None:
        pids = set(psutil.pids())
        self._others &= pids
        self._alive = {pid: process for pid, process in self._alive.items() if pid in pids}
        for pid in sorted(pids - self._others - self._alive.keys()):
            try:
                process = psutil.Process(pid)
                if process.ppid() in self._alive or self._marked(process):
                    self._alive[pid] = process
                else:
                    self._others.add(pid)
            except psutil.NoSuchProcess:
                continue

    def _marked(self, process: psutil.Process) -> bool:
        try:
            return bool(process.environ().items() >= self.mark.items())
        except (psutil.Error, OSError):  # another user's, the kernel's, or a zombie
            return False


def measure(command: Sequence[str], log: Path, env: Mapping[str, str], linger_s: float = 30.0) -> Usage:
    """Run `command` with its output in `log`. The wall clock ends when it ends; CPU time, when its last daemon does.

    Args:
        linger_s: how long daemons may outlive the command before they are killed.
    """
    meter = Meter()
    with log.open("wb") as out:
        started, clock = time.time(), time.perf_counter()
        root = subprocess.Popen(command, stdout=out, stderr=out, env={**env, **meter.mark}, start_new_session=True)
        try:
            while root.poll() is None:
                meter.sample()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    root.wait(SAMPLE_S)
            wall_s = time.perf_counter() - clock
            meter.drain(linger_s)
        except BaseException:
            root.kill()
            root.wait()
            meter.drain(0)
            raise
    return Usage(root.returncode, started, wall_s, meter.cpu_s, meter.peak_pss_mb)


def _times(process: psutil.Process) -> Times:
    with process.oneshot():
        t = process.cpu_times()
        waited = t.children_user + t.children_system
        return Times(process.ppid(), t.user + t.system, waited, process.status() == psutil.STATUS_ZOMBIE)


def _pss_mb(process: psutil.Process) -> float:
    """Proportional set size: pages shared by n processes count 1/n. 0 for a process that is just going."""
    try:
        return float(process.memory_full_info().pss) / 1e6
    except (psutil.NoSuchProcess, psutil.AccessDenied, OSError):
        return 0.0
