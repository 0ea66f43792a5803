"""The syncer against a stand-in server that misbehaves: nothing lost, nothing twice, and what it says is true."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from cvtune.durable import write_whole
from cvtune.history import load
from tests.tracking.delivery import (
    CANARY,
    ENDS_S,
    assert_clean,
    assert_delivered,
    history_posts,
    run_study,
    start_sync,
    sync,
)
from tests.tracking.wandb_server import WandbServer, wandb_server

pytestmark = pytest.mark.long


@pytest.fixture
def server() -> Iterator[WandbServer]:
    with wandb_server(CANARY) as found:
        yield found


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a real study that ran to its end with tracking off."""
    tmp = tmp_path_factory.mktemp("trained")
    driver = run_study(tmp, "tracking.mode=off")
    said, _ = driver.communicate(timeout=900)
    assert driver.returncode == 0, said
    assert not (tmp / "studies" / "digits" / "wandb").exists()
    return tmp / "studies" / "digits"


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    copy = tmp_path / "digits"
    shutil.copytree(trained, copy, ignore=shutil.ignore_patterns("checkpoints"))
    return copy


def when(server: WandbServer, requests: int, mood: str) -> threading.Thread:
    """Change the mood once so many more requests were answered."""
    target, until = len(server.requests) + requests, time.monotonic() + ENDS_S

    def wait() -> None:
        while len(server.requests) < target and time.monotonic() < until:
            time.sleep(0.005)
        server.behave(mood)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


# A server in good order


def test_a_study_arrives_whole_and_nothing_else_leaves(server: WandbServer, folder: Path) -> None:
    sync(folder, server)
    assert_delivered(folder, server)
    assert {artifact.type for artifact in server.artifacts} >= {"dataset", "results", "model"}
    assert_clean(server, folder)
    rows = {name: run.rows for name, run in server.runs.items()}
    posts = history_posts(server)
    sync(folder, server)  # there is nothing new
    assert history_posts(server) == posts
    assert {name: run.rows for name, run in server.runs.items()} == rows


