"""Population-based bandits by Ray Tune's scheduler: with logarithmic axes, whole numbers, and a bound on its cost.

Everything random comes from the global generators of `random` and `np.random`, which the Board seeds before each call.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import sklearn
from ray.tune.experiment import Trial
from ray.tune.schedulers import pb2
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from cvtune.population import Population, clamped
from cvtune.recipe import Value
from cvtune.schedulers import PB2
from cvtune.space import Choice, LogUniform, Plain
from cvtune.study import Study

MODELLED_REPORTS = 190  # above 200 Ray's PB2 fits one Gaussian process per ten reports, at each takeover


class Pb2Rule(Population, pb2.PB2):
    """PB2 in coordinates where its Gaussian process sees straight axes: log10 of a logarithmic one, floats throughout.

    A stub's `config` holds coordinates that are exactly those of its values, and so does what the process learns from.
    """

    def __init__(self, study: Study, rules: PB2) -> None:
        bounds = {name: list(edges(domain)) for name, domain in study.space.plain().items()}
        super().__init__(study, rules, hyperparam_bounds=bounds)
        self._value_at: dict[tuple[str, float], Value] = {}  # 10 ** log10(x) is not always x

    def coordinates(self, values: Mapping[str, Value]) -> dict[str, Any]:
        config = {name: coordinate(domain, values[name]) for name, domain in self._axes.items()}
        self._value_at |= {(name, x): values[name] for name, x in config.items()}
        return config

    def values(self, config: Mapping[str, Any]) -> dict[str, Value]:
        return {name: self._value_at[name, x] for name, x in config.items()}

    def _save_trial_state(self, state: Any, time: int, result: dict[str, Any], trial: Trial) -> Any:
        score = super()._save_trial_state(state, time, result, trial)
        self.data = self.data.tail(MODELLED_REPORTS).reset_index(drop=True)
        return score

    def _get_new_config(self, trial: Trial, trial_to_clone: Trial) -> tuple[dict[str, Any], dict[str, Any]]:
        known = self.known.get(trial.trial_id)
        with _selecting(lambda choose: self._select(known, choose)):
            config, operations = super()._get_new_config(trial, trial_to_clone)
        return (config if known is None else self.coordinates(known)), operations

    def _select(self, known: Mapping[str, Value] | None, choose: Callable[[], np.ndarray]) -> np.ndarray:
        """The coordinates that Ray's PB2 would `choose`, or those of `known` values; of values in any case."""
        if known is None:
            try:
                found = [shortest(x) for x in choose()]
            except (ValueError, np.linalg.LinAlgError):  # a singular kernel, with which Ray's remedy does not cope
                found = [float(np.random.uniform(*edges(domain))) for domain in self._axes.values()]
            known = {n: value_at(d, x) for (n, d), x in zip(self._axes.items(), found, strict=True)}
        return np.array(list(self.coordinates(known).values()))


def coordinate(domain: Plain, value: Value) -> float:
    """Where PB2 sees a value: log10 of it on a logarithmic axis."""
    assert isinstance(value, int | float)
    return math.log10(value) if isinstance(domain, LogUniform) else float(value)


def value_at(domain: Plain, x: float) -> Value:
    """The value of the domain at PB2's coordinate; inverse of `coordinate`, whole numbers rounded."""
    assert not isinstance(domain, Choice)
    return clamped(domain, 10.0**x if isinstance(domain, LogUniform) else x)


def edges(domain: Plain) -> tuple[float, float]:
    """Both ends of a domain in PB2's coordinates."""
    low, high = domain.edges()
    return coordinate(domain, low), coordinate(domain, high)


def shortest(x: float) -> float:
    """The number with the fewest digits that is the same float32, which is all that Ray's PB2 gives."""
    return float(str(np.float32(x)))


@contextmanager
def _selecting(select: Callable[[Callable[[], np.ndarray]], np.ndarray]) -> Iterator[None]:
    """Have Ray's PB2 take what `select` returns, which is given PB2's own way to choose; there is no hook for it."""
    module: Any = pb2
    own = module._select_config

    def instead(x: Any, y: Any, current: Any, newpoint: Any, bounds: Any, num_f: int) -> np.ndarray:
        # As floats, and not checked at each of some thousand predictions: the same result in half the time.
        return select(lambda: own(x.astype(float), y.astype(float), current, newpoint.astype(float), bounds, num_f))

    module._select_config = instead
    try:
        quick = sklearn.config_context(assume_finite=True, skip_parameter_validation=True)
        # One thread: four times as fast for matrices this small, and the same digits whatever the number of cores.
        with warnings.catch_warnings(), quick, threadpool_limits(1, "blas"):
            warnings.simplefilter("ignore")  # that the kernel's bounds are reached is a matter of course
            yield
    finally:
        module._select_config = own
