"""The other processes of a trial that spans several GPUs: started, watched and ended by the first one.

None outlives it: each ends itself when its parent is gone (`follow`), and the first ends when one of them is.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch
import torch.distributed as dist

from cvtune.errors import CvtuneError, DataError
from cvtune.team import Team, join, leave

LOST_EXIT = 87
GRACE_S = 30.0  # for the first process to notice by itself that another is gone
ERRORS: dict[str, type[Exception]] = {
    "oom_gpu": torch.OutOfMemoryError,
    "oom_host": MemoryError,
    "data_error": DataError,
}


class ProcessLost(Exception):
    """Another process of the trial died without a word: killed, or its memory was taken."""


class Crew:
    """The processes beside this one, and the team that all of them are.

    Raises (when made):
        ProcessLost: one of them did not come up.
        Exception: what it said.
    """

    def __init__(self, size: int) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="cvtune-team-")
        self._place, self._closing = Path(self._folder.name), False
        line = [sys.executable, "-m", "cvtune.follow", str(size), str(self._place)]
        self._others = [subprocess.Popen([*line, str(rank)], stdin=subprocess.DEVNULL) for rank in range(1, size)]
        try:
            self._await_all()
            self.team: Team = join(0, size, self._place)
        except BaseException:
            self._end()
            raise
        threading.Thread(target=self._watch, name="crew", daemon=True).start()

    def cause(self, error: Exception) -> Exception:
        """What really happened where this process met `error`: another one may have failed first. Ends the others."""
        until = time.monotonic() + 2.0
        while self._fallen() is None and isinstance(error, RuntimeError) and time.monotonic() < until:
            time.sleep(0.05)  # its end is seen by the ring before it is seen by us
        rank = self._fallen()
        found = error if rank is None else said(self._place, rank)
        self._end()
        return found

    def close(self) -> None:
        """Send the others home, who wait for orders."""
        if not self._closing:
            with contextlib.suppress(RuntimeError, subprocess.TimeoutExpired):  # one has gone just now
                self.team.order("end")
                for other in self._others:
                    other.wait(timeout=5.0)
            self._end()

    def _await_all(self) -> None:
        ready = [self._place / f"ready-{rank}" for rank in range(1, len(self._others) + 1)]
        while not all(path.exists() for path in ready):
            if (rank := self._fallen()) is not None:
                raise said(self._place, rank)
            time.sleep(0.05)

    def _fallen(self) -> int | None:
        return next((rank for rank, other in enumerate(self._others, 1) if other.poll() is not None), None)

    def _watch(self) -> None:
        while self._fallen() is None:
            time.sleep(0.5)
        if self._closing:
            return
        # Between CPUs the ring breaks by itself. Between GPUs this process may wait for good: NCCL is told to give up.
        if torch.cuda.is_available():
            dist.distributed_c10d._abort_process_group()
        time.sleep(GRACE_S)
        if not self._closing:
            os._exit(LOST_EXIT)

    def _end(self) -> None:
        self._closing = True
        for other in self._others:
            other.kill()
            other.wait()
        leave()
        self._folder.cleanup()


def tell(folder: Path, rank: int, reason: str, message: str) -> None:
    """Of another process: leave word of why it ends."""
    (folder / f"failed-{rank}").write_text(json.dumps([reason, message]))


def said(folder: Path, rank: int) -> Exception:
    """The error that process `rank` left word of; `ProcessLost` where it left none."""
    try:
        reason, message = json.loads((folder / f"failed-{rank}").read_text())
    except (OSError, ValueError):
        return ProcessLost(f"process {rank} of the trial was lost")
    return ERRORS.get(reason, CvtuneError)(f"process {rank} of the trial: {message}")
