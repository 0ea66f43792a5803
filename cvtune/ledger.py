"""The ledger of a running study: every step of it is decided and written down here, as one event of the journal each.

It knows no Ray. A term begins with `recover`, which puts everything in the journal to a fresh scheduler and searcher
again and compares the answers; from then on the same objects go on deciding.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cvtune import journal
from cvtune.board import Board
from cvtune.confirm import Planned
from cvtune.epoch import METRICS
from cvtune.errors import CvtuneError
from cvtune.event import Event
from cvtune.history import History, TrialRecord
from cvtune.journal import Journal
from cvtune.objective import is_exhausted
from cvtune.recipe import Recipe, Value
from cvtune.study import Study
from cvtune.suggest import Suggester, suggester
from cvtune.sweep import Sweep

FOLLOWED = ("search", "control")  # roles that the scheduler decides on; the others run to their end


@dataclass(frozen=True)
class Ruling:
    """What is to be done after a report: with its trial, and which other trials end."""

    answer: Literal["go", "stop", "pause"]
    stops: tuple[str, ...] = ()


class Ledger:
    """The study's record while it runs: journal, scheduler, searcher, and what is left of the budget.

    Attributes:
        board: the scheduler, which follows the trials of the search.
        running: trials that are not over and not waiting for the scheduler.
        resources: CPU and GPU of a trial that begins now; where trials share a GPU the share may grow.
    """

    def __init__(
        self,
        study: Study,
        folder: Path,
        writer: Journal,
        resources: Mapping[str, float],
        listen: Callable[[Mapping[str, Any], History], None] = lambda event, history: None,
    ) -> None:
        """`listen` is told every event after it is written; it must not raise."""
        self.study, self.folder, self.history, self.board = study, folder, History(), Board(study)
        self.suggester: Suggester = suggester(study)
        self._journal, self._listen = writer, listen
        self._sweep = Sweep(study, folder, self.history, self.board)
        self._started = time.time()
        self.resources = dict(resources)
        self.search_over = False  # whether nothing more will be proposed but the confirmation; `Phases` says so
        self.opened = False  # whether this term has written anything
        self._followed: set[str] = set()
        self._live: dict[str, TrialRecord] = {}

    @property
    def deadline(self) -> float | None:
        """When `budget.time_s` is used up, in seconds since 1970."""
        return None if self.study.budget.time_s is None else self._started + self.study.budget.time_s

    @property
    def live(self) -> list[TrialRecord]:
        """The trials that are not over."""
        return list(self._live.values())

    @property
    def running(self) -> int:
        return sum(not record.waiting for record in self._live.values())

    def recover(self) -> dict[str, int]:
        """Take in the journal of earlier terms; returns what `open` says of it: the last term seen and its events.

        Raises:
            CvtuneError: the scheduler or searcher now answers differently from what the journal says.
        """
        terms = journal.terms(self.folder)
        events = [event for _, of_term in terms for event in of_term]
        proposed = [e["index"] for e in events if e["kind"] == "trial" and e["role"] == "search"]
        again = set(proposed) if self.suggester.cheap else set(proposed[-1:])
        for event in events:
            if event["kind"] == "trial" and event["index"] in again and event["role"] == "search":
                values = self.suggester.suggest(event["number"], self._given(event["number"]))
                _compare(event, "values", values)
            self._replay(event)
            self._take(event)
        self._sweep.tidy()
        return {"saw_term": terms[-1][0], "saw": len(terms[-1][1])} if terms else {"saw_term": 0, "saw": 0}

    def commit(self) -> None:
        """Flush the journal to the disk."""
        self._journal.commit()

    def note(self, kind: str, event: Mapping[str, Any]) -> None:
        """Write one event and take it in."""
        full = self._journal.append(kind, event)
        self.opened = True
        self._take(full)
        self._sweep.after(full, self._journal.synced)
        self._listen(full, self.history)

    # --- proposals

    def propose(self, role: str, values: dict[str, Value] | None = None, planned: Planned | None = None) -> TrialRecord:
        """Put the next trial on record."""
        index = len(self.history.trials)
        name = trial_name(index)
        recipe = self.study.trial(index, values or {}) if planned is None else self._seeded(planned.recipe, index)
        event: dict[str, Any] = {
            "trial": name,
            "index": index,
            "number": len(self.history.of(role)),
            "role": role,
            "label": planned.label if planned else "",
            "values": values or {},
            "recipe": sparse(recipe),
            "waiting": self.board.pausing,
        }
        if role in FOLLOWED:
            event["call"] = self.history.calls
            self.board.add(name, event["values"], event["call"])
        self.note("trial", event)
        return self.history.trials[name]

    def suggest(self) -> dict[str, Value] | None:
        """The values of the next trial of the search; None if the searcher has nothing left to propose."""
        number = len(self.history.of("search"))
        return self.suggester.suggest(number, self._given(number))

    def choose(self) -> str | None:
        """The waiting trial that should go on next."""
        for record in self._live.values():
            if record.waiting and record.trial not in self._followed:
                return record.trial
        return self.board.choose(self.history.calls)

    def give_up_waiting(self) -> tuple[str, ...]:
        """Once the budget is spent, end the trials that wait for their turn; returns their names.

        Likewise once the search is over, no trial runs and the scheduler lets none of them go on.
        """
        waiting = [r for r in self._live.values() if r.waiting and r.role != "confirm"]
        if waiting and (spent := self.spent()):
            for record in waiting:
                self.end(record.trial, "stopped_budget", spent)
        elif not waiting or not self.search_over or self.running or self.choose() is not None:
            return ()
        else:
            for record in waiting:
                self._drop(record)
        return tuple(record.trial for record in waiting)

    def _drop(self, record: TrialRecord) -> None:
        """Stop a trial that has waited in vain."""
        why, call = f"{self.board.waits(record.trial)}; the search is over", self.history.calls
        event = {"trial": record.trial, "step": record.steps, "reason": "stopped_scheduler", "message": why}
        event |= {"call": call, "acts": list(self.board.finish(record.trial, None, call))}
        self.note("end", event | {"action": "stop", "why": why, "arrival": None})

    def start(self, trial: str) -> None:
        """Let a waiting trial go on."""
        if trial in self._followed:
            self.board.start(trial)
        self.note("start", {"trial": trial})

    # --- reports

    def report(self, trial: str, metrics: Mapping[str, Any], identity: Mapping[str, Any]) -> Ruling:
        """Decide on a report: the study's own rules and the scheduler, in one event.

        Args:
            metrics: the numbers of an Epoch. A step that is known already is compared and not put to anybody.
            identity: attempt, node and pid of the process that reports.
        """
        record = self.history.trials[trial]
        if identity["attempt"] != record.attempt:
            self.note("segment", {"trial": trial, "segment": record.segment + 1, "step": record.steps, **identity})
        if metrics["step"] <= record.steps:
            self._compare_repeat(record, metrics)
            return Ruling("go")
        event: dict[str, Any] = {"trial": trial, "attempt": record.attempt, "segment": record.segment}
        event |= {m: metrics.get(m) for m in METRICS} | {"answer": "go", "acts": [], "reason": None, "message": ""}
        wrong = self._disqualified(metrics)
        call = self.history.calls
        judged = wrong is None and self.study.is_judged(metrics)
        if judged and trial in self._followed:
            verdict = self.board.report(trial, metrics, call)
            event |= {"call": call, "answer": verdict.answer, "acts": list(verdict.acts), "action": verdict.action}
            event |= {"why": verdict.why, "arrival": verdict.arrival}
        event["reason"], event["message"] = wrong or self._over(record, metrics, event)
        if trial in self._followed and (event["reason"] is not None or event["answer"] == "stop"):
            acts = self.board.finish(trial, metrics if judged else None, call)
            event |= {"call": call, "acts": [*event["acts"], *acts]}
        if event["answer"] == "stop" and event["reason"] is None:
            event["action"] = "would_stop"  # a control trial goes on whatever the scheduler says
        self.note("epoch", event)
        answer: Literal["stop", "pause", "go"] = "stop" if record.reason else "pause" if record.waiting else "go"
        return Ruling(answer, _stops(event))

    def end(self, trial: str, reason: str, message: str = "") -> tuple[str, ...]:
        """Give a trial its one terminal reason, outside of a report; returns the other trials that end with it."""
        record = self.history.trials[trial]
        event: dict[str, Any] = {"trial": trial, "reason": reason, "message": message, "acts": []}
        if record.reason is None:
            if trial in self._followed:
                event["call"] = self.history.calls
                event["acts"] = list(self.board.finish(trial, None, event["call"]))
            self.note("end", event)
        return _stops(event)

    def spent(self, epochs: int = 0) -> str | None:
        """Which part of the budget is used up, in words; `epochs` more than are on record. None while some is left."""
        budget, history = self.study.budget, self.history
        if self.deadline is not None and time.time() >= self.deadline:
            return f"budget.time_s = {budget.time_s:g}"
        if budget.epochs is not None and history.epochs + epochs >= budget.epochs:
            return f"budget.epochs = {budget.epochs}"
        if budget.gpu_hours is not None and history.device_s / 3600 >= budget.gpu_hours:
            return f"budget.gpu_hours = {budget.gpu_hours:g}"
        return None

    def close(self, lost: bool = False) -> None:
        """Nothing more will be written; `lost` if the study belongs to another owner by now."""
        self._journal.close()
        self._sweep.close(lost)

    def _over(
        self, record: TrialRecord, metrics: Mapping[str, Any], event: Mapping[str, Any]
    ) -> tuple[str | None, str]:
        """Why a report is its trial's last, in the order of precedence."""
        if self.study.round(metrics) >= self.study.recipe.rounds:
            return "completed", ""
        if event["answer"] == "stop" and record.role == "search":
            return "stopped_scheduler", event["why"]
        if self._out_of_patience(record, metrics):
            return "stopped_patience", f"patience = {record.recipe.patience}"
        spent = self.spent(epochs=1) if record.role != "confirm" else None
        return ("stopped_budget", spent) if spent else (None, "")

    def _disqualified(self, metrics: Mapping[str, Any]) -> tuple[str, str] | None:
        """Reason and message of a report that no scheduler may see."""
        numbers = [metrics["train_loss"], metrics["val_loss"], metrics[self.study.objective]]
        if any(value is None or not math.isfinite(value) for value in numbers):
            shown = dict.fromkeys(("train_loss", "val_loss", self.study.objective))
            return "diverged", ", ".join(f"{name} = {metrics[name]}" for name in shown)
        broken = self.study.over_limits(metrics)
        return ("stopped_budget", broken) if broken else None

    def _out_of_patience(self, record: TrialRecord, metrics: Mapping[str, Any]) -> bool:
        if self.study.recipe.data.folds:  # it ends the fold, which the trial's own process sees to
            return False
        sign = 1 if self.study.better == "max" else -1
        scores = [sign * e[self.study.objective] for e in (*record.epochs, metrics)]
        return is_exhausted(scores, record.recipe.patience)

    def _compare_repeat(self, record: TrialRecord, metrics: Mapping[str, Any]) -> None:
        """A report that is known already: its checkpoint was lost and the epoch trained again."""
        known = next(e for e in record.epochs if e["step"] == metrics["step"])
        same = all(known[name] == metrics[name] for name in ("train_loss", "val_loss", self.study.objective))
        self.note("repeat", {"trial": record.trial, "step": metrics["step"], "same": same})

    # --- what both a live event and a replayed one go through

    def _take(self, event: Event) -> None:
        self.history.apply(event)
        self.suggester.observe(event)
        if event["kind"] == "share" and self.study.resources.gpu == "auto":
            self.resources["GPU"] = event["gpu"]
        if event["kind"] == "trial":
            self._live[event["trial"]] = self.history.trials[event["trial"]]
            if event["role"] in FOLLOWED:
                self._followed.add(event["trial"])
        if event.get("answer") == "stop" or event.get("reason") is not None:
            self._followed.discard(event["trial"])
        ended = [event.get("trial"), *(act["trial"] for act in event.get("acts", ()) if act["act"] == "stop")]
        for name in ended:
            if name in self._live and self._live[name].reason is not None:
                del self._live[name]
                self._followed.discard(name)

    def _replay(self, event: Mapping[str, Any]) -> None:
        """Put a recorded event to the scheduler again and compare its answers."""
        kind, name = event["kind"], event.get("trial", "")
        if kind == "trial" and event["role"] in FOLLOWED:
            self.board.add(name, event["values"], event["call"])
        elif kind == "start" and name in self._followed:
            self.board.start(name)
        elif kind in ("epoch", "end") and name in self._followed:
            acts: list[dict[str, Any]] = []
            asked = kind == "epoch" and event.get("why") is not None
            if asked:
                verdict = self.board.report(name, event, event["call"], event["acts"])
                _compare(event, "answer", verdict.answer)
                acts = list(verdict.acts)
            if event["reason"] is not None or event.get("answer") == "stop":
                acts += self.board.finish(name, event if asked else None, event["call"], event["acts"])
            _compare(event, "acts", acts)

    def _given(self, number: int) -> dict[str, Value]:
        points = self.study.points
        return dict(points[number]) if number < len(points) else {}

    def _seeded(self, recipe: Recipe, index: int) -> Recipe:
        return recipe.replace({"seed": self.study.trial(index, {}).seed})


