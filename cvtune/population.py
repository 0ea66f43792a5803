"""Population-based training by Ray Tune's scheduler: with moves that know the domains, turns, and takeovers on record.

What differs from Ray's own, and why:

- Values stay in their domains, and linear axes move additively: Ray multiplies, so that 0 stays 0 for ever.
- Trials take turns. In Ray's, one that falls back to a younger donor is chosen again before that donor, without end if
  it never gets better.
- A synchronous population does not wait for a trial that is over.

Everything random comes from the global generators of `random` and `np.random`, which the Board seeds before each call.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import PopulationBasedTraining

from cvtune.explained import Explained, Pointer, common
from cvtune.recipe import Value
from cvtune.schedulers import PB2, PBT
from cvtune.space import Choice, IntUniform, LogUniform, Plain, Uniform
from cvtune.study import Study


class Population(Explained, PopulationBasedTraining):
    """What both population-based schedulers share: turns, takeovers on record, no waiting for the dead."""

    _trial_state: dict[Trial, Any]

    def __init__(self, study: Study, rules: PBT | PB2, **more: Any) -> None:
        super().__init__(
            perturbation_interval=rules.interval_epochs,
            quantile_fraction=rules.quantile,
            synch=rules.synch,
            log_config=False,
            **common(study),
            **more,
        )
        self._axes, self._size = study.space.plain(), study.budget.trials
        self._turns: Counter[Trial] = Counter()

    def values(self, config: Mapping[str, Any]) -> dict[str, Value]:
        """Searched values for the `config` of a stub trial; inverse of `coordinates`."""
        return dict(config)

    def wants_more(self) -> bool:
        return len(self._trial_state) < self._size

    def pointers(self) -> Iterator[Pointer]:
        for trial, state in self._trial_state.items():
            if state.last_checkpoint is not None and not trial.is_finished():
                yield state.last_checkpoint

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """The youngest; of those, the one that was asked least, so that a donor gets its turn before its copies."""
        waiting = [
            trial
            for trial in tune_controller.get_live_trials()
            if trial.status in (Trial.PENDING, Trial.PAUSED)
            and (not self._synch or self._trial_state[trial].last_train_time < self._next_perturbation_sync)
        ]
        return min(waiting, key=lambda t: (self._trial_state[t].last_train_time, self._turns[t]), default=None)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        self._turns[trial] += 1
        return str(super().on_trial_result(tune_controller, trial, result))

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        self._waits_no_more(tune_controller)

    def on_trial_remove(self, tune_controller: Any, trial: Trial) -> None:
        self._waits_no_more(tune_controller)

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        self._waits_no_more(tune_controller)

    def _waits_no_more(self, controller: Any) -> None:
        """Compare the population if the trial that is over was the last one that the others waited for."""
        live = controller.get_live_trials()
        if self._synch and live and all(self._is_at_sync(trial) for trial in live):
            super().on_trial_result(controller, live[-1], self._trial_state[live[-1]].last_result)

    def _is_at_sync(self, trial: Trial) -> bool:
        return bool(self._trial_state[trial].last_train_time >= self._next_perturbation_sync)

    def _save_trial_state(self, state: Any, time: int, result: dict[str, Any], trial: Trial) -> Any:
        if state.last_result is result:
            return state.last_score  # put again by `_waits_no_more`
        return super()._save_trial_state(state, time, result, trial)

    def _exploit(self, tune_controller: Any, trial: Trial, trial_to_clone: Trial) -> None:
        own, donor = self._trial_state[trial], self._trial_state[trial_to_clone]
        pointer, n = donor.last_checkpoint, len(self._quantiles()[0])
        super()._exploit(tune_controller, trial, trial_to_clone)
        ranked = sum(s.last_score is not None and not t.is_finished() for t, s in self._trial_state.items())
        why = (
            f"{self._metric} = {self._metric_op * own.last_score:.4g} is among the lowest {n} of {ranked} (quantile "
            f"{self._quantile_fraction:g}); takes over {trial_to_clone.trial_id} with "
            f"{self._metric_op * donor.last_score:.4g} at epoch {donor.last_result[self._time_attr]}"
        )
        tune_controller.take_over(trial, pointer, self.values(trial.config), why)


class PbtRule(Population):
    """PBT whose changes know the domains."""

    def __init__(self, study: Study, rules: PBT) -> None:
        mutations = {name: domain.at for name, domain in study.space.plain().items()}
        super().__init__(study, rules, hyperparam_mutations=mutations, burn_in_period=rules.burn_in_epochs)
        self._rules = rules

    def _get_new_config(self, trial: Trial, trial_to_clone: Trial) -> tuple[dict[str, Any], dict[str, Any]]:
        config = {name: mutate(domain, trial_to_clone.config[name], self._rules) for name, domain in self._axes.items()}
        return {**config, **self.known.get(trial.trial_id, {})}, {}


def mutate(domain: Plain, value: Value, rules: PBT) -> Value:
    """A value of the domain near `value`, or with probability `rules.resample` any; from the global generator.

    Uniform and IntUniform move by +-`rules.step` of their range (whole numbers by at least 1) and stop at the ends,
    LogUniform is multiplied or divided by `rules.factor`, a Choice goes to a neighbor in its list.
    """
    if random.random() < rules.resample:
        return domain.at(random.random())
    up = random.random() < 0.5
    if isinstance(domain, Choice):
        here = domain.position(value)
        there = here + 1 if up else here - 1
        return domain.values[there if 0 <= there < len(domain.values) else 2 * here - there]
    assert isinstance(value, int | float)
    if isinstance(domain, LogUniform):
        return clamped(domain, value * rules.factor if up else value / rules.factor)
    reach = rules.step * (domain.high - domain.low)
    if isinstance(domain, IntUniform):
        reach = max(round(reach), 1)
    return clamped(domain, value + reach if up else value - reach)


def clamped(domain: Uniform | LogUniform | IntUniform, value: float) -> float | int:
    """The value of the domain that is nearest to `value`, as a plain float or, of IntUniform, int."""
    inside = min(max(value, domain.low), domain.high)
    return round(inside) if isinstance(domain, IntUniform) else float(inside)
