"""Response: the score at max_epochs as a function of the searched values, with its uncertainty.

A Gaussian process with an ANOVA kernel (Durrande et al. 2013, J. Multivariate Analysis 115): a sum of effects of single
values and of pairs, each with mean 0 over the space, so that the average over all other values is what remains when
their effects are left out. The effect of an axis has two parts of sizes of their own: a smooth one, and a rough one
whose waves fall off like those of a random walk, so that a cliff is no surprise and a parabola is not taken for one.
Age enters as one more input, the logarithm of the share of epochs left. A trial's rows share its luck (a mixed model),
so that a long curve is not mistaken for many trials. The effects are sums of few polynomials and waves, so the
process is a linear model with random weights (Rasmussen & Williams 2006, section 2.1), cheap to
draw from. How large the effects and the noise are is estimated by marginal likelihood, and its uncertainty is carried
on: draws come from several sets of such variances (a Laplace approximation), not from the most likely one alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from cvtune.analysis.design import Design
from cvtune.analysis.findings import Floats

FEWEST = 8  # trials below which no response is fitted
SMOOTH, WAVES = 3, 24  # degrees of the polynomials of each value, and waves of the rough part of an axis
DEGREES = ((1, 1), (1, 2), (2, 1), (2, 2), (1, 3), (3, 1))  # of the interaction of both axes
FEW_ROWS = 400  # from which the variances are estimated; the effects use all
SETS, DRAWS = 24, 24  # sets of variances, and draws of the effects for each

Key = tuple[str, ...]
AGE, LATER, LATER_PAIR = ("age",), ("age", "effects"), ("age", "pair")
ROUGH = "rough"  # ends the key of that part of an axis
LINE = "bilinear"  # ends the key of that part of the interaction of both axes
PAIRS, TRIAL, SLOPE, ROW = ("pairs",), ("trial",), ("trial", "age"), ("row",)

# Prior of each variance, as a share of the variance of all rows (early ages included): its median, and the standard
# deviation of its logarithm. What is rough, and effects of two values, are taken for small until the data say otherwise
# (effects are sparse and ordered: Wu & Hamada 2000, chapter 3); the bilinear part of both axes less so, because it is
# what is tested, but for no larger than the effects of single values: where points crowd in a corner the three look
# alike. Chosen on the truths that tests/bench/truths.py calls DEVELOPMENT.
PRIOR: Mapping[str, tuple[float, float]] = {
    "effect": (0.2, 1.5),
    ROUGH: (0.01, 2.0),
    LINE: (0.1, 1.0),
    "pair": (0.0005, 1.5),
    "later": (0.02, 1.5),
    "later pair": (0.0005, 1.5),
    "trial": (0.05, 1.5),
    "slope": (0.05, 1.5),
    "row": (0.02, 1.5),
}
FREE = 9.0  # variance of what is not shrunk: the mean, and the typical course of a curve


@dataclass(frozen=True)
class Response:
    """Draws of the final score as a function of the searched values.

    Attributes:
        design: what it was fitted to.
        axes: positions of the two axes among `design.names`; None: no two axes with a range.
        draws: (S, P) weights of the features that `effects` makes, on the standardized scale of `design.link`.
        luck: (S,) standard deviation of what a trial's seed adds to its final score, on that scale.
    """

    design: Design
    axes: tuple[int, int] | None
    draws: Floats
    luck: Floats

    def thinned(self, most: int) -> Response:
        """The same with at most so many of its draws, taken evenly."""
        kept = np.unique(np.linspace(0, len(self.draws) - 1, most).astype(int))
        return replace(self, draws=self.draws[kept], luck=self.luck[kept])

    def at(self, place: Floats) -> Floats:
        """Final score without luck, (S, M) on the standardized scale, at places (M, D)."""
        features, _ = effects(place, self.design, self.axes)
        return np.asarray(self.draws @ features.T)

    def averaged(self, place: Floats, kept: Sequence[int]) -> Floats:
        """The same averaged over all searched values but those at positions `kept`."""
        features, blocks = effects(place, self.design, self.axes)
        names = {self.design.names[i] for i in kept}
        for key, columns in blocks.items():
            if key == PAIRS:
                for number, pair in enumerate(_pairs(self.design, self.axes)):
                    if not {self.design.names[i] for i in pair} <= names:
                        features[:, columns][:, _pair_columns(self.design, self.axes)[number]] = 0
            elif key and not set(key) - {LINE, ROUGH} <= names:
                features[:, columns] = 0
        return np.asarray(self.draws @ features.T)


def effects(place: Floats, design: Design, axes: tuple[int, int] | None) -> tuple[Floats, dict[Key, slice]]:
    """Features (M, P) of the final score at places (M, D), and which columns are which effect.

    The first column is constant. A feature is scaled by the prior standard deviation of its weight relative to the
    first of its effect.
    """
    parts: list[Floats] = [np.ones((len(place), 1))]
    blocks: dict[Key, slice] = {(): slice(0, 1)}

    def add(key: Key, features: Floats) -> None:
        start = sum(part.shape[1] for part in parts)
        parts.append(features)
        blocks[key] = slice(start, start + features.shape[1])

    for i, name in enumerate(design.names):
        shrunk = 1 if design.levels[i] else 1 / np.maximum(1, np.arange(SMOOTH))
        add((name,), _basis(place[:, i], design.levels[i], SMOOTH) * shrunk)
        if axes and i in axes:
            add((name, ROUGH), _waves(place[:, i]))
    if axes:
        x, y = (_basis(place[:, i], 0, SMOOTH) for i in axes)
        products = [x[:, i - 1] * y[:, j - 1] / (i * j) for i, j in DEGREES]
        both = (design.names[axes[0]], design.names[axes[1]])
        add((*both, LINE), products[0][:, None])
        add(both, np.stack(products[1:], 1))
    if pairs := _pairs(design, axes):
        add(PAIRS, np.concatenate([_product(place, design, i, j) for i, j in pairs], 1))
    return np.concatenate(parts, 1), blocks


def fit(design: Design, axes: tuple[int, int] | None, seed: int) -> Response:
    """Fit the response to a study's trials; at least `FEWEST` of them, and one that trained to the end."""
    rng = np.random.default_rng(seed)
    features, blocks = _with_age(design, axes)
    few = _few(design, rng)
    grams = _grams(design, features, blocks, few)
    keys = list(grams)
    sets = _variances(np.stack([grams[key] for key in keys]), design.y[few], [_prior(key) for key in keys], rng)
    draws, luck = [], []
    for one in sets:
        variances = dict(zip(keys, one, strict=True))
        draws.append(_weights(design, features, blocks, variances, rng))
        luck.append(np.full(DRAWS, np.sqrt(variances[TRIAL] + variances[ROW])))
    final = effects(design.place[:1], design, axes)[0].shape[1]
    return Response(design, axes, np.concatenate(draws)[:, :final], np.concatenate(luck))


