"""A driver that is killed again and again: the study comes out as if nothing had happened."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cvtune.history import load
from cvtune.journal import read
from tests.invariants import check, half_written, marked, no_process_is_left, rows, trained_the_same

SHORT = ("data.image_size=16", "model.width=4", "augment.flip=none", "data.train_fraction=0.3")
ONE_AT_A_TIME = ("resources.max_concurrent=1",)  # one order of reports, so that two runs can be compared
STUDIES = {
    "asha": ("max_epochs=3", "budget.trials=9", "noise_seeds=2", "confirm.top=1", "confirm.seeds=2"),
    "pbt": (
        *("scheduler.name=pbt", "scheduler.interval_epochs=1", "scheduler.quantile=0.4"),
        *("max_epochs=4", "budget.trials=5", "noise_seeds=0", "confirm.top=0"),
    ),
}
STUDIES["folds"] = ("data.folds=3", "max_epochs=2", "budget.trials=5", "noise_seeds=0", "confirm.top=0")
STUDIES["long"] = ("scheduler.name=fifo", "max_epochs=14", "budget.trials=1", "noise_seeds=0", "confirm.top=0")
KILLS = {"asha": 2, "pbt": 1, "folds": 1}
DECIDED = ["trial", "step", "action", "reason", "donor", "donor_step", "values", "arrival"]
ENDED = ["trial", "role", "label", "reason", "searched", "test_accuracy", "test_loss"]


def start(tmp: Path, which: str, mark: dict[str, str]) -> subprocess.Popen[str]:
    settings = [part for s in (*SHORT, *ONE_AT_A_TIME, *STUDIES[which]) for part in ("--set", s)]
    places = ["--storage", str(tmp / "studies"), "--cache", str(tmp / "cache")]
    line = [sys.executable, "-m", "cvtune.cli", "run", "digits", *settings, *places]
    return subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp, env={**os.environ, **mark}
    )


def finish(tmp: Path, which: str, mark: dict[str, str]) -> Path:
    driver = start(tmp, which, mark)
    output, _ = driver.communicate(timeout=900)
    assert driver.returncode == 0, output
    study = tmp / "studies" / "digits"
    check(study, driver.returncode, mark)
    return study


def epochs(study: Path) -> int:
    return sum(len(r.epochs) for r in load(study).trials.values()) if (study / "journal").exists() else 0


def kill_at(driver: subprocess.Popen[str], study: Path, reports: int, rng: random.Random) -> None:
    """Kill the driver once so many more reports are in: in half of the cases while some file is being written."""
    target, until = epochs(study) + reports, time.monotonic() + 600
    while epochs(study) < target and driver.poll() is None:
        assert time.monotonic() < until
        time.sleep(0.05)
    if rng.random() < 0.5:
        patience = time.monotonic() + 2
        while time.monotonic() < patience and not half_written(study):
            pass
    else:
        time.sleep(rng.random() * 0.4)
    driver.send_signal(signal.SIGKILL)
    driver.wait()


def decisions(study: Path) -> list[tuple[object, ...]]:
    return [row for row in rows(study, "decisions", DECIDED) if "retry" not in row]


@pytest.mark.long
@pytest.mark.parametrize("which", KILLS)
def test_a_study_whose_driver_is_killed_again_and_again_is_the_same_study(tmp_path: Path, which: str) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    whole = finish(tmp_path / "whole", which, marked())
    rng, mark = random.Random(0), marked()
    study = tmp_path / "killed" / "studies" / "digits"
    for _ in range(KILLS[which]):
        driver = start(tmp_path / "killed", which, mark)
        kill_at(driver, study, rng.randint(2, 6), rng)
        check(study)
    finish(tmp_path / "killed", which, mark)
    assert len(load(study).terms) >= KILLS[which]
    assert decisions(study) == decisions(whole)
    assert decisions(whole), "nothing was decided, so nothing was tested"
    ended = rows(study, "trials", ENDED)
    assert ended == rows(whole, "trials", ENDED)
    trained_the_same(study, whole)


@pytest.mark.long
def test_damaged_checkpoints_cost_an_epoch_each_and_are_said(tmp_path: Path) -> None:
    """One is flipped, the next has lost its manifest: each time the trial goes on from the newest that is whole."""
    mark, study = marked(), tmp_path / "studies" / "digits"
    for damage in ("flip", "forget"):
        driver = start(tmp_path, "long", mark)
        kill_at(driver, study, 4, random.Random(1))
        no_process_is_left(mark)  # a worker that outlives its driver for a moment could still write checkpoints
        (record,) = load(study).trials.values()
        newest = max(study.glob("trials/*/*/checkpoints/[0-9]*"), key=lambda place: int(place.name))
        if damage == "flip":
            content = bytearray((newest / "state.safetensors").read_bytes())
            content[len(content) // 2] ^= 1
            (newest / "state.safetensors").write_bytes(content)
        else:
            (newest / "manifest.json").unlink()
    driver = start(tmp_path, "long", mark)
    driver.communicate(timeout=900)
    history = check(study, driver.returncode, mark)
    assert driver.returncode == 0 and history.trials[record.trial].reason == "completed"
    logs = "".join(path.read_text() for path in study.glob("trials/*/*/log.txt"))
    assert "skipped: checkpoint" in logs and "state.safetensors is missing or differs" in logs
    repeated = [event for event in read(study) if event["kind"] == "repeat"]
    assert all(event["same"] for event in repeated)  # trained again from the one before, bit for bit