def test_two_syncers_at_once(server: WandbServer, folder: Path) -> None:
    both = [start_sync(folder, server) for _ in range(2)]
    said = [process.communicate(timeout=ENDS_S)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert any("another" in text for text in said), said
    assert_delivered(folder, server)
    assert all(run.opened <= 2 for run in server.runs.values())


# A server in bad order


@pytest.mark.parametrize("mood", ["refuse", "500", "401"])
def test_a_syncer_that_finds_no_server_ends_and_says_so(server: WandbServer, folder: Path, mood: str) -> None:
    server.behave(mood)
    said = sync(folder, server, code=None)
    assert "cvtune sync" in said and "Traceback" not in said and CANARY not in said
    assert not server.runs
    server.behave("fine")
    sync(folder, server)
    assert_delivered(folder, server)


@pytest.mark.parametrize("mood", ["429", "401"])
def test_rows_that_are_not_taken_are_not_delivered(server: WandbServer, folder: Path, mood: str) -> None:
    """All else is answered, and W&B's client ends such a run without an error."""
    server.behave(mood, only="/file_stream")
    said = sync(folder, server, code=None)
    assert "cvtune sync" in said and "Traceback" not in said
    assert server.runs and not any(run.rows for run in server.runs.values())
    server.behave("fine")
    sync(folder, server)
    assert_delivered(folder, server)


@pytest.mark.parametrize("mood", ["silent", "401"])
def test_an_outage_in_the_middle_loses_nothing(server: WandbServer, folder: Path, mood: str) -> None:
    """It never comes back within this syncer's time: who then says that all was delivered has lied."""
    gone = when(server, random.Random(mood).randint(12, 40), mood)
    said = sync(folder, server, code=None)
    gone.join()
    assert "cvtune sync" in said and "Traceback" not in said and CANARY not in said
    assert server.runs, "the outage came before anything"
    server.behave("fine")
    sync(folder, server)
    assert_delivered(folder, server)


@pytest.mark.parametrize("mood", ["refuse", "500"])
def test_a_short_outage_is_outlasted(server: WandbServer, folder: Path, mood: str) -> None:
    """Whether the syncer waits it out or gives up: what it says is true, and the next one completes it."""
    when(server, random.Random(mood).randint(5, 40), mood).join(1)
    process = start_sync(folder, server)
    until = time.monotonic() + ENDS_S
    while server.mood == "fine" and process.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(3)
    server.behave("fine")
    said, _ = process.communicate(timeout=ENDS_S)
    if process.returncode == 0:
        assert_delivered(folder, server)
    sync(folder, server)
    assert_delivered(folder, server), said


def test_slow_answers_are_waited_for(server: WandbServer, folder: Path) -> None:
    server.slow_s = 0.2  # each
    server.behave("slow")
    sync(folder, server)
    assert_delivered(folder, server)


# A syncer that is killed


def test_a_syncer_that_is_killed_again_and_again(server: WandbServer, folder: Path) -> None:
    rng, kills = random.Random(0), 0
    for _ in range(6):
        process = start_sync(folder, server)
        target, until = len(server.requests) + rng.randint(1, 25), time.monotonic() + ENDS_S
        while len(server.requests) < target and process.poll() is None and time.monotonic() < until:
            time.sleep(0.005)
        kills += process.poll() is None
        kill(process)
        for run in server.runs.values():
            assert [row["_step"] for row in run.rows] == sorted({row["_step"] for row in run.rows})
    assert kills >= 3, "the kills came too late to prove anything"
    sync(folder, server)
    assert_delivered(folder, server)


def kill(process: subprocess.Popen[str]) -> None:
    """SIGKILL for its process group: W&B's service, in a session of its own, has to notice by itself."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


# A study that is running


class Driver:
    """Writes the journal of a finished study anew, as its owner did: line by line, with torn lines in between."""

    def __init__(self, folder: Path, first: int) -> None:
        (self.journal,) = (folder / "journal").glob("*.jsonl")
        self.lines = self.journal.read_bytes().splitlines(keepends=True)
        self.folder, self.at = folder, first
        self.journal.write_bytes(b"".join(self.lines[:first]))
        self.lease(released=False)

    def lease(self, released: bool) -> None:
        me: dict[str, Any] = {"format": 1, "term": 1, "host": socket.gethostname(), "pid": os.getpid(), "beat": 0}
        me |= {"started": psutil.Process().create_time(), "heartbeat": time.time(), "released": released}
        write_whole(self.folder / "lease.json", json.dumps(me))

    def write(self, lines: int) -> None:
        for line in self.lines[self.at : self.at + lines]:
            half = len(line) // 2
            for part in (line[:half], line[half:]):
                with self.journal.open("ab") as file:
                    file.write(part)
                time.sleep(0.01)
        self.at += lines

    def end(self) -> None:
        self.write(len(self.lines) - self.at)
        self.lease(released=True)


def test_a_syncer_that_watches_follows_a_running_study_to_its_end(server: WandbServer, folder: Path) -> None:
    driver = Driver(folder, first=12)
    process = start_sync(folder, server, "--watch")
    until = time.monotonic() + ENDS_S
    while not any(run.asked["jobType"] == "trial" and run.rows for run in list(server.runs.values())):
        assert process.poll() is None and time.monotonic() < until, "nothing is shown while the study runs"
        time.sleep(0.2)
    while driver.at < len(driver.lines):
        driver.write(10)
        time.sleep(0.5)
    assert process.poll() is None
    driver.end()
    said, _ = process.communicate(timeout=ENDS_S)
    assert process.returncode == 0, said
    assert_delivered(folder, server)


def test_watching_syncers_are_killed_while_the_study_runs(server: WandbServer, folder: Path) -> None:
    driver, rng = Driver(folder, first=4), random.Random(0)
    while driver.at < len(driver.lines):
        process = start_sync(folder, server, "--watch")
        target, until = len(server.requests) + rng.randint(5, 30), time.monotonic() + 12
        while len(server.requests) < target and time.monotonic() < until:
            driver.write(1)
            time.sleep(0.2)
        kill(process)
    driver.end()
    sync(folder, server, "--watch")
    assert_delivered(folder, server)


def test_a_study_that_is_interrupted_has_no_crashed_run(server: WandbServer, folder: Path) -> None:
    """What is not over is preempted; when the study goes on, the same runs do, and keep the best score they had."""
    events = falling(folder)
    going = (at for at, event in enumerate(events) if event["kind"] == "epoch" and event["step"] == 2)
    driver = Driver(folder, first=next(at for at in going if events[at].get("reason") is None) + 1)
    driver.lease(released=True)
    assert any(record.epochs and record.reason is None for record in load(folder).trials.values())
    sync(folder, server)
    assert_delivered(folder, server)
    before = dict(server.runs)
    driver.end()
    sync(folder, server)
    assert_delivered(folder, server)
    assert before.keys() < server.runs.keys()


def falling(folder: Path) -> list[dict[str, Any]]:
    """Let every trial's accuracy fall from report to report, so that its first one is its best. Returns the events."""
    (journal,) = (folder / "journal").glob("*.jsonl")
    events = [json.loads(line) for line in journal.read_bytes().splitlines()]
    lines = []
    for event in events:
        if event["kind"] == "epoch":
            event["val_accuracy"] = 0.9 - 0.1 * event["step"]
        body = json.dumps({key: value for key, value in event.items() if key != "crc"}, separators=(",", ":"))[:-1]
        lines.append(f'{body},"crc":"{zlib.crc32(body.encode()):08x}"}}\n')
    journal.write_text("".join(lines))
    return events
