"""What the points of a study have shown so far, as the searchers that learn see it: journal events to scores."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from cvtune.history import FAILED
from cvtune.recipe import Value
from cvtune.study import Study

RAN_OUT = ("completed", "stopped_patience")  # a trial that ended by its own recipe: its best score is its result


@dataclass
class Seen:
    """What is known of one point.

    Attributes:
        reports: step -> objective, as far as the trial's weights are its own; of folds only their number -> last mean.
        outcome: how it ended: `complete`, `stopped` early, `bad` (diverged, or above a limit), or `failed` for reasons
            that say nothing about the point.
    """

    values: dict[str, Value]
    outcome: Literal["running", "complete", "stopped", "bad", "failed"] = "running"
    reports: dict[int, float] = field(default_factory=dict)
    above_limit: bool = False
    adopted: bool = False  # it took over another trial's weights: what it reports from then on is not its own

    def end(self, reason: str) -> None:
        """Take in the trial's terminal reason."""
        if self.above_limit or reason == "diverged":
            self.outcome = "bad"
        elif reason in FAILED:
            self.outcome = "failed"
        elif reason in RAN_OUT and not self.adopted:
            self.outcome = "complete" if self.reports else "bad"
        else:
            self.outcome = "stopped" if self.reports else "failed"


class Evidence:
    """Everything that a study's points have shown so far, in the order in which they were proposed.

    Counted are the trials of the search, the random control trials and the noise trials of the base recipe, where all
    their values lie in the space, and what an earlier study measured (`study.prior`).
    """

    def __init__(self, study: Study) -> None:
        self._study = study
        self._trials: dict[str, Seen] = {}
        self._asked: dict[int, Seen] = {}  # proposed, but not on record yet
        self._prior = [
            Seen(dict(prior.values), "complete" if prior.complete else "stopped", {prior.epochs: prior.score})
            for prior in study.prior
        ]

    @property
    def seen(self) -> list[Seen]:
        return [*self._prior, *self._trials.values(), *self._asked.values()]

    def ask(self, number: int, values: dict[str, Value] | None) -> None:
        """A point was proposed for the search's trial `number`; None takes it back."""
        self._asked.pop(number, None)
        if values is not None:
            self._asked[number] = Seen(dict(values))

    def observe(self, event: Mapping[str, Any]) -> None:
        """Take in the next event of the journal."""
        if event["kind"] == "trial":
            self._add(event)
        seen = self._trials.get(event.get("trial", ""))
        if seen is not None and seen.outcome == "running":
            if event["kind"] == "epoch":
                self._report(seen, event)
            if event.get("reason") is not None:
                seen.end(event["reason"])
        for act in event.get("acts", ()):
            other = self._trials.get(act["trial"])
            if other is not None and act["act"] == "stop":
                other.end("stopped_scheduler")
            elif other is not None:
                other.adopted = True

    def _add(self, event: Mapping[str, Any]) -> None:
        role, space = event["role"], self._study.space
        if role == "search":
            self._asked.pop(number_of(event), None)
        values = space.restrict(self._study.recipe.flat() if role == "noise" else event["values"])
        if role != "confirm" and values is not None:
            self._trials[event["trial"]] = Seen(values)

    def _report(self, seen: Seen, event: Mapping[str, Any]) -> None:
        score = self._study.score(event)
        seen.above_limit |= self._study.over_limits(event) is not None
        if score is not None and math.isfinite(score) and not seen.adopted:
            if self._study.recipe.data.folds:
                seen.reports = {self._study.round(event): score}  # a mean over more folds takes the place of the last
            else:
                seen.reports[event["step"]] = score


def final_scores(seen: Sequence[Seen], sign: int) -> list[float | None]:
    """The score that each point reached, or would probably have reached had its trial not been stopped.

    Stopped trials get their best score so far plus the typical later gain: for each epoch the median gain in best
    score over all trials that were trained through it, added up from where this one was stopped; but never more than
    the best score measured. The order among trials stopped together is kept, and trials that ended at different ages
    become comparable. Bad ones get the worst score of all. None: nothing is known.

    Args:
        sign: 1 if a higher score is better, -1 if a lower one is.
    """
    gains: dict[int, list[float]] = {}
    for each in seen:
        best = -math.inf
        for step in sorted(each.reports):
            better = max(best, sign * each.reports[step])
            if step - 1 in each.reports:
                gains.setdefault(step, []).append(better - best)
            best = better
    typical = {step: statistics.median(values) for step, values in gains.items()}
    measured = [max(sign * score for score in each.reports.values()) if each.reports else None for each in seen]
    top = max((score for score in measured if score is not None), default=0.0)

    def final(each: Seen, best: float | None) -> float | None:
        if best is None or each.outcome not in ("complete", "stopped"):
            return None
        later = sum(gain for step, gain in typical.items() if step > max(each.reports))
        return best if each.outcome == "complete" else min(best + later, top)

    scores = [final(each, best) for each, best in zip(seen, measured, strict=True)]
    worst = min((score for score in scores if score is not None), default=None)
    scores = [worst if each.outcome == "bad" else score for each, score in zip(seen, scores, strict=True)]
    return [None if score is None else sign * score for score in scores]


def number_of(event: Mapping[str, Any]) -> int:
    """Which trial of its role a `trial` event is about, counted from 0."""
    return int(event.get("number", event["index"]))
