"""Runs the syncer as users do, and says whether a server holds what a study's journal tells."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

from cvtune import strips, study
from cvtune.epoch import METRICS
from cvtune.history import FAILED, History, TrialRecord, load
from tests.tracking.wandb_answers import Run
from tests.tracking.wandb_server import WandbServer

CANARY = "local-" + "c0ffee" * 6 + "beef"  # 40 characters, as W&B's own keys
ENDS_S = 600.0  # no syncer may take longer, whatever the server does
TINY = (
    *("data.image_size=16", "model.width=4", "augment.flip=none", "data.train_fraction=0.3", "max_epochs=4"),
    *("budget.trials=3", "noise_seeds=2", "confirm.top=1", "confirm.seeds=2"),
    "tracking.wait_s=600",  # the syncer gets only what other tests leave of the processor
)


def environment(server: WandbServer, home: Path) -> dict[str, str]:
    """Of a user whose key is in the environment and whose home is empty."""
    home.mkdir(exist_ok=True)
    mine = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    return {**mine, "HOME": str(home), "WANDB_BASE_URL": server.url, "WANDB_API_KEY": CANARY}


def run_study(tmp: Path, *settings: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """`cvtune run digits`, tiny, with these settings on top."""
    chosen = [part for setting in (*TINY, *settings) for part in ("--set", setting)]
    places = ["--storage", str(tmp / "studies"), "--cache", str(tmp / "cache")]
    line = [sys.executable, "-m", "cvtune.cli", "run", "digits", *chosen, *places]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp, env=env)


def start_sync(folder: Path, server: WandbServer, *options: str) -> subprocess.Popen[str]:
    """A syncer of its own process group."""
    line = [sys.executable, "-m", "cvtune.track", str(folder), "--mode", "online", *options]
    env = environment(server, folder.parent / "home")
    return subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env, start_new_session=True
    )


def sync(folder: Path, server: WandbServer, *options: str, code: int | None = 0) -> str:
    """A syncer from its beginning to its end; returns what it said. `code` None: any exit code but 0."""
    process = start_sync(folder, server, *options)
    said, _ = process.communicate(timeout=ENDS_S)
    assert process.returncode == code if code is not None else process.returncode != 0, said
    return said


def runs_by_trial(server: WandbServer) -> dict[str, Run]:
    """The runs of trials; two of one trial are an error."""
    found = [run for run in list(server.runs.values()) if run.asked["jobType"] != "study"]
    trials = [str(run.config["trial"]) for run in found]
    assert len(set(trials)) == len(trials), f"a trial has two runs: {sorted(trials)}"
    return dict(zip(trials, found, strict=True))


def study_run(server: WandbServer) -> Run:
    (found,) = [run for run in list(server.runs.values()) if run.asked["jobType"] == "study"]
    return found


def assert_delivered(folder: Path, server: WandbServer) -> None:
    """Every (run, step) of the journal once, with its metrics, and how each trial ended."""
    history, definition = load(folder), study.read(folder / "study.json")
    runs = runs_by_trial(server)
    assert runs.keys() == {name for name, record in history.trials.items() if record.epochs or record.reason}
    for name, run in runs.items():
        assert_told(history.trials[name], run, definition.objective, definition.better)
        assert_shown(history.trials[name], run, folder / "trials" / name)
        assert run.asked["groupName"] == definition.name and run.project == definition.tracking.project
    assert_study_told(history, study_run(server), definition.name)
    assert not server.answers.unknown


def assert_told(record: TrialRecord, run: Run, objective: str, better: str) -> None:
    """One run holds one trial: rows, settings, state, summary."""
    rows = run.rows
    assert [row["_step"] for row in rows] == [event["step"] for event in record.epochs], record.trial
    for row, event in zip(rows, record.epochs, strict=True):
        numbers = {name: event[name] for name in METRICS if name != "step" and event.get(name) is not None}
        for name in [name for name, value in numbers.items() if isinstance(value, list)]:
            numbers |= {f"{name}/{k}": one for k, one in enumerate(numbers.pop(name)) if one is not None}
        assert {name: row.get(name) for name in numbers} == numbers, (record.trial, row["_step"])
    for section in ("augment", "regularize", "optim"):
        assert run.config[section] == getattr(record.recipe, section).model_dump(mode="json")
    assert run.asked["jobType"] == ("confirm" if record.role == "confirm" else "trial")
    assert run.state == told_state(record), record.trial
    if record.reason is not None:
        assert run.summary["reason"] == record.reason
        assert run.summary["epochs"] == len(record.epochs)
    if record.test is not None:
        assert run.summary["test_accuracy"] == record.test["test_accuracy"]
    scores = [event[objective] for event in record.epochs if event[objective] is not None]
    if scores:
        assert run.summary[objective] == {better: {"max": max, "min": min}[better](scores)}, record.trial


def assert_shown(record: TrialRecord, run: Run, trial: Path) -> None:
    """Each report has its strip, and the server has the picture."""
    pictures = strips.of_trial(trial)
    for row, event in zip(run.rows, record.epochs, strict=True):
        strip = pictures[event["step"]].read_bytes()
        assert row["predictions"]["sha256"] == hashlib.sha256(strip).hexdigest()
        assert run.files.get(row["predictions"]["path"]) == strip, (record.trial, event["step"])


def told_state(record: TrialRecord) -> str:
    """What W&B should show: what ASHA stopped has finished, and what is not over was preempted, not crashed."""
    if record.reason is None:
        return "preempted"
    return "failed" if record.reason in FAILED else "finished"


def assert_study_told(history: History, run: Run, name: str) -> None:
    """The study's own run: as many trials and epochs as there are."""
    assert run.asked["displayName"] == run.asked["groupName"] == name
    assert run.summary["trials"] == len(history.trials)
    assert run.summary["epochs"] == sum(len(record.epochs) for record in history.trials.values())
    assert run.state == ("finished" if history.complete else "preempted")


