"""History: what the events of a journal add up to, live as in replay."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cvtune.errors import CvtuneError, short
from cvtune.event import Event
from cvtune.journal import read
from cvtune.packing import Packing
from cvtune.printable import first_line
from cvtune.recipe import Recipe, Value
from cvtune.study import Study

REASONS = {
    "completed": "trained for max_epochs",
    "stopped_scheduler": "stopped early by the scheduler",
    "stopped_patience": "no better objective for `patience` epochs",
    "stopped_budget": "the study's budget was spent",
    "diverged": "loss became NaN or infinite",
    "oom_gpu": "out of GPU memory",
    "oom_host": "out of host memory",
    "hung": "made no progress",
    "data_error": "the images or labels could not be read",
    "code_error": "an exception in the training code",
    "infra_lost": "process or node lost more often than resources.retries",
    "cancelled": "cancelled by the user",
}


FAILED = ("diverged", "oom_gpu", "oom_host", "hung", "data_error", "code_error", "infra_lost")

ROLES = {
    "noise": "the default recipe with another seed, to measure how much the seed alone changes the score",
    "control": "a random recipe that is never stopped, drawn before any result was known",
    "search": "proposed by the searcher",
    "confirm": "a recipe trained again with a fresh seed, after the search",
}

_PLAIN = re.compile(r"[0-9A-Za-z_-]{1,64}")  # leads nowhere as part of a path


@dataclass(frozen=True)
class Exploit:
    """A trial took over another one's weights and changed the searched values (population-based training)."""

    step: int  # after this report of the trial
    attempt: int  # of the trial when it was decided; a later one carries it out
    donor: str
    donor_step: int
    values: dict[str, Value]  # searched values from here on
    recipe: Recipe
    why: str


@dataclass
class TrialRecord:
    """One trial as the journal tells it."""

    trial: str
    index: int
    role: str  # one of ROLES
    label: str  # which recipe a `confirm` trial repeats: a trial's name, "default", "trivial" or a candidate's name
    values: dict[str, Value]  # as proposed
    recipe: Recipe  # as proposed
    proposed: float
    epochs: list[Event] = field(default_factory=list)  # step, epoch, attempt, segment, t and the metrics
    exploits: list[Exploit] = field(default_factory=list)
    attempt: int = 0
    segment: int = -1
    node: str = ""
    waiting: bool = False  # paused by the scheduler, or not yet started by it
    reason: str | None = None
    message: str = ""
    ended: float | None = None
    test: Mapping[str, Any] | None = None  # metrics on the test images, once confirmed

    @property
    def steps(self) -> int:
        """Reports so far."""
        return int(self.epochs[-1]["step"]) if self.epochs else 0

    @property
    def age(self) -> int:
        """Age of the last reported weights in epochs: lower than `steps` after an exploit of a younger trial."""
        return int(self.epochs[-1]["epoch"]) if self.epochs else 0

    def best(self, study: Study, epochs: Sequence[Mapping[str, Any]] | None = None) -> Mapping[str, Any] | None:
        """The report by which this trial is ranked; None where no report has a score.

        It is the best one, the first of equals; with folds the last, since a mean over few folds is no better than one
        over many but only less sure. `epochs`: only these count.
        """
        reports = self.epochs if epochs is None else epochs
        scored = [(score, e) for e in reports if (score := study.score(e)) is not None]
        if not scored:
            return None
        if study.recipe.data.folds:
            return scored[-1][1]
        sign = 1.0 if study.better == "max" else -1.0
        return max(scored, key=lambda pair: sign * pair[0])[1]

    def last(self, study: Study) -> float | None:
        """The last report's score; with folds the last fold's."""
        reports = [e for e in self.epochs if study.is_judged(e)]
        return study.score(reports[-1]) if reports else None

    @property
    def current(self) -> Recipe:
        """The recipe that the next epoch trains with."""
        return self.recipe_at(self.steps + 1)

    def recipe_at(self, step: int) -> Recipe:
        """The recipe that report `step` was trained with, before its `changes`."""
        return next((e.recipe for e in reversed(self.exploits) if e.step < step), self.recipe)


def _checked(value: Any, kind: type, what: str) -> None:
    if type(value) is not kind or not _PLAIN.fullmatch(str(value)):
        raise CvtuneError(
            f"the journal names {what} {short(value)}, which cvtune never does: somebody else has written it. "
            "Restore the study folder from a copy that you trust."
        )


