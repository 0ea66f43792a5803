"""Health: what a trial's reports say is wrong with it, as verdicts with their evidence. No torch, no Ray.

Several verdicts may hold at once, and one that does not hold is no proof of the opposite. Each looks at one trial
alone, at the reports made so far. How often they are right was measured on runs that did not set the thresholds: see
`docs/health.md`, and `tests/bench/health.py`, which also defines what each verdict means by the outcome of a run.

Losses are compared with that of guessing (ln K for K classes), so that thresholds mean the same for any task; *start*
is the larger one of that and `clean_loss` before the first step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cvtune.compact import gathered
from cvtune.history import TrialRecord

Floats = npt.NDArray[np.float64]

FEWEST = 4  # reports; below it only a loss that is not finite says anything
BURST = 1.25  # x start
MARGIN = 1.001  # x the loss before the first step: a network that hardly moves may end a little above it
EXPLODED = 200.0  # x the loss of guessing: batch norm's moving averages lag behind at good rates too, by up to 70
FLIPS = 0.65  # share of predictions
STUCK = 0.55  # of guessing
ASTRAY = 2.2  # x the norm of the weights at the first report
UNFIT = 0.35  # of guessing
BEYOND = 0.25  # of guessing
SLOW = 0.1  # of guessing
GROWN = 1.16  # x the norm of the weights at the first report
SAME = 0.13  # of guessing
RISE = 0.03  # of guessing
UNDONE = 0.12  # of what val_loss had fallen
LEARNED = 0.95  # of guessing
OVER = 0.25  # of guessing
KNOWN = 0.33  # of guessing
COLLAPSED = 0.2  # of the right entropy
FULL_RATE = 0.5  # of the peak: reports at a higher rate show what the rate does, not its end


@dataclass(frozen=True)
class Verdict:
    """One thing that is wrong with a run, and the sentence that says what it is seen by."""

    name: str
    evidence: str


@dataclass(frozen=True)
class Rule:
    """A row of `RULES`.

    Attributes:
        name: of the verdict, as it stands in tables.
        sees: the columns of `epochs` that are looked at.
        holds: when the verdict holds.
        source: where the thresholds come from.
        find: the evidence where it holds, else None.
        whole: whether it is only said of trials that trained to their end.
        broken: whether it can be said of one with a loss that is not finite.
    """

    name: str
    sees: tuple[str, ...]
    holds: str
    source: str
    find: Callable[[Curves], str | None]
    whole: bool = False
    broken: bool = False


class Curves:
    """The reports of one trial as arrays in their order, NaN where a report has no number.

    Attributes:
        chance: the loss of guessing in nats, ln K, or ln 2 of each tag; NaN where the number of classes is not known.
    """

    def __init__(self, reports: Sequence[Mapping[str, Any]]) -> None:
        self._reports, self._columns = reports, dict[str, Floats]()
        self._copied = gathered(reports)
        recalls = (report.get("val_recall") for report in reports)
        classes = next((len(recall) for recall in recalls if isinstance(recall, list)), 0)
        tags = any(r.get("val_map") is not None for r in reports)
        self.chance = math.log(2 if tags else classes) if classes > 1 else math.nan

    def __len__(self) -> int:
        return len(self._reports)

    def of(self, name: str) -> Floats:
        """A column."""
        if name not in self._columns:
            if self._copied is not None:
                self._columns[name] = self._copied.floats(name)
            else:
                self._columns[name] = np.array([report.get(name) for report in self._reports], np.float64)  # None: NaN
        return self._columns[name]

    def last(self, name: str) -> float:
        """Its last value; NaN of none."""
        return float(self.of(name)[-1]) if len(self) else math.nan

    @property
    def broken(self) -> int | None:
        """The first report, from 0, with a loss that is not finite."""
        bad = ~np.isfinite(self.of("train_loss")) | ~np.isfinite(self.of("val_loss"))
        return int(bad.argmax()) if bad.any() else None

    @property
    def untrained(self) -> float:
        """`clean_loss` before the first step; that of guessing where it is not told."""
        told = self.of("start_loss")
        return float(next(iter(told[np.isfinite(told)]), self.chance))

    @property
    def start(self) -> float:
        """`clean_loss` before the first step, at least that of guessing."""
        return max(self.chance, self.untrained)

    @property
    def growth(self) -> float:
        """The largest norm of the weights over that of the first report: how far training has moved them."""
        norms = self.of("weight_norm")
        return float(np.nanmax(norms) / norms[0]) if np.isfinite(norms).any() else math.nan

    @property
    def peak(self) -> float:
        """The highest learning rate."""
        rates = self.of("lr")
        return float(np.nanmax(rates)) if np.isfinite(rates).any() else math.nan

    @property
    def gap(self) -> float:
        """At the end: loss on the validation images minus that on images that are trained on."""
        return self.last("val_loss") - self.last(self.known)

    @property
    def known(self) -> str:
        """The loss on images that are trained on: without augmentation and noise, else as trained."""
        return "train_loss" if np.isnan(self.of("clean_loss")).all() else "clean_loss"

    @property
    def flips(self) -> float:
        """Mean share of the probe set's predictions that change from report to report, while the rate is high."""
        rate, flips = self.of("lr"), self.of("probe_flips")
        high = (rate >= FULL_RATE * self.peak) | math.isnan(self.peak)
        counted = flips[high & np.isfinite(flips)]
        return float(counted.mean()) if len(counted) else math.nan