def _basis(place: Floats, levels: int, most: int) -> Floats:
    """Functions of one value with mean 0 and variance 1 over its domain: Legendre polynomials, or one per choice."""
    if levels:
        chosen = np.minimum((place * levels).astype(int), levels - 1)
        return np.asarray((np.eye(levels)[chosen] - 1 / levels) * np.sqrt(levels))
    made = np.polynomial.legendre.legvander(2 * place - 1, most)[:, 1:]
    return np.asarray(made * np.sqrt(2 * np.arange(1, most + 1) + 1))


def _waves(place: Floats) -> Floats:
    """(M, WAVES) cosines of one value with mean 0 over its domain, their sizes as in the expansion of a random walk."""
    waves = np.arange(1, WAVES + 1)
    return np.asarray(np.sqrt(2) * np.cos(np.pi * place[:, None] * waves) / waves)


def _pairs(design: Design, axes: tuple[int, int] | None) -> list[tuple[int, int]]:
    """Pairs of values beside the two axes; of many values only those with an axis."""
    every = combinations(range(len(design.names)), 2)
    pairs = [pair for pair in every if not axes or set(pair) != set(axes)]
    few = len(design.names) <= 8
    return [pair for pair in pairs if few or (axes and set(pair) & set(axes))]


def _product(place: Floats, design: Design, i: int, j: int) -> Floats:
    first, second = (
        _basis(place[:, k], design.levels[k], 2) / (1 if design.levels[k] else np.array([1, 2])) for k in (i, j)
    )
    return np.asarray((first[:, :, None] * second[:, None, :]).reshape(len(place), -1))