@dataclass
class History:
    """What the events so far add up to. `apply` is the only way it changes, live as in replay."""

    trials: dict[str, TrialRecord] = field(default_factory=dict)
    decisions: list[dict[str, Any]] = field(default_factory=list)  # each stop, promotion, exploit, retry; see `_decide`
    terms: list[dict[str, Any]] = field(default_factory=list)
    winners: list[Mapping[str, Any]] = field(default_factory=list)
    shares: list[Mapping[str, Any]] = field(default_factory=list)  # of a GPU; see `packing`
    calls: int = 0  # questions put to scheduler and searcher
    epochs: int = 0  # reports of trials that the budget counts: all but those of the confirmation
    device_s: float = 0.0  # what these took: seconds x GPUs of a trial at that time, CPU cores where it had no GPU
    _devices: float = field(default=1.0, repr=False)  # of a trial, now
    _by_role: dict[str, list[TrialRecord]] = field(default_factory=lambda: {role: [] for role in ROLES}, repr=False)

    def apply(self, event: Event) -> None:
        """Take in the next event.

        Raises:
            CvtuneError: it is none that cvtune writes, or names a trial or an attempt as cvtune does not: paths are
                made of these, and deleted.
        """
        try:
            self._apply(event)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise CvtuneError(
                f"the journal says something that cvtune does not write (an event {short(event.get('kind'))} at "
                f"{short(event.get('t'))}; {type(error).__name__}: {first_line(error)}). Restore the study folder from "
                "a copy that you trust."
            ) from error

    def _apply(self, event: Event) -> None:
        kind = event["kind"]
        if kind == "trial":
            _checked(event["trial"], str, "a trial")
            record = self.trials[event["trial"]] = TrialRecord(
                **{key: event[key] for key in ("trial", "index", "role", "label", "values")},
                recipe=Recipe.model_validate(event["recipe"]),
                proposed=event["t"],
                waiting=event["waiting"],
            )
            self._by_role[record.role].append(record)
        elif kind == "open":
            self.terms.append({**event, "closed": None, "why": None, "ended": None})
            has = event.get("resources", {})
            self._devices = has.get("GPU") or has.get("CPU") or 1.0
        elif kind == "close":
            self.terms[-1] |= {"closed": event["t"], "why": event["why"], "ended": event["ended"]}
        elif kind == "winner":
            self.winners.append(event)
        elif kind == "share":
            self.shares.append(event)
            self._devices = event["gpu"]
        else:
            self._apply_to_trial(kind, event, self.trials[event["trial"]])
        if event.get("call") is not None:
            self.calls = event["call"] + 1
        self._decide(event)

    def _apply_to_trial(self, kind: str, event: Event, record: TrialRecord) -> None:
        if kind == "start":
            record.waiting = False
        elif kind == "segment":
            _checked(event["attempt"], int, "an attempt")
            record.attempt, record.segment, record.node = event["attempt"], event["segment"], event["node"]
        elif kind == "epoch":
            record.epochs.append(event)
            record.waiting = event["answer"] == "pause"
            if record.role != "confirm":
                self.epochs += 1
                self.device_s += (event["seconds"] or 0.0) * self._devices
        elif kind == "test":
            record.test = event
        if event.get("reason") is not None:
            record.reason, record.message, record.ended = event["reason"], event["message"], event["t"]
        for act in event.get("acts", ()):
            other = self.trials[act["trial"]]
            if act["act"] == "stop":
                other.reason, other.message, other.ended = "stopped_scheduler", act["why"], event["t"]
            elif other.reason is None:  # patience or the budget may have ended it in the same event
                recipe = other.recipe.replace(act["values"])
                exploit = Exploit(
                    other.steps, other.attempt, act["donor"], act["donor_step"], act["values"], recipe, act["why"]
                )
                other.exploits.append(exploit)
                other.waiting = True

    def _decide(self, event: Mapping[str, Any]) -> None:
        """Keep what `decisions.parquet` tells: trial, step, action, why, arrival, donor, donor_step, values, t."""
        if event.get("action"):
            kept = ("t", "trial", "action", "why", "arrival")
            self.decisions.append({"step": event.get("step", 0), **{key: event.get(key) for key in kept}})
        for act in event.get("acts", ()):
            if act["act"] == "exploit" and self.trials[act["trial"]].reason is not None:
                continue
            self.decisions.append(
                {**act, "action": act["act"], "step": self.trials[act["trial"]].steps, "t": event["t"]}
            )

    @property
    def packing(self) -> Packing | None:
        """How many trials share a GPU since it was last decided; None: it was never measured."""
        return Packing(self.shares[-1]["trials"], self.shares[-1]["why"]) if self.shares else None

    @property
    def complete(self) -> bool:
        """Whether the last term ended because there was nothing left to do."""
        return bool(self.terms) and self.terms[-1]["why"] == "complete"

    def of(self, *roles: str) -> list[TrialRecord]:
        """The trials with one of these roles, in the order of proposal."""
        if len(roles) == 1:
            return list(self._by_role[roles[0]])  # asked many times a second
        return sorted((record for role in roles for record in self._by_role[role]), key=lambda record: record.index)

    def best(self, study: Study) -> tuple[TrialRecord, Mapping[str, Any]] | None:
        """The trial and its epoch with the best finite objective; failed trials and broken limits do not count.

        Confirming trials are left out: they repeat recipes that were found before.
        """
        ranked = self.ranked(study)
        return ranked[0] if ranked else None

    def ranked(self, study: Study) -> list[tuple[TrialRecord, Mapping[str, Any]]]:
        """Every trial of the search with its best report (see `TrialRecord.best`), the best first.

        With folds those come first that have finished more of them: a mean over a few may be better by their luck.
        """
        sign = 1.0 if study.better == "max" else -1.0
        scored = []
        for record in self.trials.values():
            if record.role == "confirm" or record.reason in FAILED:
                continue
            if best := record.best(study, [e for e in record.epochs if not study.over_limits(e)]):
                scored.append((record, best))

        def place(pair: tuple[TrialRecord, Mapping[str, Any]]) -> tuple[float, ...]:
            folds = study.round(pair[1]) if study.recipe.data.folds else 0
            return -folds, -sign * float(study.score(pair[1]) or 0), pair[0].index

        return sorted(scored, key=place)


def load(study: Path) -> History:
    """The history of a study folder."""
    history = History()
    for event in read(study):
        history.apply(event)
    return history
