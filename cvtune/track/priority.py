"""The processes that deliver a study give way to those that train it."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

NICE = 19  # behind the trials, which Ray starts at 15
SESSION_NICE = 12  # a session at 0 that wants a CPU too gets 94 % of it (weights 1024 and 70, sched(7))


def give_way(pid: int) -> None:
    """Put a process of ours behind all others.

    Where Linux shares CPUs out by session (autogroup, which most distributions have switched on), niceness counts
    among the processes of one session only, and a syncer would get as much as all trials of a node together. So a
    session that the process leads is put behind the others too. One that it does not lead is somebody's shell.
    """
    with contextlib.suppress(OSError):  # it may be gone
        os.setpriority(os.PRIO_PROCESS, pid, max(NICE, os.getpriority(os.PRIO_PROCESS, pid)))
        if os.getsid(pid) == pid:
            Path(f"/proc/{pid}/autogroup").write_text(str(SESSION_NICE))