def _pair_columns(design: Design, axes: tuple[int, int] | None) -> list[slice]:
    """The columns of each pair within the block of all pairs."""
    widths = [(design.levels[i] or 2) * (design.levels[j] or 2) for i, j in _pairs(design, axes)]
    ends = np.cumsum([0, *widths])
    return [slice(int(a), int(b)) for a, b in pairwise(ends)]


def _with_age(design: Design, axes: tuple[int, int] | None) -> tuple[Floats, dict[Key, slice]]:
    """Features of every row: the final score's, and what is missing to it at the age of the row."""
    final, blocks = effects(design.place, design, axes)
    final, left = final[design.of], design.left[:, None]
    lines = [final[:, blocks[(name,)]][:, : design.levels[i] or 2] for i, name in enumerate(design.names)]
    parts = [final, np.hstack([left, left**2])]
    keys: list[Key] = [AGE]
    if lines:
        parts.append(left * np.hstack(lines))
        keys.append(LATER)
    if axes:
        line = blocks[(design.names[axes[0]], design.names[axes[1]], LINE)]
        parts.append(left * final[:, line])
        keys.append(LATER_PAIR)
    ends = np.cumsum([part.shape[1] for part in parts])
    blocks |= {key: slice(int(a), int(b)) for key, a, b in zip(keys, ends[:-1], ends[1:], strict=True)}
    return np.hstack(parts), blocks


