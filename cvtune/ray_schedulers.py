"""Ray Tune's schedulers that stop trials, as the Board asks them, and the one place that makes a study's scheduler.

What differs from Ray's own, and why:

- ASHA: rungs may depend on a trial's strength, and be kept apart by it (see `schedulers.ASHA`).
- Promotion: Ray has none; it is our own.
- HyperBand: Ray's waits for ever when the last awaited trial fails after a bracket's first halving; it lets new trials
  into brackets that have begun; and it ends the survivors below max_epochs where the rungs do not divide it.
- Median: a last report counts once (Ray's counts it twice), and a trial's mean is computed once.

Those that change a population are in `population.py` and `pb2.py`.
"""

from __future__ import annotations

import copy
import logging
import math
from typing import Any, Literal

from ray.tune.experiment import Trial
from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    FIFOScheduler,
    HyperBandScheduler,
    MedianStoppingRule,
    async_hyperband,
    hyperband,
)

from cvtune.explained import Explained, Reason, common
from cvtune.population import PbtRule
from cvtune.schedulers import ASHA, PB2, PBT, STRENGTHS, HyperBand, Median, Promotion
from cvtune.study import Study


class Fifo(Explained, FIFOScheduler):
    """Lets everything run."""


class Rungs(async_hyperband._Bracket):
    """A bracket of ASHA that remembers what it compared last: rung, cutoff, how many were there before."""

    asked: tuple[float, Any, int] | None = None

    def cutoff(self, recorded: dict[str, float]) -> Any:
        value = super().cutoff(recorded)
        self.asked = (next(m for m, there in self._rungs if there is recorded), value, len(recorded))
        return value

    def since(self, grace: float) -> Rungs:
        """This bracket without the rungs below `grace` epochs; what the others recorded is shared."""
        view = copy.copy(self)
        view._rungs = [(milestone, recorded) for milestone, recorded in self._rungs if milestone >= grace - 1e-9]
        return view


class Asha(Explained, AsyncHyperBandScheduler):
    """ASHA with a grace period and strata by strength."""

    _brackets: Any

    def __init__(self, study: Study, rules: ASHA) -> None:
        super().__init__(
            max_t=study.recipe.rounds,
            grace_period=rules.grace_epochs,
            reduction_factor=rules.reduction_factor,
            brackets=rules.brackets,
            **common(study),
        )
        self._rules, self._base = rules, study.recipe.flat()
        self._strata = [
            [Rungs(rules.grace_epochs, study.recipe.rounds, rules.reduction_factor, s) for s in range(rules.brackets)]
            for _ in range(rules.strata)
        ]

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        strength = self._strength(trial)
        self._brackets = self._strata[self._stratum(strength)]
        super().on_trial_add(tune_controller, trial)
        bracket = self._trial_info[trial.trial_id]
        grace = self._rules.grace_epochs * (1 + self._rules.grace_by_strength * strength)
        self._trial_info[trial.trial_id] = bracket.since(grace)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        bracket = self._trial_info[trial.trial_id]
        bracket.asked = None
        answer = super().on_trial_result(tune_controller, trial, result)
        if bracket.asked is not None:
            rung, cutoff, arrival = bracket.asked
            bar = "no other trial to compare with" if cutoff is None else f"cutoff {self._metric_op * cutoff:.4g}"
            text = f"{self._where(trial)}rung {rung:g}: {self._metric} = {result[self._metric]:.4g}, {bar}"
            self.reasons[trial.trial_id] = Reason(text, "stop" if answer == self.STOP else "promote", arrival)
        return str(answer)

    def _where(self, trial: Trial) -> str:
        if self._rules.strata == 1:
            return ""
        strength = self._strength(trial)
        return f"stratum {self._stratum(strength) + 1} of {self._rules.strata} (mean strength {strength:.2g}), "

    def _strength(self, trial: Trial) -> float:
        """Mean of both strengths; regularization by its knobs alone (None) counts as 0."""
        return sum(float(trial.config.get(name, self._base[name]) or 0) for name in STRENGTHS) / len(STRENGTHS)

    def _stratum(self, strength: float) -> int:
        return min(int(strength * self._rules.strata), self._rules.strata - 1)


