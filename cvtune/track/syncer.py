"""The syncer: follows a study's journal and tells W&B what it does not have yet."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import time
from pathlib import Path
from typing import Any, Literal, NoReturn

from cvtune import lease, study
from cvtune.durable import read_json
from cvtune.history import History, TrialRecord
from cvtune.journal import Tail
from cvtune.track import launch, runs, study_run
from cvtune.track.client import Client, Telling, Undelivered, end_service
from cvtune.track.cursor import Cursor, Delivered
from cvtune.track.study_run import Material

POLL_S = 2.0
SUMMARY_S = 30.0  # between two updates of the study's own summary
ELSEWHERE_S = 30.0  # between two looks at whether an owner on another machine lives: Slurm may be asked
RETRY_S = (5.0, 60.0)  # the first and the longest pause after a failure
OPEN_RUNS = 32  # trials that are followed live at once; others are told when they are over
TRY = "CVTUNE_SYNC_TRY"  # environment: how often the syncer has begun anew in this process


class Syncer:
    """Brings one target up to what the journal says.

    Online, running trials are followed report by report, and the server says what it has. Offline, each run is written
    in one go: when its trial is over, or when the study is at rest; its file is whole once the cursor names it, so one
    that a killed syncer left behind is removed, and one that has become too short is written anew.
    """

    def __init__(self, folder: Path, mode: Literal["online", "offline"]) -> None:
        content = read_json(folder / "study.json") or {}
        self._folder, self._online = folder, mode == "online"
        self._study = study.read(folder / "study.json")
        self._provenance: dict[str, Any] = content.get("provenance", {})
        self._classes = runs.shown(self._provenance.get("classes") or ())
        self._tail, self._history = Tail(folder), History()
        self._cursor = Cursor(folder, target(self._study, mode))
        self._client: Client | None = None
        self._open: dict[str, Telling] = {}
        self._finished: list[tuple[str, Telling, Delivered]] = []  # and not yet known to be delivered
        self._changed: set[str] = set()
        self._due = 0.0  # when the study's own summary is told next
        self._owner = Owner(folder)

    def follow(self) -> None:
        """Deliver as the journal grows, until the study is at rest and everything is delivered.

        Raises:
            Undelivered: the last attempt failed.
            BeginAnew: an earlier one failed.
        """
        while not self._owner.rests():
            try:
                self.deliver(last=False)
                os.environ.pop(TRY, None)
            except Undelivered as error:
                self._begin_anew(error)
            self._pause(POLL_S)
        self.deliver(last=True)

    def deliver(self, last: bool) -> None:
        """Deliver what the journal holds; with `last` also what is not over, as preempted.

        Raises:
            Undelivered: W&B did not take it.
        """
        self._read()
        for key in list(self._history.trials) if last else sorted(self._changed):
            record = self._history.trials[key]
            if not self._is_wanted(record):
                continue
            if last or runs.is_settled(self._study, record):
                self._end_trial(record)
            elif self._online and (record.trial in self._open or len(self._open) < OPEN_RUNS):
                self._tell(record)
        self._changed = set()
        self._tell_study(last)
        self._prove()
        self._cursor.flush()

    def count(self) -> tuple[int, int]:
        """How many runs the study has by now, and how many of them the target does not have as they are."""
        self._read()
        wanted = [record for record in self._history.trials.values() if self._is_wanted(record)]
        missing = [r for r in wanted if not self._is_delivered(r.trial, _digest_of(self._study, r))]
        has_own = self._is_delivered(runs.STUDY, _digest_of_study(self._material()))
        return len(wanted) + 1, len(missing) + (not has_own)

    def close(self) -> None:
        """Give up W&B's client in good order. Nothing is open any more."""
        if self._client is not None:
            self._client.close()
            self._clean()

    def _read(self) -> None:
        events, anew = self._tail.read()
        if anew:
            self._history, self._changed = History(), set()
        for event in events:
            self._history.apply(event)
            named = [event.get("trial"), *(act["trial"] for act in event.get("acts", ()))]
            self._changed.update(name for name in named if name)

    def _is_wanted(self, record: TrialRecord) -> bool:
        large = runs.is_large(self._study, self._history)
        return bool(record.epochs or record.reason) and runs.has_run(self._study, record, large)

    def _end_trial(self, record: TrialRecord) -> None:
        digest = _digest_of(self._study, record)
        if self._is_delivered(record.trial, digest) and record.trial not in self._open:
            return
        if not self._online:
            self._remove(record.trial)
        told = self._tell(record)
        told.summary(runs.summary(self._study, record, self._classes))
        self._finish(record.trial, runs.state(record), digest)

    def _tell(self, record: TrialRecord) -> Telling:
        """Bring the history of a trial's run up to date; the run stays open."""
        told = self._open.get(record.trial)
        if told is None:
            told = self._open[record.trial] = self._begin(runs.of_trial(self._study, self._provenance, record))
            told.define(self._study.objective, self._study.better)
        for row in runs.rows(self._study, record, self._folder, told.step, self._classes):
            told.row(row)
        return told

    def _tell_study(self, last: bool) -> None:
        material = self._material()
        if last:
            digest = _digest_of_study(material)
            if runs.STUDY in self._open or not self._is_delivered(runs.STUDY, digest):
                self._end_study(material, digest)
        elif self._online and time.monotonic() > self._due:
            self._study_run(material).summary(study_run.summary(material))
            self._due = time.monotonic() + SUMMARY_S

    def _end_study(self, material: Material, digest: str) -> None:
        if not self._online:
            self._remove(runs.STUDY)
        told = self._study_run(material)
        told.look(study_run.summary(material)["epochs"], study_run.tables(material), study_run.plots(material))
        for parcel in study_run.parcels(material):
            told.parcel(parcel)
        told.summary(study_run.summary(material))
        self._finish(runs.STUDY, "finished" if material.history.complete else "preempted", digest)

    def _finish(self, key: str, state: runs.State, digest: str) -> None:
        told = self._open.pop(key)
        delivered = Delivered(digest, told.finish(state, digest))
        if self._online:
            self._finished.append((key, told, delivered))
        else:
            self._cursor.put(key, delivered)

    def _prove(self) -> None:
        """The server takes a moment to show what it took, so it is asked once for all that were finished."""
        while self._finished:
            key, told, delivered = self._finished[0]
            assert self._client is not None
            self._client.prove(told)
            self._cursor.put(key, delivered)
            self._finished.pop(0)

    def _study_run(self, material: Material) -> Telling:
        if runs.STUDY not in self._open:
            self._open[runs.STUDY] = self._begin(study_run.describe(material))
            if url := self._open[runs.STUDY].url:
                print(f"W&B: {url}", flush=True)
        return self._open[runs.STUDY]

    def _begin(self, run: runs.Run) -> Telling:
        """Begin a run; the first one starts W&B's client, which takes seconds."""
        if self._client is None:
            end_service(self._folder)
            self._clean()
            self._client = Client(self._folder, self._study.tracking, self._online)
        return self._client.begin(run)

    def _material(self) -> Material:
        return Material(self._study, self._folder, self._provenance, self._history)

    def _is_delivered(self, key: str, digest: str) -> bool:
        known = self._cursor.get(key)
        return known is not None and known.digest == digest

    def _remove(self, key: str) -> None:
        """Remove a run's offline files before they are written anew."""
        if known := self._cursor.get(key):
            self._cursor.drop(key)
            shutil.rmtree(self._folder / "wandb" / known.place, ignore_errors=True)

    def _clean(self) -> None:
        """Remove what a syncer that was killed has left: runs that are not whole, and all that online runs leave."""
        base, kept = self._folder / "wandb", self._cursor.places
        for path in [*base.glob("offline-run-*"), *base.glob("run-*"), base / "tmp"]:
            if path.name not in kept:
                shutil.rmtree(path, ignore_errors=True)

    def _begin_anew(self, error: Undelivered) -> NoReturn:
        """After a pause, execute this program again in this process: W&B's client does not survive its failures."""
        number = int(os.environ.get(TRY, "0"))
        pause = min(RETRY_S[0] * 2**number, RETRY_S[1])
        print(f"not delivered ({error}); again in {pause:g} s", flush=True)
        self._pause(pause)
        raise BeginAnew(number + 1)

    def _pause(self, seconds: float) -> None:
        """Wait, but not once the study is at rest."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self._owner.rests():
            time.sleep(min(0.5, seconds))


class BeginAnew(Exception):
    """The program is to be executed again, for the `number`th time."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Owner:
    """Whether anybody runs the study."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._looked, self._rests = 0.0, False

    def rests(self) -> bool:
        """Whether no process owns the study (any more), as far as can be seen from here."""
        current = lease.owner(self._folder)
        if current is None or current.get("released"):
            return True
        if current.get("host") == socket.gethostname():
            return not lease.is_alive(current)
        if time.monotonic() - self._looked > ELSEWHERE_S or not self._looked:
            self._looked, self._rests = time.monotonic(), not lease.is_alive(current)
        return self._rests


def target(settings: study.Study, mode: str) -> str:
    """What a cursor counts for: offline files, or a project on a server."""
    entity = settings.tracking.entity or os.environ.get("WANDB_ENTITY") or ""
    where = launch.server(os.environ) if mode == "online" else "offline"
    return f"{where}/{entity}/{settings.tracking.project}"


def _digest_of(settings: study.Study, record: TrialRecord) -> str:
    return _digest([len(record.epochs), runs.summary(settings, record), runs.state(record)])


def _digest_of_study(material: Material) -> str:
    sizes = [(parcel.name, parcel.sizes) for parcel in study_run.parcels(material)]
    return _digest([study_run.summary(material), len(material.history.decisions), sizes])


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
