"""Pulse: stops for a file and for a deadline, notices what hangs, and takes nothing idle or suspended for hung."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path, PosixPath

import pytest

from cvtune.pulse import HUNG_EXIT, HUNG_FILE, Pulse

FAST_S = 0.005
PATIENCE_S = 30.0  # of the tests, with a machine that has other things to do


class Asked(PosixPath):
    """A stop file that counts how often it was looked for; first the file system fails a few times."""

    looks = 0
    failures = 0

    def exists(self) -> bool:
        Asked.looks += 1
        if Asked.looks <= Asked.failures:
            raise OSError(116, "Stale file handle")
        return super().exists()


@pytest.fixture
def stop_file(tmp_path: Path) -> Path:
    Asked.looks = Asked.failures = 0
    return Asked(tmp_path / "stop")


@pytest.fixture
def pulses() -> Iterator[Callable[..., Pulse]]:
    made: list[Pulse] = []

    def make(stop_file: Path, deadline: float | None = None, limit_s: float = 1e9, hung: object = None) -> Pulse:
        made.append(Pulse(stop_file, deadline, limit_s, hung or pytest.fail, every_s=FAST_S))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for pulse in made:
        pulse.close()


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "this never happened"
        time.sleep(FAST_S)


def several_looks(progress: Callable[[], object] = lambda: None) -> None:
    seen = Asked.looks
    until(lambda: bool(progress()) or Asked.looks > seen + 60)


def test_a_stop_file_stops_and_its_going_starts_nothing_again(stop_file: Path, pulses: Callable[..., Pulse]) -> None:
    pulse = pulses(stop_file)
    several_looks()
    assert not pulse.stop()
    stop_file.touch()
    until(pulse.stop)
    stop_file.unlink()
    time.sleep(5 * FAST_S)
    assert pulse.stop()


def test_a_deadline_stops(stop_file: Path, pulses: Callable[..., Pulse]) -> None:
    assert not pulses(stop_file, deadline=time.time() + 1e6).stop()
    until(pulses(stop_file, deadline=time.time() + 0.1).stop)


def test_a_reason_that_is_there_already_stops_before_the_first_batch(
    stop_file: Path, pulses: Callable[..., Pulse]
) -> None:
    assert pulses(stop_file, deadline=time.time() - 1).stop()
    stop_file.touch()
    assert pulses(stop_file).stop()


def test_a_file_system_that_fails_for_a_while_is_asked_again(stop_file: Path, pulses: Callable[..., Pulse]) -> None:
    Asked.failures = 20
    pulse = pulses(stop_file)
    stop_file.touch()
    until(pulse.stop)
    assert Asked.looks > 20


def test_what_stands_still_is_hung_once(stop_file: Path, pulses: Callable[..., Pulse]) -> None:
    calls: list[str] = []
    pulse = pulses(stop_file, limit_s=10 * FAST_S, hung=lambda: calls.append(threading.current_thread().name))
    with pulse.busy():
        until(lambda: bool(calls))
        several_looks()
    assert calls == ["pulse"]
    assert not pulse.stop()  # it goes on looking for reasons to stop
    stop_file.touch()
    until(pulse.stop)


@pytest.mark.parametrize("progress", [Pulse.stop, Pulse.beat])
def test_progress_idleness_and_an_error_are_no_hang(
    stop_file: Path, pulses: Callable[..., Pulse], progress: Callable[[Pulse], object]
) -> None:
    calls: list[None] = []
    pulse = pulses(stop_file, limit_s=20 * FAST_S, hung=lambda: calls.append(None))
    several_looks()
    with pulse.busy():
        several_looks(lambda: progress(pulse))
    with pytest.raises(ValueError, match="trial"), pulse.busy():
        raise ValueError("of a trial")
    several_looks()
    assert not calls


def test_close_ends_the_thread_and_keeps_the_answer(stop_file: Path, pulses: Callable[..., Pulse]) -> None:
    slow = Pulse(stop_file, None, 1e9, pytest.fail, every_s=3600.0)  # type: ignore[arg-type]
    slow.close()
    assert not slow._thread.is_alive()
    quick = pulses(stop_file)
    quick.close()
    stop_file.touch()
    assert not quick._thread.is_alive() and not quick.stop()


HANGING = """
import sys, time
from functools import partial
from pathlib import Path
from cvtune.pulse import Pulse, die_hung

def waits_for_ever():
    print("stands", flush=True)
    time.sleep(3600)

folder, limit = Path(sys.argv[1]), float(sys.argv[2])
pulse = Pulse(folder / "stop", None, limit, partial(die_hung, folder), every_s=0.01)
with pulse.busy():
    waits_for_ever()
"""


def hang(folder: Path, limit_s: float) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", HANGING, str(folder), str(limit_s)]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline() == "stands\n"
    return process


def test_a_hung_process_ends_itself_and_says_where_it_stood(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("epoch 1\n")
    assert hang(tmp_path, 0.1).wait(PATIENCE_S) == HUNG_EXIT
    log = (tmp_path / "log.txt").read_text()
    assert log.startswith("epoch 1\nNo progress") and "in waits_for_ever" in log
    assert (tmp_path / HUNG_FILE).exists()


def test_a_hung_process_ends_even_without_its_folder(tmp_path: Path) -> None:
    assert hang(tmp_path / "gone", 0.1).wait(PATIENCE_S) == HUNG_EXIT


def test_a_process_that_was_suspended_is_not_hung(tmp_path: Path) -> None:
    process = hang(tmp_path, 1.5)
    try:
        time.sleep(0.2)  # the thread has looked meanwhile
        os.kill(process.pid, signal.SIGSTOP)
        time.sleep(2.0)
        os.kill(process.pid, signal.SIGCONT)
        with pytest.raises(subprocess.TimeoutExpired):  # it has most of its limit before it
            process.wait(0.5)
    finally:
        process.kill()
        process.wait()
