"""Pulse: a thread of the worker that looks for a reason to stop and notices when training makes no progress."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

HUNG_FILE = "hung"
HUNG_EXIT = 86
_PR_SET_PDEATHSIG = 1


class Pulse:
    """Answers `stop` for `train`, and calls `hung` where a trial stands still.

    What the trial does costs a few instructions per batch; looking at files and clocks is left to a thread of this
    process. On a network file system a stop file that another machine wrote may be seen up to a minute later.

    Args:
        stop_file: once it exists, `stop` says so. A file system that fails for a while is asked again.
        deadline: `time.time()` from which on `stop` says so; None: never.
        limit_s: seconds without `stop` or `beat` within `busy` after which a trial is taken for hung.
        hung: called once then, in the thread, while the trial still stands (see `die_hung`).
        every_s: seconds between two looks.
    """

    def __init__(
        self, stop_file: Path, deadline: float | None, limit_s: float, hung: Callable[[], None], every_s: float = 1.0
    ) -> None:
        self._stop_file, self._deadline, self._limit, self._hung = stop_file, deadline, limit_s, hung
        self._every = every_s
        self._busy, self._stopped, self._beats = False, False, 0
        self.overdue = False  # whether it is the deadline that stops
        self._closed = threading.Event()
        self._look()  # a trial that begins too late does not train a first batch
        self._thread = threading.Thread(target=self._watch, name="pulse", daemon=True)
        self._thread.start()

    def stop(self) -> bool:
        """Whether to stop. Asking is itself a sign of progress."""
        self._beats += 1
        return self._stopped

    def beat(self) -> None:
        """Progress where nobody asks whether to stop."""
        self._beats += 1

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """While progress is expected. Outside nothing is: a process that waits for its next trial is not hung."""
        self._beats += 1
        self._busy = True
        try:
            yield
        finally:
            self._busy = False

    @contextlib.contextmanager
    def unwatched(self) -> Iterator[None]:
        """While something inside of `busy` may rightly take long without a sign: decoding a large set of images."""
        self._busy = False
        try:
            yield
        finally:
            self._busy = True

    def close(self) -> None:
        """End the thread; the answer of `stop` stays as it is."""
        self._closed.set()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout=5.0)  # it may be in a file system that does not answer

    def _watch(self) -> None:
        beats, still, called, looked = self._beats, 0.0, False, time.monotonic()
        while not self._closed.wait(self._every):
            self._look()
            # Time counts only as far as this thread ran too: a job that was suspended as a whole is not hung.
            looked, passed = time.monotonic(), min(time.monotonic() - looked, 2 * self._every)
            still = still + passed if self._busy and beats == self._beats else 0.0
            beats = self._beats
            if still > self._limit and not called:
                called = True
                self._hung()

    def _look(self) -> None:
        if self._deadline is not None and time.time() >= self._deadline:
            self._stopped = self.overdue = True
        with contextlib.suppress(OSError):
            self._stopped = self._stopped or self._stop_file.exists()


def die_hung(folder: Path) -> NoReturn:
    """End this process with exit code `HUNG_EXIT`, saying in the attempt's folder where it hung.

    A file `hung` appears there, and `log.txt` gets the stacks of all threads. Nothing is cleaned up: whatever hangs
    would hang that too.
    """
    try:
        with contextlib.suppress(OSError):
            (folder / HUNG_FILE).touch()
        with contextlib.suppress(OSError), (folder / "log.txt").open("a") as log:
            log.write("No progress, so this process ends itself. Where its threads stand:\n")
            log.flush()
            faulthandler.dump_traceback(log, all_threads=True)
    finally:
        os._exit(HUNG_EXIT)


def die_with_parent(by: int = signal.SIGKILL) -> None:
    """Have this process ended by a signal once the thread that forked it ends, however it does; on Linux, else nothing.

    A forked process holds its parent's connections. Where it outlives the parent because it hangs, whoever waits at
    their other ends, as Ray does, never learns that the parent is gone.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, by)
