"""Signals: the first one asks, a repeated one of a batch system changes nothing, a second Ctrl-C ends at once."""

import os
import signal
import subprocess
import sys
import time

import pytest

SCRIPT = """
import signal, time
from cvtune.signals import signals

with signals() as caught:
    print("ready", flush=True)
    until = time.monotonic() + 120
    while caught.number is None and time.monotonic() < until:
        time.sleep(0.01)
    print("asked", flush=True)
    time.sleep(1.0)  # the orderly end
    print("done", caught.number, flush=True)
"""


def run(first: signal.Signals, second: signal.Signals) -> tuple[int, str]:
    process = subprocess.Popen([sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    os.kill(process.pid, first)
    assert process.stdout.readline() == "asked\n"
    time.sleep(0.1)
    os.kill(process.pid, second)
    output, _ = process.communicate(timeout=120)
    return process.returncode, output


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGUSR1])
def test_a_repeated_signal_of_a_launcher_lets_the_orderly_end_finish(
    first: signal.Signals, second: signal.Signals
) -> None:
    assert run(first, second) == (0, f"done {first.value}\n")


def test_a_second_ctrl_c_ends_the_process_at_once() -> None:
    assert run(signal.SIGINT, signal.SIGINT) == (-signal.SIGINT, "")
