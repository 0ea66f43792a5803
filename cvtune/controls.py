"""Controls: trials that are never stopped, and what they tell of ASHA: would its rungs have stopped the winner?

Their curves are recorded whole, so ASHA can be replayed over them as often as one likes, also under other rules.
"""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import numpy.typing as npt

from cvtune.history import History, TrialRecord
from cvtune.noise import score
from cvtune.recipe import Recipe
from cvtune.schedulers import ASHA, STRENGTHS
from cvtune.study import Study

NEEDED = 12  # control trials below which the answer would be a guess
ORDERS = 1000  # random orders of arrival that are replayed
RESAMPLES = 1000  # of the controls, for the interval of a correlation

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class RungReport:
    """What the score at one rung says of the final score.

    Attributes:
        epoch: of the rung.
        correlation: Spearman's rank correlation of the controls' score at the rung with their final score; None where
            all are alike.
        low, high: its 95 % interval, from drawing the controls again (percentile bootstrap).
        passed: share of orders in which the best control gets past this rung and all rungs before it.
    """

    epoch: int
    correlation: float | None
    low: float | None
    high: float | None
    passed: float


@dataclass(frozen=True)
class ControlReport:
    """Would ASHA have stopped the winner?

    Attributes:
        controls: control trials that trained for max_epochs.
        rungs: see `RungReport`, the first rung first; empty where it is not measurable.
        stopped: share of the orders in which the best control is stopped; None where it is not measurable.
        regret: final score of the best control minus that of the best survivor, mean over the orders, in units of the
            objective, never negative.
        objective: name of the score.
    """

    controls: int
    rungs: tuple[RungReport, ...]
    stopped: float | None
    regret: float | None
    objective: str

    def sentence(self) -> str:
        """The answer in words."""
        if self.stopped is None or self.regret is None:
            return (
                "Whether ASHA would have stopped the best trial is not measurable: it takes "
                f"{NEEDED} control trials that train to the end, and there are {self.controls}. Raise "
                "scheduler.controls."
            )
        known = [r for r in self.rungs if r.correlation is not None]
        ranks = ", ".join(f"{r.correlation:.2f} ({r.low:.2f} to {r.high:.2f}) at epoch {r.epoch}" for r in known)
        says = f" Rank correlation with the final score (95 % interval): {ranks}." if known else ""
        return (
            f"ASHA would have stopped the best of {self.controls} control trials in {self.stopped:.0%} of random orders"
            f" of arrival; the best survivor is {self.regret:.2g} worse in {self.objective} on average.{says}"
        )


@dataclass(frozen=True)
class SimResult:
    """What a search under ASHA comes to: the final score of what it would pick, and the epochs that it trained."""

    best_final_score_found: float
    epochs_used: int


def rungs(study: Study) -> list[int]:
    """The epochs at which ASHA decides in this study: those of its first bracket below max_epochs; else none."""
    if not isinstance(study.scheduler, ASHA):
        return []
    rules, most = study.scheduler, study.recipe.rounds
    return sorted({epoch for m in _milestones(rules, most, 0) if (epoch := math.ceil(m - 1e-9)) < most})


def strength(recipe: Recipe) -> float:
    """Mean of both strengths, by which ASHA's fair options sort; regularization by its knobs alone counts as 0."""
    flat = recipe.flat()
    return sum(float(flat[name] or 0) for name in STRENGTHS) / len(STRENGTHS)


