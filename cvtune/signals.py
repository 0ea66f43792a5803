"""Signals that end a study in good order."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class Signals:
    """The first of SIGINT, SIGTERM and SIGUSR1 that came.

    A person who presses Ctrl-C again ends the process at once. A second SIGTERM or SIGUSR1 changes nothing: batch
    systems and launch scripts send them twice, and the orderly end is under way.
    """

    number: int | None = None

    def install(self) -> None:
        """Take the signals, if this is the main thread: Python allows it only there."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
                signal.signal(number, self)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.number = self.number or number
        signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextlib.contextmanager
def signals() -> Iterator[Signals]:
    """Catch signals while a study runs."""
    caught = Signals()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    caught.install()
    try:
        yield caught
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)


def exit_code(signal_number: int) -> int:
    """130 after SIGINT, 75 (try again) after SIGTERM and SIGUSR1."""
    return 130 if signal_number == 2 else 75
