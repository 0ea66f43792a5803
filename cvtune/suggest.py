"""Searchers at work: what proposes the next point and learns from the journal. The only module that knows Optuna.

A suggestion depends on the events so far, the seed and the trial's number, and on nothing else: before each one the
model is built anew from what was observed. So a study that is taken up again goes on as if it had never stopped.
"""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from cvtune.evidence import RAN_OUT, Evidence, Seen, final_scores, number_of
from cvtune.history import History
from cvtune.recipe import Value
from cvtune.searchers import GP, TPE, Grid, Random, Sobol
from cvtune.space import Choice, IntUniform, LogUniform, PerChoice, Plain, Space
from cvtune.study import Study

if TYPE_CHECKING:
    import optuna

MODELLED = 8  # finished trials below which nothing is said of the expected improvement
LOOKED_AT = 2048  # points among which the largest expected improvement is sought


class Suggester(Protocol):
    """Proposes the searched values of one trial after another.

    Attributes:
        cheap: whether a suggestion costs next to nothing, so that a replay can ask for all of them again.
    """

    cheap: bool

    def suggest(self, number: int, given: Mapping[str, Value]) -> dict[str, Value] | None:
        """The values for the search's trial `number` (from 0); None: there is nothing left to propose.

        Args:
            given: values of a point that is to be tried first. They are kept; the searcher proposes the other names.
        """

    def observe(self, event: Mapping[str, Any]) -> None:
        """Take in the next event of the journal, live as in replay."""


def suggester(study: Study) -> Suggester:
    """What proposes the points of a study, as `study.searcher` describes it."""
    searcher = study.searcher
    if isinstance(searcher, TPE):
        return Parzen(study, searcher)
    if isinstance(searcher, GP):
        return Gaussian(study, searcher)
    return Walk(study, searcher) if isinstance(searcher, Grid) else Draws(study, searcher)


class Draws:
    """Points that depend on the trial's number alone."""

    cheap = True

    def __init__(self, study: Study, searcher: Random | Sobol) -> None:
        self._study, self._searcher = study, searcher

    def suggest(self, number: int, given: Mapping[str, Value]) -> dict[str, Value] | None:
        space = self._study.space
        return self._searcher.suggest(space, self._study.recipe.seed, number, space.completed(given))

    def observe(self, event: Mapping[str, Any]) -> None:
        """Nothing that happens changes the draws."""


class Walk:
    """The points of a grid, those left out that were tried already."""

    cheap = True

    def __init__(self, study: Study, searcher: Grid) -> None:
        self._space, self._seed, self._searcher = study.space, study.recipe.seed, searcher
        cells = searcher.cells(study.space)
        self._left = [cells[i] for i in reversed(searcher.order(len(cells), self._seed))]  # the next one last
        self._tried: set[frozenset[tuple[str, Value]]] = set()
        self._asked: dict[int, frozenset[tuple[str, Value]]] = {}

    def suggest(self, number: int, given: Mapping[str, Value]) -> dict[str, Value] | None:
        self._asked.pop(number, None)
        if given:
            values = self._searcher.suggest(self._space, self._seed, number, self._space.completed(given))
        else:
            while self._left and frozenset(self._left[-1].items()) in self._tried:
                self._left.pop()
            taken = set(self._asked.values()) | self._tried
            values = next((c for c in reversed(self._left) if frozenset(c.items()) not in taken), None)
        if values is not None:
            self._asked[number] = frozenset(values.items())
        return values

    def observe(self, event: Mapping[str, Any]) -> None:
        if event["kind"] == "trial" and event["role"] == "search":
            self._asked.pop(number_of(event), None)
            self._tried.add(frozenset(event["values"].items()))


