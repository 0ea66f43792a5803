"""`cvtune run` with W&B online: nobody waits for it, no worker knows the key, and a killed driver loses nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from cvtune.history import load
from cvtune.journal import read
from tests.tracking.delivery import (
    CANARY,
    ENDS_S,
    assert_clean,
    assert_delivered,
    environment,
    run_study,
    sync,
)
from tests.tracking.wandb_server import WandbServer, wandb_server

pytestmark = pytest.mark.long


@pytest.fixture
def server() -> Iterator[WandbServer]:
    with wandb_server(CANARY) as found:
        yield found


FAILING = """
import os
from torch.nn.functional import cross_entropy

calls = 0

def loss(logits, target, recipe):
    global calls
    calls += 1
    if calls > 12 and recipe.regularize.strength > 0.5:  # not yet in the check before the first trial
        raise RuntimeError(f"{[item for item in os.environ.items() if 'WANDB' in item[0]]}")
    return cross_entropy(logits, target, reduction="none")
"""


def test_a_run_delivers_while_it_trains_and_its_workers_know_no_key(server: WandbServer, tmp_path: Path) -> None:
    """A crashing trial shows its whole environment; the key is in none, and the crash is a failed run."""
    (tmp_path / "failing.py").write_text(FAILING)
    settings = (
        *("loss.name=python:failing:loss", "data.train_fraction=1", "max_epochs=3"),
        *("budget.trials=2", "noise_seeds=0", "confirm.top=0"),
    )
    env = environment(server, tmp_path / "home")
    driver = run_study(tmp_path, *settings, env=env)
    said, _ = driver.communicate(timeout=900)
    folder = tmp_path / "studies" / "digits"
    assert driver.returncode == 0, said
    assert_delivered(folder, server)
    assert_clean(server, folder)
    assert "online" in said and CANARY not in said
    failed = [record for record in load(folder).trials.values() if record.reason == "code_error"]
    assert failed and "WANDB_BASE_URL" in failed[0].message, "nothing was shown, so nothing was tested"
    for path in folder.rglob("*"):
        assert not path.is_file() or CANARY.encode() not in path.read_bytes(), path


@pytest.mark.parametrize("mood", ["silent", "500"])
def test_no_run_waits_for_a_server_that_is_down(server: WandbServer, tmp_path: Path, mood: str) -> None:
    server.behave(mood)
    wait_s = 4.0
    settings = ("budget.trials=2", "noise_seeds=0", "confirm.top=0", "max_epochs=2", f"tracking.wait_s={wait_s:g}")
    driver = run_study(tmp_path, *settings, env=environment(server, tmp_path / "home"))
    said, _ = driver.communicate(timeout=900)
    ended = time.time()
    folder = tmp_path / "studies" / "digits"
    assert driver.returncode == 0, said
    assert "cvtune sync" in said
    closed = [event["t"] for event in read(folder) if event["kind"] == "close"]
    assert ended - closed[-1] < wait_s + 20  # the rest is Ray's shutdown and the last tables
    assert not server.runs
    server.behave("fine")
    sync(folder, server)
    assert_delivered(folder, server)


def test_a_driver_that_is_killed_goes_on_in_the_same_runs(server: WandbServer, tmp_path: Path) -> None:
    """Its syncer notices by itself, delivers what there is, and ends."""
    settings = ("budget.trials=3", "noise_seeds=0", "confirm.top=0", "max_epochs=8", "resources.max_concurrent=1")
    env = environment(server, tmp_path / "home")
    driver, folder = run_study(tmp_path, *settings, env=env), tmp_path / "studies" / "digits"
    until = time.monotonic() + ENDS_S
    while not ((folder / "journal").is_dir() and any(event.get("step", 0) >= 2 for event in read(folder))):
        assert driver.poll() is None and time.monotonic() < until
        time.sleep(0.1)
    syncers = syncers_of(folder)
    driver.kill()
    driver.wait()
    assert syncers and not psutil.wait_procs(syncers, timeout=ENDS_S)[1], "the syncer outlives its study"
    assert not load(folder).complete
    assert_delivered(folder, server)
    before = dict(server.runs)
    assert "preempted" in {run.state for run in before.values()}
    again = run_study(tmp_path, *settings, env=env)
    said, _ = again.communicate(timeout=900)
    assert again.returncode == 0, said
    assert_delivered(folder, server)
    assert before.keys() <= server.runs.keys() and not syncers_of(folder)


def syncers_of(folder: Path) -> list[psutil.Process]:
    """The processes that deliver this study."""
    named = [process for process in psutil.process_iter(["cmdline"]) if str(folder) in (process.info["cmdline"] or ())]
    return [process for process in named if "cvtune.track" in process.info["cmdline"]]
