"""The syncer offline, with W&B's real client: its files hold what the tables hold, and no secret is anywhere."""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from cvtune import history, lease
from cvtune.durable import read_json
from cvtune.epoch import METRICS
from cvtune.journal import terms
from tests.tracking.wandb_files import Told, told

pytestmark = pytest.mark.slow

CANARY = "canary0" * 6
SETTINGS = (
    *("data.image_size=16", "model.width=4", "augment.flip=none", "max_epochs=2", "budget.trials=5"),
    *("noise_seeds=2", "confirm.top=1", "confirm.seeds=2", "loss.name=python:leaky:loss", "tracking.mode=offline"),
    *("tracking.project=tests", "data.train_fraction=0.5"),
)
LEAKY = '''
import os

import torch

calls = 0


def loss(logits, target, recipe):
    """Fails for some learning rates after the check before the first trial, and says what it sees of the key."""
    global calls
    calls += 1
    if calls > 12 and recipe.optim.lr > 5e-3:
        raise ValueError(f"the key is {os.environ.get('WANDB_API_KEY')}")
    return torch.nn.functional.cross_entropy(logits, target, reduction="none")
'''


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A folder with a short path, because Ray's sockets lie below it."""
    with tempfile.TemporaryDirectory(prefix="cvt", dir="/tmp") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def study(place: Path) -> Path:
    """A study that was tracked offline from its beginning to its end, with a key in the environment."""
    (place / "leaky.py").write_text(LEAKY)
    line = [sys.executable, "-m", "cvtune.cli", "run", "digits", "--storage", "studies", "--cache", "cache"]
    done = subprocess.run(
        [*line, *(part for setting in SETTINGS for part in ("--set", setting))],
        cwd=place,
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
        env={**os.environ, "WANDB_API_KEY": CANARY, "RAY_TMPDIR": str(place / "ray")},
    )
    assert done.returncode == 0, done.stderr
    assert "tracking in W&B: offline" in done.stdout and "holds all" in " ".join(done.stdout.split())
    return place / "studies" / "digits"