def verdicts(reports: Sequence[Mapping[str, Any]], whole: bool = True) -> tuple[Verdict, ...]:
    """What is wrong with a trial, in the order of `RULES`; nothing where all is well, or too little is known.

    Args:
        reports: the numbers of its reports by the names of `Epoch`, in their order; with folds those of the last one
            count. Names may be missing, and None stands for a number that is not there or not finite, as in a journal.
        whole: whether it trained to its end. Of one that was stopped early nobody knows what it would have learned.
    """
    fold = reports[-1].get("fold") if reports else None
    curves = Curves([report for report in reports if report.get("fold") == fold])
    broken = curves.broken is not None
    if len(curves) < FEWEST and not broken:
        return ()
    rules = (rule for rule in RULES if (rule.broken or not broken) and (whole or not rule.whole))
    found = ((rule.name, rule.find(curves)) for rule in rules)
    return tuple(Verdict(name, evidence) for name, evidence in found if evidence is not None)


def of_trial(record: TrialRecord) -> tuple[Verdict, ...]:
    """What is wrong with a trial of a study, by all that it has reported."""
    whole = record.age >= record.recipe.max_epochs or record.reason in ("completed", "stopped_patience")
    return verdicts(record.epochs, whole)


def names_of(found: Sequence[Verdict]) -> str:
    """Their names, divided by ", "."""
    return ", ".join(verdict.name for verdict in found)


def told(found: Sequence[Verdict]) -> str:
    """Each with its evidence, a sentence after the other."""
    return " ".join(f"{verdict.name}: {verdict.evidence}" for verdict in found)


def _diverged(curves: Curves) -> str | None:
    if curves.broken is not None:
        return f"The loss of report {curves.broken + 1} is not a finite number."
    name, last = curves.known, curves.last(curves.known)
    if last > MARGIN * curves.untrained:
        return f"{name} ended at {last:.4g}, above {curves.untrained:.4g}: worse than before the first step."
    return None


def _too_high(curves: Curves) -> str | None:
    if curves.broken is not None:
        return f"The loss was finite up to report {curves.broken}, at a peak rate of {curves.peak:.3g}, then no number."
    name, chance = curves.known, curves.chance
    loss, known = curves.of("train_loss"), curves.of(name)
    if loss.max() > BURST * curves.start:
        return (
            f"train_loss was up to {loss.max():.3g} at rates up to {curves.peak:.3g}; guessing, and the "
            f"network before its first step, had at most {curves.start:.3g}."
        )
    if np.nanmax(known) > EXPLODED * chance:
        return (
            f"{name} was up to {np.nanmax(known):.3g} (guessing has {chance:.3g}) at rates up to {curves.peak:.3g}, "
            f"while train_loss went from {loss[0]:.3g} to {loss[-1]:.3g}: the predictions degrade as it learns."
        )
    if known[-1] > STUCK * chance and curves.growth > ASTRAY:
        return (
            f"The weights moved far, to {curves.growth:.2g} times their norm at the first report, at rates up to "
            f"{curves.peak:.3g}, and {name} is still {known[-1]:.3g} ({known[-1] / chance:.0%} of guessing)."
        )
    if curves.flips > FLIPS:
        return (
            f"train_loss fell from {loss[0]:.3g} to {loss[-1]:.3g} while {curves.flips:.0%} of the probe set's "
            f"predictions changed from report to report at rates up to {curves.peak:.3g}."
        )
    return None


def _too_low(curves: Curves) -> str | None:
    name, last, chance = curves.known, curves.last(curves.known), curves.chance
    if last > SLOW * chance and curves.growth < GROWN and not _too_high(curves):
        return (
            f"{name} was still {last:.3g} at the end ({last / chance:.0%} of guessing) and the weights have hardly "
            f"moved: their norm is at most {curves.growth:.2f} times that of the first report."
        )
    return None


