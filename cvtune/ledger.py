"""The ledger of a running study: it writes the journal, and knows what the rules and the budget say of a trial."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cvtune.journal import History, Journal, TrialRecord
from cvtune.recipe import Recipe, Value
from cvtune.study import Study

KEEP_CHECKPOINTS_OF = 3  # finished trials whose weights stay on disk: the best ones


class Ledger:
    """The study's record while it runs: journal, what it adds up to, and what is left of the budget.

    `listen` is told every event after it is written; it must not raise.
    """

    def __init__(
        self,
        study: Study,
        folder: Path,
        journal: Journal,
        history: History,
        gpus: float,
        listen: Callable[[dict[str, Any]], None],
    ) -> None:
        self.study, self.folder, self.history = study, folder, history
        self._journal, self._gpus, self._listen = journal, gpus, listen
        self._started = time.time()
        self.next_index = 1 + max((r.index for r in history.trials.values()), default=-1)
        self.calls = len(history.calls)
        ended = [record for record in history.trials.values() if record.reason is not None]
        self._kept = sorted(ended, key=self._score, reverse=True)[:KEEP_CHECKPOINTS_OF]

    @property
    def deadline(self) -> float | None:
        """When `budget.time_s` is used up, in seconds since 1970."""
        return None if self.study.budget.time_s is None else self._started + self.study.budget.time_s

    def propose(self, values: dict[str, Value]) -> TrialRecord:
        """Put the next trial on record, with what the searcher answered."""
        index, name = self.next_index, trial_name(self.next_index)
        self.call(
            "searcher", {"hook": "suggest", "trial": name, "step": 0, "answer": values, "action": None, "why": ""}
        )
        recipe = self.study.trial(index, values)
        self.note("trial", {"trial": name, "index": index, "values": values, "recipe": sparse(recipe)})
        self.next_index += 1
        return self.history.trials[name]

    def call(self, who: str, event: dict[str, Any]) -> None:
        """Put one call of scheduler or searcher on record, numbered."""
        self.note("call", {"who": who, "call": self.calls, **event})
        self.calls += 1

    def close_trial(self, record: TrialRecord, scheduler_stops: str | None) -> bool:
        """End a trial if one of the rules says so, in the order of their precedence; whether one did.

        `scheduler_stops` is the scheduler's reason, None if it lets the trial go on.
        """
        spent = self.spent()
        if record.steps >= record.recipe.max_epochs:
            self.end(record.trial, "completed")
        elif scheduler_stops is not None:
            self.end(record.trial, "stopped_scheduler", scheduler_stops)
        elif self._out_of_patience(record):
            self.end(record.trial, "stopped_patience", f"patience = {record.recipe.patience}")
        elif spent is not None:
            self.end(record.trial, "stopped_budget", spent)
        return record.reason is not None

    def note(self, kind: str, event: dict[str, Any]) -> None:
        full = self._journal.append(kind, event)
        self.history.apply(full)
        self._listen(full)

    def end(self, trial: str, reason: str, message: str = "") -> None:
        """Give a trial its one terminal reason, and free the disk of weights that nobody will ask for."""
        record = self.history.trials[trial]
        if record.reason is None:
            self.note("end", {"trial": trial, "reason": reason, "message": message})
            ranked = sorted([*self._kept, record], key=self._score, reverse=True)
            self._kept = ranked[:KEEP_CHECKPOINTS_OF]
            for dropped in ranked[KEEP_CHECKPOINTS_OF:]:
                for folder in (self.folder / "trials" / dropped.trial).glob("*/checkpoints"):
                    shutil.rmtree(folder, ignore_errors=True)

    def spent(self) -> str | None:
        """Which part of the budget is used up, in words; None while there is some left."""
        budget, records = self.study.budget, self.history.trials.values()
        if self.deadline is not None and time.time() >= self.deadline:
            return f"budget.time_s = {budget.time_s:g}"
        if budget.epochs is not None and sum(len(r.epochs) for r in records) >= budget.epochs:
            return f"budget.epochs = {budget.epochs}"
        if budget.gpu_hours is not None:
            seconds = sum(e["seconds"] or 0.0 for r in records for e in r.epochs)
            if seconds * self._gpus / 3600 >= budget.gpu_hours:
                return f"budget.gpu_hours = {budget.gpu_hours:g}"
        return None

    def _score(self, record: TrialRecord) -> float:
        """The best objective of a trial, larger is better."""
        sign, objective = 1 if self.study.better == "max" else -1, self.study.objective
        return max((sign * e[objective] for e in record.epochs if e[objective] is not None), default=-math.inf)

    def _out_of_patience(self, record: TrialRecord) -> bool:
        patience, sign = record.recipe.patience, 1 if self.study.better == "max" else -1
        if patience is None or len(record.epochs) <= patience:
            return False
        scores = [sign * e[self.study.objective] for e in record.epochs]
        return bool(max(scores[:-patience]) >= max(scores[-patience:]))


def trial_name(index: int) -> str:
    """The name of a trial, which is also its folder."""
    return f"{index:05d}"


def sparse(recipe: Recipe) -> dict[str, Any]:
    """A recipe as plain JSON without the values that are the defaults."""
    return recipe.model_dump(mode="json", exclude_defaults=True)