class PromotionRule(Explained, FIFOScheduler):
    """ASHA whose trials wait at the rungs until they are among the best there."""

    def __init__(self, study: Study, rules: Promotion) -> None:
        super().__init__()
        self._objective, self._sign = study.objective, 1 if study.better == "max" else -1
        self._factor, rung = rules.reduction_factor, float(rules.grace_epochs)
        self._rungs: dict[int, dict[str, float]] = {}  # epoch -> trial -> score, more is better
        while (epoch := math.ceil(rung - 1e-9)) < study.recipe.rounds:
            self._rungs[epoch] = {}
            rung *= self._factor
        self._trials: dict[str, Trial] = {}
        self._at: dict[str, int] = {}  # trial -> the highest rung that it has reached

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        self._trials[trial.trial_id] = trial

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        name, epoch = trial.trial_id, result["epoch"]
        if epoch not in self._rungs:
            return str(self.CONTINUE)
        self._rungs[epoch][name], self._at[name] = self._sign * result[self._objective], epoch
        passes = name in self._best(epoch)
        self.reasons[name] = Reason(self.waits(name), "promote" if passes else None)
        return str(self.CONTINUE if passes else self.PAUSE)

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        for epoch in sorted(self._rungs, reverse=True):
            for name in self._best(epoch):
                if self._trials[name].status == Trial.PAUSED and self._at[name] == epoch:
                    return self._trials[name]
        return next((trial for trial in self._trials.values() if trial.status == Trial.PENDING), None)

    def waits(self, name: str) -> str:
        if name not in self._at:
            return ""
        rung = self._rungs[self._at[name]]
        rank = sum(score > rung[name] for score in rung.values()) + 1
        text = f"rung {self._at[name]}: {self._objective} = {self._sign * rung[name]:.4g}, rank {rank} of {len(rung)}"
        return f"{text}, the best {self._passing(rung)} go on"

    def _best(self, epoch: int) -> list[str]:
        rung = self._rungs[epoch]
        return sorted(rung, key=lambda name: -rung[name])[: self._passing(rung)]

    def _passing(self, rung: dict[str, float]) -> int:
        return int(len(rung) / self._factor)


class Bracket(hyperband._Bracket):
    """A bracket of HyperBand that is closed once it was full or has begun, and ends at max_epochs."""

    def __init__(self, name: str, reasons: dict[str, Reason], **rules: Any) -> None:
        super().__init__(**rules)
        self.name, self._reasons, self._halvings = name, reasons, self._halves

    def filled(self) -> bool:
        return len(self._all_trials) >= self._n0 or self._halves < self._halvings

    def awaited(self) -> int:
        """Trials that have not reached the next rung."""
        return sum(self._get_result_time(result) < self._cumul_r for result in self._live_trials.values())

    def successive_halving(self, metric: str, metric_op: float) -> tuple[list[Trial], list[Trial]]:
        rung = self._cumul_r
        good, bad = super().successive_halving(metric, metric_op)
        if self._halves == 0:
            self._r = self._cumul_r = self._max_t_attr
        for rank, trial in enumerate(reversed([*bad, *good]), 1):
            score = self._live_trials[trial][metric]
            text = f"{self.name}, rung {rung:g}: {metric} = {score:.4g}, rank {rank} of {len(good) + len(bad)}"
            action: Literal["stop", "promote"] = "promote" if rank <= len(good) else "stop"
            self._reasons[trial.trial_id] = Reason(f"{text}, the best {len(good)} go on", action)
        return good, bad