def rows(study: Path, table: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(study / "tables" / f"{table}.parquet").to_pylist()
    return found


def nested(flat: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """The values of a config under the dotted names of the table's columns."""
    found = {}
    for name in flat:
        value: Any = config
        for part in name.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if "." in name:
            found[name] = value
    return found


def check(study: Path, runs: list[Told]) -> None:
    """Compare W&B's files with the study's tables: every run, every metric of every report, every summary."""
    trials = {row["trial"]: row for row in rows(study, "trials")}
    assert sorted(run.trial for run in runs) == [*sorted(trials), "study"]
    assert len({run.run.run_id for run in runs}) == len(runs)
    reports: dict[str, list[dict[str, Any]]] = {name: [] for name in trials}
    for row in rows(study, "epochs"):
        reports[row["trial"]].append(row)
    for run in runs:
        assert (run.run.run_group, run.run.project) == ("digits", "tests")
        if run.trial == "study":
            assert run.run.job_type == "study"
            continue
        row = trials[run.trial]
        assert run.run.job_type == ("confirm" if row["role"] == "confirm" else "trial")
        expected = {name: value for name, value in row.items() if "." in name}
        assert nested(expected, run.config) == expected
        assert [told["_step"] for told in run.rows] == [report["step"] for report in reports[run.trial]]
        for told_row, report in zip(run.rows, reports[run.trial], strict=True):
            for k, recall in enumerate(report["val_recall"]):
                assert told_row[f"val_recall/{k}"] == recall
            for metric in set(METRICS) - {"step", "val_recall"}:
                value = report[metric]
                assert told_row.get(metric) == (None if value is None or math.isnan(value) else value), metric
            strip = study / "trials" / run.trial / str(report["attempt"]) / "media" / f"{report['step']}.png"
            digest = hashlib.sha256(strip.read_bytes()).hexdigest()
            assert told_row["predictions/sha256"] == digest
            shown = run.folder / "files" / told_row["predictions/path"]
            assert hashlib.sha256(shown.read_bytes()).hexdigest() == digest
        for key in ("reason", "epochs", "attempts", "best", "best_step", "last", "test_accuracy", "test_loss"):
            assert run.summary.get(key) == row[key], (run.trial, key)
        if row["best"] is not None:
            assert run.summary["val_accuracy"] == {"max": row["best"]}
        assert run.summary["total_seconds"] == pytest.approx(row["seconds"])
        failed = row["reason"] == "code_error"
        assert (run.exit, run.preempting) == (1 if failed else 0, False)


def test_the_files_hold_what_the_tables_hold(study: Path) -> None:
    runs = told(study)
    check(study, runs)
    reasons = {run.summary.get("reason") for run in runs}
    assert {"completed", "code_error"} <= reasons
    own = next(run for run in runs if run.trial == "study")
    assert {a.type for a in own.artifacts} == {"run_table", "dataset", "results", "model"}
    files = {entry.path for artifact in own.artifacts for entry in artifact.manifest.contents}
    assert {"data.json", "study.json", "tables/epochs.parquet", "recipe.json"} <= files
    assert own.rows[-1]["trials/nrows"] == len(runs) - 1
    assert own.exit == 0 and own.summary["complete"] is True


def test_nothing_of_the_machine_is_in_a_run(study: Path) -> None:
    """No host name, user, program, git state, console output or package list: W&B's client captures them by default."""
    for run in told(study):
        assert not (run.run.host or run.run.git.remote_url or run.run.git.commit)
        captured = [path for path in (run.folder / "files").rglob("*") if path.is_file()]
        assert all("media" in path.parts for path in captured), captured


def test_the_key_is_nowhere_and_no_trial_has_seen_it(study: Path, place: Path) -> None:
    messages = [row["message"] for row in rows(study, "trials") if row["reason"] == "code_error"]
    assert messages and all("the key is None" in message for message in messages)
    needle, seen = CANARY.encode(), 0
    for path in place.rglob("*"):
        if path.is_file() and not path.is_symlink():
            assert needle not in path.read_bytes(), path
            seen += 1
    assert seen > 100 and (place / "ray").exists()


def sync(study: Path, *arguments: str) -> subprocess.Popen[str]:
    line = [sys.executable, "-m", "cvtune.track", str(study), "--mode", "offline", *arguments]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)


def copy(study: Path, to: Path) -> Path:
    """The study as if it had never been tracked."""
    return Path(shutil.copytree(study, to / "digits", ignore=shutil.ignore_patterns("wandb", "checkpoints", "logs")))


def test_a_second_sync_changes_nothing(study: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (study / "wandb").glob("offline-run-*/*.wandb")}
    done = sync(study)
    output, _ = done.communicate(timeout=600)
    assert done.returncode == 0 and "holds all" in output
    assert {path: path.stat().st_mtime_ns for path in (study / "wandb").glob("offline-run-*/*.wandb")} == before


def test_a_syncer_that_is_killed_again_and_again_delivers_each_report_once(study: Path, tmp_path: Path) -> None:
    mine, rng = copy(study, tmp_path), random.Random(0)
    cut = 0
    for _ in range(6):
        running = sync(mine)
        count = len(told_names(mine))
        until = time.monotonic() + 300
        while len(told_names(mine)) < count + 2 and running.poll() is None and time.monotonic() < until:
            time.sleep(0.002)
        time.sleep(rng.random() * 0.1)
        if running.poll() is None:
            os.killpg(running.pid, signal.SIGKILL)
            cut += 1
        running.communicate(timeout=600)
    assert cut >= 2
    done = sync(mine)
    output, _ = done.communicate(timeout=600)
    assert done.returncode == 0, output
    check(mine, told(mine))


def told_names(study: Path) -> set[str]:
    return {path.name for path in (study / "wandb").glob("offline-run-*")}


def test_of_two_syncers_at_once_the_second_says_so_and_ends(study: Path, tmp_path: Path) -> None:
    mine = copy(study, tmp_path)
    both = [sync(mine), sync(mine)]
    outputs = [each.communicate(timeout=600)[0] for each in both]
    assert [each.returncode for each in both] == [0, 0], outputs
    assert sum("another syncer" in output for output in outputs) == 1, outputs
    check(mine, told(mine))


def test_an_interrupted_study_is_told_as_preempted_and_written_anew_when_it_went_on(
    study: Path, tmp_path: Path
) -> None:
    mine = copy(study, tmp_path)
    (term,) = (mine / "journal").iterdir()
    whole = term.read_bytes()
    lines = whole.splitlines(keepends=True)
    events = terms(study)[0][1]
    first = next(i for i, e in enumerate(events) if e["kind"] == "epoch" and e["reason"] is None)
    term.write_bytes(b"".join(lines[: first + 1]))
    done = sync(mine)
    output, _ = done.communicate(timeout=600)
    assert done.returncode == 0, output
    begun = {run.trial: run for run in told(mine)}
    open_one = begun[events[first]["trial"]]
    assert open_one.preempting and open_one.exit == 1 and len(open_one.rows) == 1
    assert begun["study"].preempting
    term.write_bytes(whole)
    done = sync(mine)
    output, _ = done.communicate(timeout=600)
    assert done.returncode == 0, output
    check(mine, told(mine))


def test_a_watching_syncer_follows_until_nobody_runs_the_study(study: Path, tmp_path: Path) -> None:
    mine = copy(study, tmp_path)
    (term,) = (mine / "journal").iterdir()
    lines = term.read_bytes().splitlines(keepends=True)
    term.write_bytes(b"".join(lines[: len(lines) // 2]))
    alive = json.loads((mine / "lease.json").read_text())
    alive |= {"host": lease.socket.gethostname(), "pid": os.getpid(), "released": False}
    alive["started"] = lease.psutil.Process().create_time()
    (mine / "lease.json").write_text(json.dumps(alive))
    running = sync(mine, "--watch")
    ended = [r.trial for r in history.load(mine).trials.values() if r.reason and r.role == "search"]
    until = time.monotonic() + 300
    while len(told_names(mine)) < len(ended) and time.monotonic() < until:
        time.sleep(0.1)
    assert ended and running.poll() is None
    processes = [running.pid, *(entry["pid"] for entry in read_json(mine / "wandb" / "service.json")["processes"])]
    assert len(processes) == 2 and {os.sched_getscheduler(pid) for pid in processes} == {os.SCHED_IDLE}
    for own in [Path(f"/proc/{pid}/autogroup") for pid in processes if os.getsid(pid) == pid]:
        assert not own.exists() or own.read_text().endswith("nice 12\n")  # it exists where Linux groups by session
    with term.open("ab") as file:
        for line in lines[len(lines) // 2 :]:
            file.write(line[:30])
            file.flush()
            file.write(line[30:])
    time.sleep(3)
    assert running.poll() is None
    (mine / "lease.json").write_text(json.dumps({**alive, "released": True}))
    output, _ = running.communicate(timeout=600)
    assert running.returncode == 0, output
    check(mine, told(mine))


def test_a_plot_of_a_populations_schedule_is_shown(study: Path, tmp_path: Path) -> None:
    mine = copy(study, tmp_path)
    epochs = [{"epoch": i, "trial": "00002", "step": i, "values": {"augment.strength": i / 4}} for i in (1, 2)]
    about = {"study": "digits", "trial": "00002", "objective": "val_accuracy", "score": 0.5, "recipe": {}}
    (mine / "schedule.json").write_text(json.dumps({"format": 1, **about, "epochs": epochs}))
    done = sync(mine)
    output, _ = done.communicate(timeout=600)
    assert done.returncode == 0, output
    own = next(run for run in told(mine) if run.trial == "study")
    assert "schedule/path" in own.rows[-1] and list((own.folder / "files" / "media" / "plotly").iterdir())


def test_a_dry_run_lists_what_would_leave_and_starts_nothing(study: Path, tmp_path: Path) -> None:
    mine = copy(study, tmp_path)
    line = [sys.executable, "-X", "importtime", "-m", "cvtune.cli", "sync", str(mine), "--dry-run"]
    done = subprocess.run(line, capture_output=True, text=True, check=True, timeout=600)
    size = (mine / "tables" / "epochs.parquet").stat().st_size
    for said in (
        "runs of trials",
        "val_accuracy",
        "project 'tests'",
        f"tables/epochs.parquet, {size} bytes",
        "worst_errors",
        "strips of validation images",
    ):
        assert said in done.stdout
    assert "wandb" not in done.stderr and not (mine / "wandb").exists()


def test_sync_without_a_key_says_what_to_do(study: Path, tmp_path: Path) -> None:
    environ = {**os.environ, "HOME": str(tmp_path)}
    environ.pop("WANDB_API_KEY", None)
    line = [sys.executable, "-m", "cvtune.cli", "sync", str(study), "--mode", "online"]
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=600, env=environ)
    assert done.returncode == 2 and "wandb login" in done.stderr and "Traceback" not in done.stderr