def would_have_stopped(study: Study, history: History) -> ControlReport:
    """Replay the study's own ASHA over its control trials, in 1000 random orders (seeded by the study).

    Counted are controls that trained for max_epochs. At a rung ASHA sees the score of that epoch; the final score is
    the best of all epochs, as everywhere in the search (`noise.score`).
    """
    controls = [record for record in history.of("control") if _is_whole(study, record)]
    if len(controls) < NEEDED or not isinstance(study.scheduler, ASHA):
        return ControlReport(len(controls), (), None, None, study.objective)
    sign, rng = 1.0 if study.better == "max" else -1.0, np.random.default_rng(study.recipe.seed)
    curves = sign * np.array([_curve(study, record) for record in controls], float)
    final = sign * np.array([score(study, record) for record in controls], float)
    strengths = np.array([strength(record.recipe) for record in controls])
    best, most = int(final.argmax()), curves.shape[1]
    ends, lost = [], []
    for _ in range(ORDERS):
        asha, order = _Asha(study.scheduler, most), rng.permutation(len(controls))
        brackets = asha.draw(len(controls), rng)
        trained = {int(i): asha.train(curves[i], strengths[i], b) for i, b in zip(order, brackets, strict=True)}
        ends.append(trained[best])
        lost.append(final[best] - max(final[i] for i, epochs in trained.items() if epochs == most))
    reports = []
    for epoch in rungs(study):
        between = _correlation(curves[:, epoch - 1], final, rng)
        reports.append(RungReport(epoch, *between, passed=float(np.mean(np.array(ends) > epoch))))
    return ControlReport(
        len(controls), tuple(reports), float(np.mean(np.array(ends) < most)), float(np.mean(lost)), study.objective
    )


def simulate(
    curves: Floats,
    strengths: Floats,
    scheduler: ASHA,
    budget_epochs: int,
    order: npt.NDArray[np.int64],
    seed: int = 0,
) -> SimResult:
    """Replay recorded curves under ASHA, one trial after another, until a budget of epochs is used.

    Args:
        curves: (trials, epochs) score after each epoch of trials that were never stopped; more is better (negate a
            loss). NaN from where a trial diverged, which ends it.
        strengths: (trials,) in [0, 1], see `strength`.
        scheduler: the rules, fair options included.
        budget_epochs: epochs to train in all; the trial that reaches it is broken off.
        order: which trials arrive, in which order.
        seed: of the brackets that trials are put into, where there are several.

    Returns:
        The final score (best of the whole curve) of the trial with the best score seen, as the confirmation would
        train it to the end; NaN if no score was seen. And the epochs that were trained, at most the budget.
    """
    asha, used = _Asha(scheduler, curves.shape[1]), 0
    seen, found = -math.inf, math.nan
    for trial, bracket in zip(order, asha.draw(len(order), np.random.default_rng(seed)), strict=True):
        if used >= budget_epochs:
            break
        curve = curves[trial, : budget_epochs - used]
        epochs = asha.train(curve, float(strengths[trial]), bracket)
        used += epochs
        best = np.fmax.reduce(curve[:epochs])
        if best > seen:
            seen, found = float(best), float(np.nanmax(curves[trial]))
    return SimResult(found, used)


@dataclass
class _Rung:
    milestone: float  # epochs; need not be whole
    scores: list[float] = field(default_factory=list)  # of the trials that came by, rising

    def ask(self, value: float, share: float) -> bool:
        """Whether a trial may go on; it is remembered either way. The first one always may."""
        passes = not self.scores or value >= _percentile(self.scores, share)
        insort(self.scores, value)
        return passes