class HyperBandRule(Explained, HyperBandScheduler):
    """HyperBand whose brackets are filled before they begin."""

    _state: dict[str, Any]

    def __init__(self, study: Study, rules: HyperBand) -> None:
        super().__init__(max_t=study.recipe.rounds, reduction_factor=rules.reduction_factor, **common(study))

    def wants_more(self) -> bool:
        bracket = self._state["bracket"]
        return bracket is None or not bracket.filled()

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        answer = super().on_trial_result(tune_controller, trial, result)
        bracket = self._trial_info[trial][0]
        if answer == self.PAUSE:
            text = f"{bracket.name}, rung {bracket._cumul_r:g}: {self._metric} = {result[self._metric]:.4g}"
            self.reasons[trial.trial_id] = Reason(f"{text}, waits for {bracket.awaited()} others")
        return str(answer)

    def _create_bracket(self, s: int) -> Bracket:
        return Bracket(
            f"band {self._state['band_idx'] + 1}, bracket {s + 1}",
            self.reasons,
            time_attr=self._time_attr,
            max_trials=self._get_n0(s),
            init_t_attr=self._get_r0(s),
            max_t_attr=self._max_t_attr,
            eta=self._eta,
            s=s,
        )

    def _process_bracket(self, tune_controller: Any, bracket: hyperband._Bracket) -> str:
        if not bracket.current_trials():
            return str(self.PAUSE)  # all of its trials so far have failed: there is nothing to halve
        try:
            return str(super()._process_bracket(tune_controller, bracket))
        finally:
            bracket.is_being_processed = False  # Ray leaves it set, and then no removal is noticed any more


class MedianRule(Explained, MedianStoppingRule):
    """Median stopping that says what it compared."""

    _compare_op: Any

    def __init__(self, study: Study, rules: Median) -> None:
        super().__init__(
            grace_period=rules.grace_epochs,
            min_samples_required=rules.min_trials,
            min_time_slice=math.inf,  # it never pauses: what is not stopped runs on
            **common(study),
        )
        self._means: dict[tuple[str, float], Any] = {}
        self._others = 0
        self._plain_compare, self._compare_op = self._compare_op, self._compare
        self._compared: tuple[float, float] = (math.nan, math.nan)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        answer = super().on_trial_result(tune_controller, trial, result)
        if answer == self.STOP:
            median, best = self._compared
            text = (
                f"epoch {result[self._time_attr]}: {self._metric} = {best:.4g} at best, median {median:.4g} of the "
                f"means of {self._others} others"
            )
            self.reasons[trial.trial_id] = Reason(text, "stop", self._others)
        return str(answer)

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        known = self._results[trial]
        if not known or known[-1][self._time_attr] < result[self._time_attr]:
            known.append(result)

    def _trials_beyond_time(self, time: float) -> list[Trial]:
        there = super()._trials_beyond_time(time)
        self._others = len(there) - 1
        return list(there)

    def _running_mean(self, trial: Trial, time: float) -> Any:
        # Asked only of trials that are past `time`, so that it never changes: without this a report of the
        # 2000th trial costs a pass over every report there is.
        key = (trial.trial_id, time)
        if key not in self._means:
            self._means[key] = super()._running_mean(trial, time)
        return self._means[key]

    def _compare(self, *values: Any) -> Any:
        if len(values) == 2:  # the rule itself; with one value it looks for the best report
            self._compared = values
        return self._plain_compare(*values)


def ray_scheduler(study: Study) -> Explained:
    """Ray's scheduler for a study's description. No Ray cluster is needed."""
    logging.getLogger("ray.tune.schedulers").setLevel(logging.ERROR)  # what it would say stands in the journal
    rules = study.scheduler
    if study.budget.trials == 0:
        return Fifo()  # nothing is searched, and then nothing was checked that a scheduler rests on
    if isinstance(rules, ASHA):
        return Asha(study, rules)
    if isinstance(rules, Promotion):
        return PromotionRule(study, rules)
    if isinstance(rules, HyperBand):
        return HyperBandRule(study, rules)
    if isinstance(rules, Median):
        return MedianRule(study, rules)
    if isinstance(rules, PBT):
        return PbtRule(study, rules)
    if isinstance(rules, PB2):
        from cvtune.pb2 import Pb2Rule  # loads scikit-learn, which takes most of a second

        return Pb2Rule(study, rules)
    return Fifo()
