"""Forecast: a study played through on paper, by its own ledger, phases and scheduler, with a clock that is not ours."""

from __future__ import annotations

import heapq
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cvtune.history import History, TrialRecord
from cvtune.journal import Journal
from cvtune.ledger import Ledger
from cvtune.phases import Phases
from cvtune.study import Study, make

RISE = 4.0  # epochs in which two thirds of a made-up curve are climbed


@dataclass(frozen=True)
class Cost:
    """What short trials of a study took. Times in seconds.

    Attributes:
        epoch: training and evaluation of one epoch.
        between: from one report of a trial to the next, beyond that: checkpoint, strip, journal.
        trial: until a trial, or its next fold, begins in a process that is there.
        process: until a new process has begun its first trial.
        checkpoint, report: bytes on disk.
    """

    epoch: float
    between: float
    trial: float
    process: float
    checkpoint: int
    report: int


@dataclass(frozen=True)
class Forecast:
    """What a whole study takes.

    Attributes:
        trials, epochs: with noise trials and confirmation.
        full: the epochs if nothing were stopped early.
        counted: the epochs that `budget.epochs` counts: without the confirmation.
        search_s, wall_s: wall-clock time of the search, and of everything from the first trial to the last.
        device_s, search_device_s: trials' training time, added up.
        bytes: of the study's folder.
    """

    trials: int
    epochs: int
    full: int
    counted: int
    search_s: float
    wall_s: float
    device_s: float
    search_device_s: float
    bytes: int


def forecast(study: Study, cost: Cost, slots: int) -> Forecast:
    """Play `study` through with `slots` trials at once; no budget but that of trials ends it.

    Scores are made up: each trial's curve rises to a quality of its own, drawn at random, and curves do not cross. What
    a scheduler stops by rank does not depend on more than that; patience, which looks at the shape of curves, ends no
    trial here. Searchers that learn propose at random, as no real score is there to learn from.
    """
    with tempfile.TemporaryDirectory(prefix="cvtune-plan-") as folder:
        ledger = on_paper(_drawn_only(study), Path(folder))
        game = Game(ledger, slots, _MadeUp(ledger, cost, slots))
        game.play()
        return _added_up(study, cost, slots, ledger.history, game.search_over, game.now)


def on_paper(study: Study, folder: Path) -> Ledger:
    """A ledger that nobody's trials stand behind; its journal lies in `folder`."""
    (folder / "journal").mkdir()
    return Ledger(study, folder, Journal(folder / "journal" / "0001.jsonl"), {"CPU": 1.0})


def _drawn_only(study: Study) -> Study:
    tree = study.model_dump()
    tree["budget"] = {"trials": study.budget.trials}
    tree["limits"], tree["prior"] = {}, ()
    if study.searcher.name in ("tpe", "gp"):
        tree["searcher"] = {"name": "random"}
    return make(tree)


class World(Protocol):
    """What happens to the trials of a study that is played through. Times in seconds."""

    def opening(self, record: TrialRecord) -> float:
        """Until the next report of a trial that begins, or that goes on after it has waited."""

    def between(self, record: TrialRecord) -> float:
        """From a trial's last report to the next."""

    def report(self, record: TrialRecord, step: int) -> dict[str, Any]:
        """The numbers of an `Epoch` that the study's rules look at."""


class Game:
    """A study played through by its ledger and phases: a heap of the reports that are due, for a clock.

    Attributes:
        now: the time, in seconds from the first trial's start.
        search_over: when the last trial of the search had ended.
    """

    def __init__(self, ledger: Ledger, slots: int, world: World) -> None:
        self._ledger, self._slots, self._world = ledger, slots, world
        self._ledger.note("open", {"term": 1, "saw_term": 0, "saw": 0, "host": "", "pid": 0, "resources": {}})
        self._phases = Phases(ledger)
        self._due: list[tuple[float, str]] = []
        self.now = self.search_over = 0.0

    def play(self, enough: Callable[[], bool] = lambda: False) -> None:
        """Play to the end, or until after a report there is `enough`."""
        self._fill()
        while self._due:
            self.now, trial = heapq.heappop(self._due)
            self._report(trial)
            if enough():
                break
            self._fill()
            if any(r.role != "confirm" for r in self._ledger.live):
                self.search_over = self.now
        self._ledger.close()

    def _fill(self) -> None:
        """Let trials begin while there is room, as `tune.Proposer` and `tune.Referee` do."""
        ledger = self._ledger
        while len(self._due) < self._slots:
            record = self._phases.next(self._slots, ledger.study.resources.max_concurrent)
            name = record.trial if record is not None and not record.waiting else None
            if name is None and ledger.board.pausing and (name := ledger.choose()) is not None:
                ledger.start(name)
            if name is not None:
                heapq.heappush(self._due, (self.now + self._world.opening(ledger.history.trials[name]), name))
            elif record is None and not ledger.give_up_waiting():
                return

    def _report(self, trial: str) -> None:
        record = self._ledger.history.trials[trial]
        numbers = self._world.report(record, record.steps + 1)
        ruling = self._ledger.report(trial, numbers, {"attempt": 1, "node": "", "pid": 0})
        self._due = [(when, name) for when, name in self._due if name not in ruling.stops]
        heapq.heapify(self._due)
        if ruling.answer == "go":
            heapq.heappush(self._due, (self.now + self._world.between(record), trial))


