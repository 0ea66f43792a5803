"""What holds for every study folder, whatever was done to the study: `check` is called at the end of such tests."""

from __future__ import annotations

import os
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq

from cvtune import checkpoint, lease
from cvtune.history import History
from cvtune.journal import read

MARK = "CVTUNE_TEST_MARK"
TRAINED = ("trial", "step", "epoch", "train_loss", "val_loss", "val_accuracy", "lr", "dropout")
INTERRUPTED = {75: ("SIGTERM", "SIGUSR1"), 130: ("SIGINT",)}


def marked() -> dict[str, str]:
    """Environment variables that make the processes of a run, Ray's included, findable afterwards."""
    return {MARK: uuid.uuid4().hex}


def check(study: Path, returncode: int | None = None, mark: dict[str, str] | None = None) -> History:
    """Assert every invariant of a study that nobody runs; returns its history.

    Args:
        returncode: exit code of the last run; None where that run was killed.
        mark: what `marked` gave to the environment of every run.
    """
    events = list(read(study))
    history = History()
    for event in events:
        history.apply(event)
    no_trial_is_lost_and_no_report_comes_twice(events, history)
    little_is_trained_twice(events)
    whole_checkpoints_are_intact(study)
    if returncode is not None:
        the_end_is_told_truly(history, returncode)
        the_tables_tell_what_the_journal_tells(study, history)
        nothing_is_left_behind(study)
    if mark is not None:
        no_process_is_left(mark)
    return history


def trained_the_same(study: Path, whole: Path) -> None:
    """Every report of a study has the numbers that it has in `whole`, which nothing was done to; on the CPU."""
    assert rows(study, "epochs", TRAINED) == rows(whole, "epochs", TRAINED)


def rows(study: Path, table: str, columns: Sequence[str]) -> list[tuple[object, ...]]:
    """Columns of one of a study's tables, sorted."""
    found = pq.read_table(study / "tables" / f"{table}.parquet", columns=list(columns)).to_pylist()
    return sorted((tuple(row[name] for name in columns) for row in found), key=repr)


def no_trial_is_lost_and_no_report_comes_twice(events: list[dict[str, Any]], history: History) -> None:
    """Trials are numbered without a gap, reports of each rise by one, and at most one event ends each."""
    assert [r.index for r in history.trials.values()] == list(range(len(history.trials)))
    for record in history.trials.values():
        assert [e["step"] for e in record.epochs] == list(range(1, record.steps + 1)), record.trial
        segments = [e["segment"] for e in record.epochs]
        assert segments == sorted(segments)
    ends = Counter(e["trial"] for e in events if e.get("reason") is not None)
    ends += Counter(act["trial"] for e in events for act in e.get("acts", ()) if act["act"] == "stop")
    assert not {name: count for name, count in ends.items() if count > 1}


def little_is_trained_twice(events: list[dict[str, Any]]) -> None:
    """After each restart at most one report repeats what was known: the distance of two checkpoints."""
    repeats: Counter[tuple[str, int]] = Counter()
    segment: dict[str, int] = {}
    for event in events:
        if event["kind"] == "segment":
            segment[event["trial"]] = event["segment"]
        if event["kind"] == "repeat":
            repeats[event["trial"], segment[event["trial"]]] += 1
    assert all(count <= 1 for count in repeats.values()), repeats


def whole_checkpoints_are_intact(study: Path) -> None:
    """Every checkpoint under its final name loads and matches its hashes. Others are still being written."""
    for manifest in study.glob("trials/*/*/checkpoints/[0-9]*/" + checkpoint.MANIFEST):
        state, numbers = checkpoint.load(manifest.parent)
        assert state and numbers["step"] == int(manifest.parent.name)


def the_end_is_told_truly(history: History, returncode: int) -> None:
    """Exit code 0 exactly if the study is complete, and then every trial has its reason."""
    assert (returncode == 0) == history.complete, (returncode, history.terms[-1]["why"])
    if returncode in INTERRUPTED:
        assert history.terms[-1]["why"] in INTERRUPTED[returncode]
    if history.complete:
        assert all(record.reason for record in history.trials.values())


def the_tables_tell_what_the_journal_tells(study: Path, history: History) -> None:
    rows = pq.read_table(study / "tables" / "epochs.parquet", columns=["trial", "step"]).to_pylist()
    assert Counter((r["trial"], r["step"]) for r in rows) == Counter(
        (record.trial, e["step"]) for record in history.trials.values() for e in record.epochs
    )
    reasons = pq.read_table(study / "tables" / "trials.parquet", columns=["trial", "reason"]).to_pylist()
    assert {r["trial"]: r["reason"] for r in reasons} == {r.trial: r.reason for r in history.trials.values()}


def half_written(study: Path) -> bool:
    """Whether some file is being written in the study now. Not by glob: that raises when a folder goes meanwhile."""
    return any(name.endswith(".tmp") for _, _, files in os.walk(study) for name in files)


def nothing_is_left_behind(study: Path) -> None:
    """No file of Ray's, no half-written file, no request, and a lease that is given back."""
    assert not (study / ".ray").exists()
    until = time.monotonic() + 60  # a process of an owner that was killed may be at its last write
    while half := list(study.rglob("*.tmp")):
        assert time.monotonic() < until, half
        time.sleep(0.2)
    assert not (study / lease.STOP_REQUEST).exists()
    owner = lease.owner(study)
    assert owner is not None and not lease.is_alive(owner)


def no_process_is_left(mark: dict[str, str], within_s: float = 120.0) -> None:
    """Neither a worker nor one of Ray's daemons survives for long."""
    until = time.monotonic() + within_s
    while left := [p for p in psutil.process_iter() if _has(p, mark)]:
        assert time.monotonic() < until, [(p.pid, p.cmdline()[:3]) for p in left if p.is_running()]
        time.sleep(0.2)


def _has(process: psutil.Process, mark: dict[str, str]) -> bool:
    try:
        alive = process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE
        return alive and mark[MARK] == process.environ().get(MARK)
    except (psutil.Error, OSError):
        return False
