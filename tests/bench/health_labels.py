"""What each verdict means, by the outcome of a run; laid down before the runs of `health.py` that are judged by it.

Outcomes are losses on test images that no verdict sees; a network's loss before its first step, which no report holds,
says where it began.

- *Group*: the runs of one data set, architecture and optimizer. In it rates are swept, at one good rate strengths of
  augmentation, and at that rate a few runs train four times as long.
- *Outcome* of a run: the lowest loss on the test images over its reports; that of the untrained network if it is lower
  or none is finite. The *optimum* is the rate, or strength, of the lowest mean outcome over seeds; s is the standard
  deviation over seeds at the optimum and its neighbors, pooled. A run is *worse* than a mean outcome if its own exceeds
  it by more than two standard errors, 2 s sqrt(1 + 1/seeds), and by more than a tenth of what training gains (untrained
  minus optimum): the smallest effect that is of interest. Where only one of the two holds it is *unclear*, neither
  positive nor negative; the tables count such runs.
- diverged: a loss that is not finite, or at the end a loss on the training images, not augmented, above the untrained
  network's.
- learning rate too high: worse than the optimum, with a rate above it. Too low: worse, with a rate below.
- augmentation too strong: worse than the best strength, with one above it.
- underfitting: it did not diverge; its loss on the training images ends above the best one of the group (mean over
  seeds, of any rate or of the long runs) by more than a quarter of the way from there to the untrained network's; and
  its outcome is worse than the group's best, the long runs included: better fitted it would have done better.
- overfitting: it did not diverge; its loss on the test images ends above its lowest by more than two standard errors of
  the difference image by image, and by more than a tenth of what training gains (unclear where only one of the two
  holds); and its loss on the training images fell meanwhile.
- collapsed to the majority class: its losses are finite, and at the end one class is predicted for 90 % of the test
  images or more, of which it makes up less than 60 %.
- Of runs of the arm `high` (more seeds of the highest rates) only diverged and collapsed are judged. So of groups in
  which training gains less than a fifth of the untrained network's loss, whatever the rate: where nothing is learned no
  rate and no strength is better than another.

Lines that were changed after runs had been judged by them: the documentation (`cvtune/docs/health.md`) says which, why,
and what the numbers were before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Record = dict[str, Any]  # a line of runs.jsonl
RELEVANT = 0.1  # of what training gains: the smallest difference that is of interest
LEARNED = 0.2  # of the untrained network's loss: what training must gain in a group
UNFITTED = 0.25  # of the way from the long runs' loss to the untrained network's


@dataclass(frozen=True)
class Swept:
    """What the runs of one arm came to.

    Attributes:
        value: rate or strength of the optimum.
        outcome: its mean.
        error: standard error of one run's outcome minus that mean.
        gain: what training gains: mean outcome of the untrained networks minus `outcome`.
    """

    value: float
    outcome: float
    error: float
    gain: float


@dataclass(frozen=True)
class Group:
    """What the runs of one data set, architecture and optimizer came to.

    Attributes:
        arms: by the name of the arm.
        reached: the best mean outcome, of any rate or of the long runs.
        fitted: the best mean loss on the training images at the end, of any rate or of the long runs.
        untrained: the same before the first step.
    """

    arms: dict[str, Swept]
    reached: float
    fitted: float
    untrained: float

    @property
    def gain(self) -> float:
        """What training gains at the best rate."""
        return self.arms["rate"].gain


def outcome(run: Record) -> float:
    """The lowest finite loss on the test images, the untrained network's included."""
    return min(x for x in (run["start"]["test"], *run["test"]) if math.isfinite(x))


def value_of(run: Record) -> float:
    """What its arm sweeps."""
    return float(run["job"]["strength" if run["job"]["arm"] == "strength" else "rate"])


def group_of(runs: Sequence[Record]) -> Group:
    """Of all runs of a group."""
    names = {run["job"]["arm"] for run in runs} - {"high"}
    arms = {name: _swept([run for run in runs if run["job"]["arm"] == name]) for name in names}
    return Group(
        arms,
        reached=min(arms["rate"].outcome, arms["long"].outcome),
        fitted=_fitted([run for run in runs if run["job"]["arm"] in ("rate", "long")]),
        untrained=_mean(lambda run: run["start"]["train"], [run for run in runs if run["job"]["arm"] == "rate"]),
    )


def _swept(runs: Sequence[Record]) -> Swept:
    values = sorted(set(map(value_of, runs)))
    ends = [[outcome(run) for run in runs if value_of(run) == value] for value in values]
    best = int(np.argmin([np.mean(some) for some in ends]))
    near = [np.var(some, ddof=1) for some in ends[max(0, best - 1) : best + 2]]
    lowest = float(np.mean(ends[best]))
    return Swept(
        value=values[best],
        outcome=lowest,
        error=float(np.sqrt(np.mean(near) * (1 + 1 / len(ends[best])))),
        gain=_mean(lambda run: run["start"]["test"], runs) - lowest,
    )


def _fitted(runs: Sequence[Record]) -> float:
    kinds = {(run["job"]["arm"], value_of(run)) for run in runs}
    means = [_mean(lambda run: run["train"], [r for r in runs if (r["job"]["arm"], value_of(r)) == k]) for k in kinds]
    return min(mean for mean in means if math.isfinite(mean))


def _mean(number: Callable[[Record], float], runs: Sequence[Record]) -> float:
    return float(np.mean([number(run) for run in runs]))


def labels(run: Record, group: Group) -> dict[str, bool | None]:
    """Verdict -> whether it is right of a run by its outcome, None: unclear. Those that its arm judges, see above."""
    name, end = run["job"]["arm"], run["train"]
    share, there = run["top"]
    finite = all(map(math.isfinite, (*run["test"], end)))
    diverged = not finite or end > run["start"]["train"]
    found: dict[str, bool | None] = {
        "diverged": diverged,
        "collapsed to the majority class": finite and share >= 0.9 and there < 0.6,
    }
    if name == "high" or group.gain < LEARNED * group.untrained:
        return found
    arm = group.arms[name]
    found["overfitting"] = False if diverged or not _fell(run) else _risen(run, arm)
    worse = _both(outcome(run) - arm.outcome, arm.error, arm.gain)
    if name == "rate":
        found["learning rate too high"] = worse if value_of(run) > arm.value else False
        found["learning rate too low"] = worse if value_of(run) < arm.value else False
    elif name == "strength":
        found["augmentation too strong"] = worse if value_of(run) > arm.value else False
    if name in ("rate", "strength"):
        unfitted = not diverged and end - group.fitted > UNFITTED * (group.untrained - group.fitted)
        missed = _both(outcome(run) - group.reached, arm.error, group.gain)
        found["underfitting"] = missed if unfitted else False
    return found


def _risen(run: Record, arm: Swept) -> bool | None:
    """Whether the loss on the test images rose to the end."""
    gap, error = run["gap"]
    return _both(gap, error, arm.gain)


def _fell(run: Record) -> bool:
    """Whether the loss on the training images fell after the report with the lowest one on the test images."""
    best = int(np.argmin(np.nan_to_num(run["test"], nan=math.inf)))
    return bool(run["reports"][-1].get("clean_loss", math.inf) < run["reports"][best].get("clean_loss", -math.inf))


def _both(effect: float, error: float, gain: float) -> bool | None:
    """Whether an effect is beyond two standard errors and of interest; None, unclear, where only one of them holds."""
    beyond_noise, of_interest = effect > 2 * error, effect > RELEVANT * gain
    return beyond_noise if beyond_noise == of_interest else None
