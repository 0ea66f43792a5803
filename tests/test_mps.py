"""Sharing a GPU by NVIDIA's MPS: who starts the daemon, how long it stays. A stand-in for it, real processes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from cvtune import mps

DAEMON = """#!/bin/sh
if [ "$1" = -f ]; then
    echo "$$ sees ${CUDA_VISIBLE_DEVICES-all}" >> "$CUDA_MPS_PIPE_DIRECTORY/begun"
    echo $$ > "$CUDA_MPS_PIPE_DIRECTORY/control"
    exec sleep 1000
fi
kill "$(cat "$CUDA_MPS_PIPE_DIRECTORY/control")"
"""
KEEPER = ["-m", "cvtune.mps"]
JOINER = """
import os, sys, time
from pathlib import Path
from cvtune import mps
print(mps.join(Path(sys.argv[1])), os.environ.get(mps.PIPES), flush=True)
time.sleep(1000)
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for a daemon that is installed; keepers end soon after the last process."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / mps.CONTROL
    program.write_text(DAEMON)
    program.chmod(0o755)
    late = tmp_path / "sitecustomize.py"  # the keeper is a process of its own
    late.write_text("import cvtune.mps; cvtune.mps.LINGERS_S = 1.0\n")
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(__file__).parents[1]}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    monkeypatch.delenv(mps.PIPES, raising=False)
    monkeypatch.setattr(mps, "SITES_OWN", tmp_path / "none")
    yield tmp_path / "mps"
    mps.leave()
    assert gone(tmp_path / "mps")


def gone(place: Path) -> bool:
    """Whether daemon and keeper end within two minutes."""
    until = time.monotonic() + 120
    while time.monotonic() < until:
        if not place.exists() or not ((place / "control").exists() or mps._is_kept(place)):
            return True
        time.sleep(0.1)
    return False


def joiner(place: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", JOINER, str(place)], stdout=subprocess.PIPE, text=True)


def answer(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_one_daemon_serves_all_and_ends_after_the_last_however_it_ended(place: Path) -> None:
    crowd = [joiner(place) for _ in range(3)]
    assert [answer(process) for process in crowd] == [f"True {place}"] * 3
    assert len((place / "begun").read_text().splitlines()) == 1
    assert "sees all" in (place / "begun").read_text()  # numbers of GPUs are the node's
    assert place.stat().st_mode & 0o777 == 0o700
    for process in crowd[:2]:
        process.kill()
        process.wait()
    time.sleep(2.5)
    assert (place / "control").exists()  # one is left
    crowd[2].kill()
    crowd[2].wait()
    assert gone(place)


def test_who_joins_after_the_end_gets_a_new_daemon(place: Path) -> None:
    for count in (1, 2):
        process = joiner(place)
        assert answer(process).startswith("True")
        process.terminate()
        process.wait()
        assert gone(place)
        assert len((place / "begun").read_text().splitlines()) == count


def test_a_keeper_that_was_killed_is_followed_by_another(place: Path) -> None:
    first = joiner(place)
    answer(first)
    (keeper,) = (p for p in psutil.process_iter(["cmdline"]) if (p.info["cmdline"] or [])[1:] == [*KEEPER, str(place)])
    keeper.kill()
    second = joiner(place)
    assert answer(second).startswith("True")
    for process in (first, second):
        process.kill()
        process.wait()
    assert gone(place)


def test_nothing_is_started_where_it_is_not_installed_or_runs_already(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(mps.PIPES, "/somewhere/of/the/site")
    assert mps.join(place) and not place.exists()
    assert os.environ[mps.PIPES] == "/somewhere/of/the/site"
    monkeypatch.delenv(mps.PIPES)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert not mps.join(place) and not place.exists()


def test_a_daemon_that_does_not_start_leaves_the_process_as_it_was(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place.parent / "bin" / mps.CONTROL).write_text("#!/bin/sh\nexit 1\n")
    monkeypatch.setattr(mps, "STARTS_S", 2.0)
    assert not mps.join(place)
    assert mps.PIPES not in os.environ


def test_a_failure_of_a_neighbour_is_told_from_an_own_one() -> None:
    assert mps.was_ended_by_another(RuntimeError("CUDA error: the MPS client has been terminated"))
    assert not mps.was_ended_by_another(RuntimeError("CUDA error: device-side assert triggered"))
    assert not mps.was_ended_by_another(ValueError("MPS"))