def _overfitting(curves: Curves) -> str | None:
    val, known, last = curves.of("val_loss"), curves.of(curves.known), curves.last("val_loss")
    best = int(np.nanargmin(val))
    rise, fell = last - float(val[best]), float(known[best] - known[-1])
    least = max(RISE * curves.chance, UNDONE * (curves.start - float(val[best])))
    if rise > least and fell > 0 and known[-1] < LEARNED * curves.chance:
        return (
            f"val_loss rose from {val[best]:.3g} at report {best + 1} to {last:.3g} while {curves.known} fell by "
            f"{fell:.3g} to {known[-1]:.3g}."
        )
    return None


def _underfitting(curves: Curves) -> str | None:
    last, chance = curves.last(curves.known), curves.chance
    if last > UNFIT * chance and curves.gap < BEYOND * chance and not _diverged(curves):
        return (
            f"{curves.known} ended at {last:.3g}, {last / chance:.0%} of guessing: not even the images that are "
            f"trained on are fitted, and val_loss is hardly higher ({curves.last('val_loss'):.3g})."
        )
    return None


def _too_strong(curves: Curves) -> str | None:
    strength, train, val, last = (
        curves.last(name) for name in ("augment_strength", "train_loss", "val_loss", "clean_loss")
    )
    chance = curves.chance
    unfit, over = last > KNOWN * chance and curves.gap < SAME * chance, train - val > OVER * chance
    if strength > 0 and (unfit or over) and not _too_high(curves):
        return (
            f"At strength {strength:.2g} train_loss ended at {train:.3g} on augmented images, clean_loss at {last:.3g} "
            f"on the same ones as they are, and val_loss at {val:.3g}: there is no overfitting against which so much "
            "augmentation would be needed."
        )
    return None


def _collapsed(curves: Curves) -> str | None:
    spread = curves.last("probe_entropy")
    if spread < COLLAPSED:
        return f"At the end nearly all of the probe set is told alike: its entropy is {spread:.0%} of the right one."
    return None


DEV = "development runs of tests/bench/health.py"
RULES: tuple[Rule, ...] = (
    Rule(
        "diverged",
        ("train_loss", "val_loss", "clean_loss", "start_loss"),
        f"a loss is not finite, or clean_loss ends above {MARGIN:g} x what it was before the first step",
        "what the word means",
        _diverged,
        broken=True,
    ),
    Rule(
        "learning rate too high",
        ("train_loss", "clean_loss", "start_loss", "weight_norm", "probe_flips", "lr"),
        f"train_loss is above {BURST:g} x start at any report, or clean_loss above {EXPLODED:g} x guessing, or a loss "
        f"is not finite; or clean_loss is above {STUCK:.0%} of guessing though weight_norm grew to more than "
        f"{ASTRAY:g} x its first value; or more than {FLIPS:.0%} of the probe set's predictions change from report to "
        "report while the rate is at least half of its peak",
        f"predictions that change while the loss falls: the practitioners' rule; numbers: {DEV}",
        _too_high,
        broken=True,
    ),
    Rule(
        "learning rate too low",
        ("clean_loss", "weight_norm"),
        f"clean_loss ends above {SLOW:.0%} of guessing, weight_norm is at no report more than {GROWN:g} x its first "
        "value, and the rate is not too high",
        DEV,
        _too_low,
        whole=True,
    ),
    Rule(
        "overfitting",
        ("val_loss", "clean_loss"),
        f"val_loss ends above its lowest by more than {RISE:.0%} of guessing and by more than {UNDONE:.0%} of what it "
        f"had fallen from start, and clean_loss fell meanwhile, to below {LEARNED:.0%} of guessing",
        DEV,
        _overfitting,
    ),
    Rule(
        "underfitting",
        ("clean_loss", "val_loss"),
        f"clean_loss ends above {UNFIT:.0%} of guessing, val_loss less than {BEYOND:.0%} of it higher, and it did not "
        "diverge",
        DEV,
        _underfitting,
        whole=True,
    ),
    Rule(
        "augmentation too strong",
        ("train_loss", "clean_loss", "val_loss", "augment_strength"),
        f"the strength is not 0, the rate is not too high, and clean_loss ends above {KNOWN:.0%} of guessing with "
        f"val_loss less than {SAME:.0%} of it higher, or train_loss ends more than {OVER:.0%} of it above val_loss",
        DEV,
        _too_strong,
        whole=True,
    ),
    Rule(
        "collapsed to the majority class",
        ("probe_entropy",),
        f"the entropy of the classes predicted at the end is below {COLLAPSED:.0%} of that of the right ones",
        DEV,
        _collapsed,
    ),
)