class Learner(ABC):
    """A sampler of Optuna that is asked anew for each point, after everything observed was put to it."""

    cheap = False
    _asks_all = False  # whether Optuna is asked for values that are not searched beside the others, too

    def __init__(self, study: Study, searcher: TPE | GP) -> None:
        self._study, self._searcher, self._space = study, searcher, study.space
        self._sign = 1 if study.better == "max" else -1
        self._evidence = Evidence(study)
        self._axes = {key: (name, domain) for name in self._space.order() for key, domain in axes(self._space, name)}

    def observe(self, event: Mapping[str, Any]) -> None:
        self._evidence.observe(event)

    def suggest(self, number: int, given: Mapping[str, Value]) -> dict[str, Value] | None:
        self._evidence.ask(number, None)
        given = self._space.completed(given)
        told = [seen.values for seen in self._evidence.seen if seen.outcome not in ("running", "failed")]
        if len({frozenset(values.items()) for values in told}) < self._searcher.startup or not self._space.domains:
            generator = self._searcher.generator(self._study.recipe.seed, number, 1)  # without 1 it draws the controls
            values = self._space.sample(generator, given)
        else:
            values = self._ask(number, given)
        self._evidence.ask(number, values)
        return values

    def model(self, number: int) -> optuna.Study:
        """Optuna's study that the point for trial `number` is asked of, with everything observed so far in it."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        seed = int(self._searcher.generator(self._study.recipe.seed, number).integers(2**32))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            model = optuna.create_study(
                direction="maximize" if self._study.better == "max" else "minimize",
                sampler=self._sampler(seed),
                pruner=optuna.pruners.NopPruner(),
            )
        model.add_trials(self._told(self._evidence.seen))
        return model

    def _ask(self, number: int, given: Mapping[str, Value]) -> dict[str, Value]:
        model = self.model(number)
        if given:
            model.enqueue_trial(self._params(given))
        asked = model.ask()
        proposed: dict[str, Value] = {}
        for key, (name, domain) in self._axes.items():
            active = self._axis(name, proposed)
            if active == key or self._asks_all:
                value = _suggested(asked, key, domain)
                if active == key:
                    proposed[name] = value
        return proposed

    def _axis(self, name: str, values: Mapping[str, Value]) -> str | None:
        """The axis that a searched value lies on, given those of its parents; None: it is not searched then."""
        if not self._space.holds(name, values):
            return None
        domain = self._space.domains[name]
        return case_of(name, domain.name, values[domain.name]) if isinstance(domain, PerChoice) else name

    def _params(self, values: Mapping[str, Value]) -> dict[str, Any]:
        """Values as Optuna gets them, by axis: a choice by its position, because Optuna takes 1 and True for the same.

        Those that are not searched beside the others are left out.
        """
        on = [(self._axis(name, values), value) for name, value in values.items()]
        return {key: _told_as(self._axes[key][1], value) for key, value in on if key is not None}

    def _trial(
        self, state: str, params: Mapping[str, Any], score: float | None = None, reports: Mapping[int, float] = {}
    ) -> optuna.trial.FrozenTrial:
        import optuna

        return optuna.trial.create_trial(
            state=optuna.trial.TrialState[state],
            value=score,
            params=dict(params),
            distributions={key: _distribution(self._axes[key][1]) for key in params},
            intermediate_values=dict(reports),
        )

    @abstractmethod
    def _sampler(self, seed: int) -> optuna.samplers.BaseSampler: ...

    @abstractmethod
    def _told(self, seen: Sequence[Seen]) -> list[optuna.trial.FrozenTrial]: ...


class Parzen(Learner):
    """TPE. A stopped trial is told as pruned, with its scores on the way; a bad one as pruned without any: the last."""

    def _sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        import optuna

        return optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=1, multivariate=True, group=True, constant_liar=True
        )

    def _told(self, seen: Sequence[Seen]) -> list[optuna.trial.FrozenTrial]:
        return [self._tell(each) for each in seen]

    def _tell(self, seen: Seen) -> optuna.trial.FrozenTrial:
        if seen.outcome == "complete":
            best = max(seen.reports.values(), key=lambda score: self._sign * score)
            return self._trial("COMPLETE", self._params(seen.values), best)
        if seen.outcome == "stopped":
            return self._trial("PRUNED", self._params(seen.values), reports=seen.reports)
        state = {"bad": "PRUNED", "failed": "FAIL", "running": "RUNNING"}[seen.outcome]
        return self._trial(state, self._params(seen.values))


class Gaussian(Learner):
    """A Gaussian process. It knows finished trials only, and all of them must have every searched value.

    So a stopped trial is told with the score that it would probably have reached (see `final_scores`), and a value
    whose condition fails is told as the middle of its domain and ignored when proposed (imputation by a constant, as
    in SMAC, Hutter et al. 2011). The same goes for the cases of a `PerChoice`: each is an axis of its own.
    """

    _asks_all = True

    def _sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        import optuna

        return optuna.samplers.GPSampler(seed=seed, n_startup_trials=1)

    def _told(self, seen: Sequence[Seen]) -> list[optuna.trial.FrozenTrial]:
        middle = {key: _told_as(domain, domain.at(0.5)) for key, (_, domain) in self._axes.items()}
        scores = final_scores(seen, self._sign)
        told = []
        for each, score in zip(seen, scores, strict=True):
            if score is not None or each.outcome == "running":
                state = "RUNNING" if score is None else "COMPLETE"
                told.append(self._trial(state, middle | self._params(each.values), score))
        return told

    def _ask(self, number: int, given: Mapping[str, Value]) -> dict[str, Value]:
        with _one_thread():
            return super()._ask(number, given)


def axes(space: Space, name: str) -> list[tuple[str, Plain]]:
    """What a searched name is to Optuna: one axis, or one for each case, since a rate of SGD tells nothing of Adam."""
    domain = space.domains[name]
    if isinstance(domain, PerChoice):
        return [(case_of(name, domain.name, value), case) for value, case in domain.cases]
    return [(name, domain)]


def case_of(name: str, parent: str, value: Value) -> str:
    """The axis of `name` while its parent has this value."""
    return f"{name} at {parent} = {value!r}"


def expected_improvement(study: Study, history: History, seed: int) -> float:
    """The most that a further trial can be expected to improve on the best score, in units of the objective.

    The largest closed-form expected improvement (Jones et al. 1998) among 2048 Sobol points, by a Gaussian process
    (Matern 5/2 plus white noise) of the scores of the trials that ran to their end. The improvement meant is one of
    the mean: the noise of a single trial is not counted. NaN while fewer than 8 trials have ended or nothing is
    searched.
    """
    sign = 1 if study.better == "max" else -1
    points, scores = [], []
    for record in history.of("search", "control", "noise"):
        values = study.space.restrict(record.recipe.flat())
        best = record.best(study)
        sound = record.reason in RAN_OUT and not record.exploits and not any(map(study.over_limits, record.epochs))
        if sound and best is not None and values is not None:
            points.append(study.space.encode(values))
            scores.append(sign * float(study.score(best) or 0))
    if len(points) < MODELLED or not study.space.domains:
        return math.nan
    picked = Sobol().quantiles(len(study.space.domains), seed, 0, LOOKED_AT)
    new = [study.space.encode(study.space.pick(dict(zip(study.space.domains, row, strict=True)))) for row in picked]
    mean, sd = _posterior(np.array(points), np.array(scores), np.array(new), seed)
    return float(_improvement(mean, sd, max(scores)).max())


def _improvement(mean: np.ndarray, sd: np.ndarray, best: float) -> np.ndarray:
    from scipy.stats import norm

    z = (mean - best) / sd
    improvement: np.ndarray = (mean - best) * norm.cdf(z) + sd * norm.pdf(z)
    return improvement


def _posterior(x: np.ndarray, y: np.ndarray, new: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of the noise-free function at the rows of `new`."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

    scale = float(y.std()) or 1.0
    smooth = ConstantKernel(1.0, (0.01, 100)) * Matern(np.full(x.shape[1], 0.5), (0.05, 20), nu=2.5)
    model = GaussianProcessRegressor(
        smooth + WhiteKernel(0.1, (1e-6, 10)), n_restarts_optimizer=2, random_state=seed % 2**32
    )
    with warnings.catch_warnings(), _one_thread():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a bound that is reached is no fault
        model.fit(x, (y - y.mean()) / scale)
    mean, sd = model.predict(new, return_std=True)
    variance = np.maximum(sd**2 - model.kernel_.k2.noise_level, 1e-12)  # scikit-learn counts the noise in
    return y.mean() + scale * mean, scale * np.sqrt(variance)


def _one_thread() -> AbstractContextManager[object]:
    """Linear algebra on one core: the others train, and threads that wait for them made this four times slower."""
    import scipy.linalg  # noqa: F401  (only libraries that are loaded can be limited)
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    limits: AbstractContextManager[object] = threadpool_limits(1)
    return limits


def _distribution(domain: Plain) -> optuna.distributions.BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(domain, Choice):
        return CategoricalDistribution(range(len(domain.values)))
    if isinstance(domain, IntUniform):
        return IntDistribution(domain.low, domain.high)
    return FloatDistribution(domain.low, domain.high, log=isinstance(domain, LogUniform))


def _told_as(domain: Plain, value: Value) -> Any:
    return domain.position(value) if isinstance(domain, Choice) else value


def _suggested(asked: optuna.Trial, name: str, domain: Plain) -> Value:
    if isinstance(domain, Choice):
        return domain.values[asked.suggest_categorical(name, range(len(domain.values)))]
    if isinstance(domain, IntUniform):
        return asked.suggest_int(name, domain.low, domain.high)
    value = asked.suggest_float(name, domain.low, domain.high, log=isinstance(domain, LogUniform))
    return min(max(value, domain.low), domain.high)  # on a log axis it may leave the range by one rounding