def _few(design: Design, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """The rows that the variances are estimated from: all, or those of random trials, at most `FEW_ROWS`."""
    if len(design.y) <= FEW_ROWS:
        return np.arange(len(design.y))
    order = rng.permutation(len(design.trials))
    counts = np.bincount(design.of, minlength=len(design.trials))[order]
    taken = order[np.cumsum(counts) <= FEW_ROWS]
    return np.flatnonzero(np.isin(design.of, taken))


def _grams(
    design: Design, features: Floats, blocks: Mapping[Key, slice], rows: npt.NDArray[np.int64]
) -> dict[Key, Floats]:
    """The covariance (n, n) that each effect and each kind of noise gives to the rows, at variance 1."""
    grams = {key: features[rows, columns] @ features[rows, columns].T for key, columns in blocks.items()}
    same = (design.of[rows][:, None] == design.of[rows]).astype(float)
    return grams | {TRIAL: same, SLOPE: same * np.outer(design.left[rows], design.left[rows]), ROW: np.eye(len(rows))}


def _prior(key: Key) -> tuple[float, float] | None:
    """Of the variance of an effect or a noise; None: it is fixed at `FREE`."""
    if key in ((), AGE):
        return None
    kinds = {LATER: "later", LATER_PAIR: "later pair", TRIAL: "trial", SLOPE: "slope", ROW: "row", PAIRS: "pair"}
    other = key[-1] if key[-1] in (ROUGH, LINE) else "effect" if len(key) == 1 else "pair"
    return PRIOR[kinds.get(key, other)]


def _variances(
    grams: Floats, y: Floats, priors: Sequence[tuple[float, float] | None], rng: np.random.Generator
) -> Floats:
    """Sets of variances (SETS, G): draws around the most likely one, by the curvature there."""
    from scipy.linalg import cho_factor, cho_solve
    from scipy.optimize import minimize

    free = np.array([prior is not None for prior in priors])
    center = np.array([np.log(prior[0]) for prior in priors if prior])
    spread = np.array([prior[1] for prior in priors if prior])
    fixed = np.tensordot(np.where(free, 0.0, FREE), grams, 1) + 1e-6 * np.eye(len(y))
    moving = grams[free]
    flat = moving.reshape(len(moving), -1)

    def inverse(log: Floats) -> tuple[Floats, Any]:
        factor = cho_factor(fixed + np.tensordot(np.exp(log), moving, 1), lower=True, check_finite=False)
        return cho_solve(factor, np.eye(len(y)), check_finite=False), factor

    def loss(log: Floats) -> tuple[float, Floats]:
        inv, factor = inverse(log)
        alpha = inv @ y
        away = (log - center) / spread
        slope = 0.5 * np.exp(log) * (flat @ (inv - np.outer(alpha, alpha)).ravel())
        value = 0.5 * float(y @ alpha) + float(np.log(np.diag(factor[0])).sum()) + 0.5 * float(away @ away)
        return value, slope + away / spread

    bounds = [(c - 6.0, c + 6.0) for c in center]
    best = minimize(loss, center, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 60}).x
    inv, _ = inverse(best)
    turned = np.exp(best)[:, None, None] * (inv @ moving)
    curvature = 0.5 * np.einsum("aij,bji->ab", turned, turned) + np.diag(1 / spread**2)
    root = np.linalg.cholesky(np.linalg.inv(curvature))
    sets = best + rng.standard_normal((SETS, len(best))) @ root.T
    made = np.full((SETS, len(priors)), FREE)
    made[:, free] = np.exp(sets)
    return made


def _weights(
    design: Design,
    features: Floats,
    blocks: Mapping[Key, slice],
    variances: Mapping[Key, float],
    rng: np.random.Generator,
) -> Floats:
    """Draws (DRAWS, P) of the weights given the variances, from all rows."""
    from scipy.linalg import solve_triangular

    prior = np.ones(features.shape[1])
    for key, columns in blocks.items():
        prior[columns] = variances[key]
    phi, y, noise = _by_trial(design, features, variances)
    solved = np.linalg.solve(noise, np.concatenate([phi, y[:, :, None]], 2))
    precision = np.einsum("trp,trq->pq", phi, solved[:, :, :-1], optimize=True) + np.diag(1 / prior)
    root = np.linalg.cholesky(precision)
    right = np.einsum("trp,tr->p", phi, solved[:, :, -1])
    mean = solve_triangular(root.T, solve_triangular(root, right, lower=True), lower=False)
    chance = solve_triangular(root.T, rng.standard_normal((len(prior), DRAWS)), lower=False)
    return np.asarray(mean + chance.T)


def _by_trial(design: Design, features: Floats, variances: Mapping[Key, float]) -> tuple[Floats, Floats, Floats]:
    """Rows padded to (T, R, P), (T, R), and the covariance of their noise (T, R, R); what is padded says nothing."""
    counts = np.bincount(design.of, minlength=len(design.trials))
    slot = np.arange(len(design.of)) - np.repeat(np.cumsum(counts) - counts, counts)
    shape = (len(counts), int(counts.max()))
    phi, y = np.zeros((*shape, features.shape[1])), np.zeros(shape)
    left, there = np.zeros(shape), np.zeros(shape)
    at = (design.of, slot)
    phi[at], y[at], left[at], there[at] = features, design.y, design.left, 1.0
    both = there[:, :, None] * there[:, None, :]
    luck = variances[TRIAL] + variances[SLOPE] * left[:, :, None] * left[:, None, :]
    return phi, y, both * luck + (variances[ROW] + 1e-6) * np.eye(shape[1])
