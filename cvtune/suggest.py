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
from cvtune.space import Choice, Domain, IntUniform, LogUniform, Space
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
        return self._searcher.suggest(space, self._study.recipe.seed, number, with_parents(space, given))

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
            values = self._searcher.suggest(self._space, self._seed, number, with_parents(self._space, given))
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

    def __init__(self, study: Study, searcher: TPE | GP) -> None:
        self._study, self._searcher, self._space = study, searcher, study.space
        self._sign = 1 if study.better == "max" else -1
        self._evidence = Evidence(study)

    def observe(self, event: Mapping[str, Any]) -> None:
        self._evidence.observe(event)

    def suggest(self, number: int, given: Mapping[str, Value]) -> dict[str, Value] | None:
        self._evidence.ask(number, None)
        given = with_parents(self._space, given)
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
        for name in self._space.order():
            if self._wants(name, proposed):
                proposed[name] = _suggested(asked, name, self._space.domains[name])
        values = self._space.restrict(proposed)
        assert values is not None
        return values

    def _params(self, values: Mapping[str, Value]) -> dict[str, Any]:
        """Values as Optuna gets them: a choice by its position, because Optuna takes 1 and True for the same."""
        domains = self._space.domains
        return {
            name: domain.position(value) if isinstance(domain := domains[name], Choice) else value
            for name, value in values.items()
        }

    def _trial(
        self, state: str, values: Mapping[str, Value], score: float | None = None, reports: Mapping[int, float] = {}
    ) -> optuna.trial.FrozenTrial:
        import optuna

        return optuna.trial.create_trial(
            state=optuna.trial.TrialState[state],
            value=score,
            params=self._params(values),
            distributions={name: _distribution(self._space.domains[name]) for name in values},
            intermediate_values=dict(reports),
        )

    def _wants(self, name: str, values: Mapping[str, Value]) -> bool:
        """Whether Optuna is asked for a name, after those before it were proposed."""
        return self._space.holds(name, values)

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
            return self._trial("COMPLETE", seen.values, best)
        if seen.outcome == "stopped":
            return self._trial("PRUNED", seen.values, reports=seen.reports)
        return self._trial({"bad": "PRUNED", "failed": "FAIL", "running": "RUNNING"}[seen.outcome], seen.values)


class Gaussian(Learner):
    """A Gaussian process. It knows finished trials only, and all of them must have every searched value.

    So a stopped trial is told with the score that it would probably have reached (see `final_scores`), and a value
    whose condition fails is told as the middle of its domain and ignored when proposed (imputation by a constant, as
    in SMAC, Hutter et al. 2011).
    """

    def _sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        import optuna

        return optuna.samplers.GPSampler(seed=seed, n_startup_trials=1)

    def _told(self, seen: Sequence[Seen]) -> list[optuna.trial.FrozenTrial]:
        middle = {name: domain.at(0.5) for name, domain in self._space.domains.items()}
        scores = final_scores(seen, self._sign)
        told = []
        for each, score in zip(seen, scores, strict=True):
            if score is not None or each.outcome == "running":
                state = "RUNNING" if score is None else "COMPLETE"
                told.append(self._trial(state, middle | each.values, score))
        return told

    def _wants(self, name: str, values: Mapping[str, Value]) -> bool:
        return True

    def _ask(self, number: int, given: Mapping[str, Value]) -> dict[str, Value]:
        with _one_thread():
            return super()._ask(number, given)


def with_parents(space: Space, given: Mapping[str, Value]) -> dict[str, Value]:
    """A partial point with what its values need: a name that a condition asks about gets a value that meets it."""
    full = dict(given)
    for name in reversed(list(space.order())):
        when = space.conditions.get(name)
        if name in full and when is not None and when.name not in full:
            meets = [value for value in when.values if space.domains[when.name].contains(value)]
            if meets:
                full[when.name] = meets[0]
    return full


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
        measured = [sign * e[study.objective] for e in record.epochs if e[study.objective] is not None]
        sound = record.reason in RAN_OUT and not record.exploits and not any(map(study.over_limits, record.epochs))
        if sound and measured and values is not None:
            points.append(study.space.encode(values))
            scores.append(max(measured))
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


def _distribution(domain: Domain) -> optuna.distributions.BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(domain, Choice):
        return CategoricalDistribution(range(len(domain.values)))
    if isinstance(domain, IntUniform):
        return IntDistribution(domain.low, domain.high)
    return FloatDistribution(domain.low, domain.high, log=isinstance(domain, LogUniform))


def _suggested(asked: optuna.Trial, name: str, domain: Domain) -> Value:
    if isinstance(domain, Choice):
        return domain.values[asked.suggest_categorical(name, range(len(domain.values)))]
    if isinstance(domain, IntUniform):
        return asked.suggest_int(name, domain.low, domain.high)
    value = asked.suggest_float(name, domain.low, domain.high, log=isinstance(domain, LogUniform))
    return min(max(value, domain.low), domain.high)  # on a log axis it may leave the range by one rounding
