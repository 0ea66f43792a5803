"""The processes that deliver a study give way to those that train it."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

NICE = 19  # behind the trials, which Ray starts at 15
SESSION_NICE = 12  # a session at 0 that wants a CPU too gets 94 % of it (weights 1024 and 70)


def give_way(beside_training: bool) -> None:
    """Put this process, and those that it starts from now on, behind all others.

    Beside training it gets the scheduling class for what nobody waits for: at niceness 19 it would still take 29 % of a
    busy CPU from a trial at niceness 15, so it takes 8 % (weights 15, 36 and 3; see sched(7)).
    """
    os.nice(max(0, NICE - os.nice(0)))
    if beside_training and hasattr(os, "SCHED_IDLE"):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    session_gives_way(os.getpid())


def session_gives_way(pid: int) -> None:
    """Put the session that a process leads behind other sessions; one that it does not lead is somebody's shell.

    Where Linux shares CPUs out by session (autogroup, which most distributions have switched on), niceness and class
    count among the processes of one session only, and a syncer would get as much as all trials of a node together.
    """
    with contextlib.suppress(OSError):  # it is gone, or this is no Linux
        if os.getsid(pid) == pid:
            Path(f"/proc/{pid}/autogroup").write_text(str(SESSION_NICE))
