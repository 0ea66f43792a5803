"""Which checkpoints may go: all but those that somebody can still ask for, and only once the journal is on the disk."""

from __future__ import annotations

import itertools
import math
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from cvtune.board import Board
from cvtune.history import FAILED, Exploit, History, TrialRecord
from cvtune.noise import score
from cvtune.study import Study

KEEP_CHECKPOINTS_OF = 3  # finished trials of the search whose weights stay on disk: the best ones
NEWEST = 2  # checkpoints kept of a trial that goes on: the second in case the first is damaged


class Sweep:
    """Deletes checkpoints that nothing needs any more.

    Kept are: the newest two of each trial that is not over; every one that the population's scheduler may hand to
    another trial, or has handed to one that has not reported since (an exploit that is not carried out yet); the last
    one of the best finished trials, of the noise trials and of the confirming ones.
    """

    def __init__(self, study: Study, folder: Path, history: History, board: Board) -> None:
        self._study, self._folder, self._history, self._board = study, folder, history, board
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="sweep")  # shared file systems delete slowly
        self._doomed: list[tuple[int, Path]] = []  # with the number of the event after which it may go
        self._kept: list[TrialRecord] | None = None  # the best finished ones; None: not looked up yet
        self._listed: dict[str, dict[int, list[Path]]] = {}  # trial -> step -> folders of every attempt
        self._donors: set[str] = set()

    def after(self, event: Mapping[str, Any], synced: int) -> None:
        """Look at what an event makes superfluous; delete what became so in events that lie on the disk by now."""
        if event["kind"] in ("epoch", "end"):
            record = self._history.trials[event["trial"]]
            if event["kind"] == "epoch":
                place = self._folder / "trials" / record.trial / str(event["attempt"]) / "checkpoints"
                self._places(record.trial).setdefault(event["step"], []).append(place / str(event["step"]))
            touched = [record, *(self._history.trials[act["trial"]] for act in event["acts"])]
            touched += [self._history.trials[name] for name in self._donors]
            touched += [dropped for r in touched if r.reason is not None for dropped in self._displaced_by(r)]
            self._donors = {exploit.donor for exploit in self._pending()}
            for each in {r.trial: r for r in touched}.values():
                self._look_at(each, event["n"])
        due = [path for number, path in self._doomed if number < synced]
        self._doomed = [(number, path) for number, path in self._doomed if number >= synced]
        for path in due:
            self._worker.submit(shutil.rmtree, path, ignore_errors=True)

    def tidy(self) -> None:
        """Look at every trial once, after an earlier term: what was due when it was killed is still there."""
        for record in self._history.trials.values():
            if record.reason is not None:
                self._displaced_by(record)
        for record in self._history.trials.values():
            self._look_at(record, -1)

    def close(self, lost: bool = False) -> None:
        """Delete what is due (the journal was flushed) and what killed processes left half written; wait for it.

        After a `lost` lease nothing is deleted: it all belongs to the next owner.
        """
        if lost:
            self._worker.shutdown(cancel_futures=True)
            return
        for path in (*(path for _, path in self._doomed), *self._folder.glob("trials/*/*/checkpoints/.*.tmp")):
            self._worker.submit(shutil.rmtree, path, ignore_errors=True)
        self._worker.shutdown()

    def _look_at(self, record: TrialRecord, number: int) -> None:
        places = self._places(record.trial)
        keep = {step for name, step in self._needed() if name == record.trial}
        kept = NEWEST if record.reason is None else 1
        if record.reason is None or record.role in ("noise", "confirm") or record in (self._kept or []):
            there = (step for step in sorted(places, reverse=True) if any(path.is_dir() for path in places[step]))
            keep |= set(itertools.islice(there, kept))  # those that exist: a full disk may have prevented some
        for step in sorted(places.keys() - keep):
            self._doomed += [(number, path) for path in places.pop(step)]

    def _displaced_by(self, record: TrialRecord) -> list[TrialRecord]:
        """Put a trial that is over among the best finished ones; returns those that it displaces."""
        if self._kept is None:
            over = [r for r in self._history.of("search", "control") if r.reason is not None and r is not record]
            self._kept = sorted(over, key=self._score, reverse=True)[:KEEP_CHECKPOINTS_OF]
        if record.role in ("noise", "confirm") or record in self._kept:
            return []
        ranked = sorted([*self._kept, record], key=self._score, reverse=True)
        self._kept = ranked[:KEEP_CHECKPOINTS_OF]
        return ranked[KEEP_CHECKPOINTS_OF:]

    def _needed(self) -> set[tuple[str, int]]:
        """(trial, step) of what another trial may be given, or has been given and may still have to load."""
        if not self._board.pausing:
            return set()
        return self._board.needed() | {(e.donor, e.donor_step) for e in self._pending()}

    def _pending(self) -> list[Exploit]:
        """Exploits that the clone has not reported from yet."""
        if not self._board.pausing:
            return []
        live = (r for r in self._history.trials.values() if r.reason is None and r.exploits)
        return [r.exploits[-1] for r in live if r.steps == r.exploits[-1].step]

    def _places(self, trial: str) -> dict[int, list[Path]]:
        """Every checkpoint folder of a trial by step; listed once, then kept up to date by its reports."""
        if trial not in self._listed:
            found: dict[int, list[Path]] = {}
            for path in (self._folder / "trials" / trial).glob("*/checkpoints/*"):
                if path.name.isdigit():
                    found.setdefault(int(path.name), []).append(path)
            self._listed[trial] = found
        return self._listed[trial]

    def _score(self, record: TrialRecord) -> float:
        """The best objective of a trial, larger is better."""
        best = score(self._study, record) if record.reason not in FAILED else None
        return -math.inf if best is None else best if self._study.better == "max" else -best