class _MadeUp:
    """Curves that rise to a quality of their own, drawn at random; every epoch costs the same."""

    def __init__(self, ledger: Ledger, cost: Cost, slots: int) -> None:
        self._study, self._history = ledger.study, ledger.history
        self._cost, self._slots = cost, slots
        self._rng = np.random.default_rng(self._study.recipe.seed)
        self._quality: dict[str, float] = {}
        self._begun = 0  # processes

    def opening(self, record: TrialRecord) -> float:
        begins = self._cost.process if self._begun < self._slots else self._cost.trial
        self._begun += 1
        return begins + self._cost.epoch

    def between(self, record: TrialRecord) -> float:
        new_fold = self._cost.trial if record.epochs[-1].get("folds_mean") is not None else 0.0
        return self._cost.between + new_fold + self._cost.epoch

    def report(self, record: TrialRecord, step: int) -> dict[str, Any]:
        in_fold, folds = self._study.recipe.max_epochs, self._study.recipe.data.folds
        epoch = record.steps % in_fold + 1 if folds else self._age(record) + 1
        quality = self._quality.setdefault(record.trial, float(self._rng.uniform()))
        score = quality * (1 - np.exp(-epoch / RISE))
        numbers: dict[str, Any] = {"train_loss": 1.0, "val_loss": 1.0, "seconds": self._cost.epoch}
        numbers |= {"step": step, "epoch": epoch}
        numbers[self._study.objective] = score if self._study.better == "max" else 1 - score
        if folds:
            over = epoch == in_fold
            numbers |= {"folds": step // in_fold, "folds_mean": numbers[self._study.objective] if over else None}
        return numbers

    def _age(self, record: TrialRecord) -> int:
        """The age of a trial's weights, which after an exploit are another one's."""
        taken = record.exploits[-1] if record.exploits and record.exploits[-1].step == record.steps else None
        if taken is None:
            return record.age
        donor = self._history.trials[taken.donor]
        return next((int(e["epoch"]) for e in donor.epochs if e["step"] == taken.donor_step), record.age)


def _added_up(study: Study, cost: Cost, slots: int, history: History, search_over: float, now: float) -> Forecast:
    records, again = list(history.trials.values()), history.of("confirm")
    epochs, counted = (sum(len(r.epochs) for r in some) for some in (records, history.of("noise", "control", "search")))
    kept = min(len(records), 3 + len(history.of("noise")) + len(again))
    tests = cost.process + cost.trial * len(again) / slots if again else 0.0
    return Forecast(
        trials=len(records),
        epochs=epochs,
        full=sum(r.recipe.total_epochs for r in records),
        counted=counted,
        search_s=search_over or now,
        wall_s=now + tests,
        device_s=epochs * cost.epoch,
        search_device_s=counted * cost.epoch,
        bytes=kept * cost.checkpoint + epochs * cost.report,
    )


def fitting_trials(study: Study, cost: Cost, slots: int, per_second: float) -> int:
    """The largest `budget.trials` whose search keeps the other bounds of the budget; 0 if none does."""
    low, high = 0, study.budget.trials
    while low < high:
        middle = (low + high + 1) // 2
        tried = study.set({"budget.trials": middle})
        low, high = (middle, high) if not broken(tried, forecast(tried, cost, slots), per_second) else (low, middle - 1)
    return low


def broken(study: Study, found: Forecast, per_second: float) -> Mapping[str, tuple[float, float]]:
    """The bounds of the budget that end the search before all its trials: name -> (allowed, needed)."""
    hours = found.search_device_s * per_second / 3600
    needs = {"time_s": found.search_s, "gpu_hours": hours, "epochs": float(found.counted)}
    allowed = {name: getattr(study.budget, name) for name in needs}
    return {name: (most, needs[name]) for name, most in allowed.items() if most is not None and needs[name] > most}