def sent(server: WandbServer) -> list[tuple[str, bytes]]:
    """Everything that left: path and body of each request that was not telemetry, and the names of files."""
    return [(request.path, request.body) for request in list(server.requests)]


def history_posts(server: WandbServer) -> int:
    """How many requests carried rows."""
    bodies = [json.loads(body) for path, body in sent(server) if path.endswith("/file_stream") and body]
    return sum("wandb-history.jsonl" in body.get("files", {}) for body in bodies)


def assert_clean(server: WandbServer, folder: Path) -> None:
    """The key is in the Authorization header only; no host, path, package list, code, console or image but strips left.

    `study.json` and the tables may name the user's command and a trial's node: that belongs to what is told.
    """
    results = [item.files for item in server.artifacts if item.type == "results"]
    tables = {content for files in results for name, content in files.items() if name != "wandb_manifest.json"}
    basic = base64.b64encode(f"api:{CANARY}".encode()).decode()
    machine = (str(Path.home()), str(folder.parent), sys.executable, f'"{socket.gethostname()}"')
    for request in server.requests:
        others = {name: value for name, value in request.headers.items() if name != "Authorization"}
        told = f"{request.path} {others}".encode() + request.body.replace(b"\\", b"")
        for secret in (CANARY, basic, *(() if request.body in tables else machine)):
            assert secret.encode() not in told, f"{secret} is in {request.path}: {told[:1000]!r}"
    for run in server.runs.values():
        assert not {name for name in run.asked if name in ("commit", "repo", "host") and run.asked[name]}
        assert set(run.streams) <= {"wandb-history.jsonl", "wandb-summary.json"}, "console or system metrics"
        names = {name for name in run.files if not name.startswith("media/")}
        assert names <= {"wandb-summary.json", "config.yaml"}, names
        pictures = [name for name in run.files if name.endswith((".png", ".jpg"))]
        assert all(name.startswith("media/images/predictions_") for name in pictures), pictures
        assert not [name for name in run.files if name.endswith((".py", ".patch"))]