class _Asha:
    """ASHA as Ray Tune decides it (`AsyncHyperBandScheduler` and its `_Bracket`), with our grace and strata.

    Trials come one after another and report after every epoch, so which rung is asked when is known beforehand.
    """

    def __init__(self, rules: ASHA, max_epochs: int) -> None:
        self._rules, self._max = rules, max_epochs
        self._share = (1 - 1 / rules.reduction_factor) * 100 / 100  # Ray's percentile, rounded as there
        self._brackets = [
            [[_Rung(m) for m in _milestones(rules, max_epochs, s)] for s in range(rules.brackets)]
            for _ in range(rules.strata)
        ]

    def draw(self, trials: int, rng: np.random.Generator) -> Sequence[int]:
        """A bracket for each trial, with Ray's probabilities."""
        sizes = np.array([len(bracket) for bracket in self._brackets[0]])
        weights = np.exp(sizes - sizes.max())
        return [int(b) for b in rng.choice(len(sizes), size=trials, p=weights / weights.sum())]

    def train(self, curve: Floats, strength: float, bracket: int) -> int:
        """Train the next trial: the epochs until it is stopped, diverges, or its curve ends."""
        rules = self._rules
        rungs = self._brackets[min(int(strength * rules.strata), rules.strata - 1)][bracket]
        grace = rules.grace_epochs * (1 + rules.grace_by_strength * strength)
        bad = np.flatnonzero(~np.isfinite(curve))
        end = int(bad[0]) if len(bad) else len(curve)  # last epoch with a score
        own = [rung for rung in rungs if rung.milestone >= grace - 1e-9]
        asked = _due(tuple(rung.milestone for rung in own), self._max)
        for place, (epoch, index) in enumerate(asked):
            if epoch > end:
                break
            # At max_epochs a trial is over whatever the rung says; it only leaves its score there.
            if not own[index].ask(float(curve[epoch - 1]), self._share) and epoch < self._max:
                late = [own[i] for _, i in asked[place + 1 :] if own[i].milestone <= epoch]
                for rung in late[:1]:  # Ray asks once more when a trial is over
                    rung.ask(float(curve[epoch - 1]), self._share)
                return epoch
        return min(end + 1, len(curve))


def _milestones(rules: ASHA, max_epochs: int, bracket: int) -> list[float]:
    """The rungs of a bracket in epochs, rising."""
    count = int(np.log(max_epochs / rules.grace_epochs) / np.log(rules.reduction_factor) - bracket + 1)
    return [rules.grace_epochs * rules.reduction_factor ** (k + bracket) for k in range(count)]


@cache
def _due(milestones: tuple[float, ...], max_epochs: int) -> tuple[tuple[int, int], ...]:
    """(epoch, which rung) in the order in which a trial that reports every epoch asks its rungs.

    Each epoch it asks the highest rung that it has reached and not asked; of rungs that lie closer together than an
    epoch some are asked late.
    """
    left, due = list(range(len(milestones)))[::-1], []
    for epoch in range(1, max_epochs + 1):
        index = next((i for i in left if milestones[i] <= epoch), None)
        if index is not None:
            left.remove(index)
            due.append((epoch, index))
    return tuple(due)


def _percentile(rising: list[float], share: float) -> float:
    """`np.percentile`'s linear interpolation, to the last bit, without its overhead."""
    place = share * (len(rising) - 1)
    low = int(place)
    part, below, above = place - low, rising[low], rising[min(low + 1, len(rising) - 1)]
    gap = above - below
    return below + gap * part if part < 0.5 else above - gap * (1 - part)


def _correlation(
    at_rung: Floats, final: Floats, rng: np.random.Generator
) -> tuple[float | None, float | None, float | None]:
    """Spearman's rank correlation and its 95 % interval; None where a rank has no meaning."""
    value = _spearman(at_rung, final)
    draws = (rng.integers(len(final), size=len(final)) for _ in range(RESAMPLES))
    drawn = [r for pick in draws if (r := _spearman(at_rung[pick], final[pick])) is not None]
    if value is None:
        return None, None, None
    low, high = np.percentile(drawn, [2.5, 97.5])
    return value, float(low), float(high)


def _spearman(a: Floats, b: Floats) -> float | None:
    first, second = _ranks(a), _ranks(b)
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(np.corrcoef(first, second)[0, 1])


def _ranks(values: Floats) -> Floats:
    """Ranks; equal values share their mean rank."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[place])


def _is_whole(study: Study, record: TrialRecord) -> bool:
    scores = _curve(study, record)
    whole = len(scores) == study.recipe.rounds and all(map(math.isfinite, scores))
    return record.reason == "completed" and whole and score(study, record) is not None


def _curve(study: Study, record: TrialRecord) -> list[float]:
    """The score after each epoch, or each fold."""
    return [value for e in record.epochs if (value := study.score(e)) is not None]