def _stops(event: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(act["trial"] for act in event["acts"] if act["act"] == "stop")


def _compare(event: Mapping[str, Any], what: str, now: Any) -> None:
    if not _same(event[what], now):
        raise CvtuneError(
            f"replaying the journal, {event['kind']} of trial {event['trial']} at step {event.get('step', 0)} gives "
            f"{what} = {now!r} where it had given {event[what]!r}: the code of scheduler or searcher has changed. "
            "Resume with the versions in study.json, or start anew under another --name."
        )


def _same(recorded: Any, now: Any) -> bool:
    """Whether two answers are equal; numbers up to what a model fitted on another kind of CPU may differ by."""
    if isinstance(recorded, Mapping) and isinstance(now, Mapping):
        return recorded.keys() == now.keys() and all(_same(value, now[key]) for key, value in recorded.items())
    if isinstance(recorded, float) and isinstance(now, float):
        return math.isclose(recorded, now, rel_tol=1e-6, abs_tol=1e-12)
    return bool(recorded == now)


def trial_name(index: int) -> str:
    """The name of a trial, which is also its folder."""
    return f"{index:05d}"


def sparse(recipe: Recipe) -> dict[str, Any]:
    """A recipe as plain JSON without the values that are the defaults."""
    return recipe.model_dump(mode="json", exclude_defaults=True)
