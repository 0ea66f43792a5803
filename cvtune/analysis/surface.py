"""Surface: the response over two axes as a map, its sweet spot, its ridge, and whether the axes interact."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cvtune.analysis.design import Design
from cvtune.analysis.findings import Axis, Dots, Floats, Interaction, Interval, Mask, Point, Ridge, Surface
from cvtune.analysis.response import Response
from cvtune.searchers import Sobol
from cvtune.space import LogUniform, PerChoice, Space

GRID = 21  # values on each axis
LEVEL = 0.9  # of intervals and of the sweet spot
NEARBY = 0.25  # trials within this distance on both axes (in quantiles) speak for a setting
WIDEST = 0.5  # gap between learning rates nearby, in quantiles, up to which the best of them can be named
LOOKED_AT = 64  # points of the other values among which the best is sought
RATE = "optim.lr"
FALLBACK = 0.01  # epsilon where the noise is not known: share of the range of the surface
POWERS = (0.5, 1.0, 2.0)  # monotone re-scalings of an axis that a sign has to survive
MAPPINGS = {"augment.strength": "augment_mapping", "regularize.strength": "regularize_mapping"}


@dataclass(frozen=True)
class Map:
    """A response on a grid over both axes; what the other functions here look at.

    Attributes:
        axes: positions of both axes among the searched names.
        u: (G,) quantiles on either axis.
        place: (G * G, D) the grid in the space, the other values in the middle; x runs fastest.
        draws: (S, G, G) average over the other values, standardized; [s, i, j] is at y = u[i], x = u[j].
    """

    response: Response
    axes: tuple[int, int]
    u: Floats
    place: Floats
    draws: Floats

    @property
    def design(self) -> Design:
        return self.response.design


def map_of(response: Response, axes: tuple[int, int]) -> Map:
    """The response averaged over all searched values but those two."""
    u = np.linspace(0, 1, GRID)
    place = np.full((GRID * GRID, len(response.design.names)), 0.5)
    place[:, axes[0]], place[:, axes[1]] = np.tile(u, GRID), np.repeat(u, GRID)
    return Map(response, axes, u, place, response.averaged(place, axes).reshape(-1, GRID, GRID))


def surface_of(found: Map, space: Space, epsilon: float | None, epochs: int) -> Surface:
    """The map in units of the objective, with its sweet spot; see `region_of`.

    Args:
        epsilon: in units of the objective; None: not known.
    """
    link, x, y = found.design.link, *(_axis(space, found.design.names[i], found.u) for i in found.axes)
    middle, low, high = _scores(found, found.draws)
    width = epsilon or FALLBACK * float(np.ptp(middle))
    region, near = region_of(link.sign * link.to_score(found.draws), width)
    blank = _blank(found)
    best_of_others = _profile(found, space, blank)
    return Surface(
        x=x,
        y=y,
        mean=middle,
        low=low,
        high=high,
        profile=best_of_others[0],
        blank=blank,
        extrapolated=~_has_nearby(found, found.design.place[found.design.whole]),
        region=region,
        near=near,
        epsilon=width,
        best=_best(x, y, (middle, low, high), link.sign),
        best_profile=None if blank.all() else _best(x, y, best_of_others, link.sign),
        dots=_dots(found.design, space, found.axes),
        epochs=epochs,
    )


def region_of(draws: Floats, epsilon: float) -> tuple[Mask, Floats]:
    """The sweet spot (G, G), and the probability (G, G) of each setting to be within epsilon of the best guess.

    Left out of the sweet spot are the settings that are shown to be worse than the best guess (the highest mean) by
    more than epsilon, each at 90 %. So a setting that truly is within epsilon of the best is inside with a probability
    of 90 % or more, whether the top is sharp, a crest or flat: a comparison with the best (Hsu 1984), setting by
    setting. A location of the one best setting would have no such meaning where many are as good.

    Args:
        draws: (S, G, G), more is better.
        epsilon: in the same units.
    """
    flat = draws.reshape(len(draws), -1)
    guess = flat[:, [flat.mean(0).argmax()]]
    near = (flat >= guess - epsilon).mean(0).reshape(draws.shape[1:])
    return near >= 1 - LEVEL, near


def ridge_of(found: Map, space: Space, provenance: Mapping[str, Any]) -> Ridge:
    """The best y for each x, in every draw; its slope by least squares over all x alike."""
    x, y = (_axis(space, found.design.names[i], found.u) for i in found.axes)
    best = found.draws.argmax(1)  # (S, G)
    low, middle, high = np.quantile(best, [(1 - LEVEL) / 2, 0.5, (1 + LEVEL) / 2], axis=0, method="nearest")
    names = [found.design.names[i] for i in found.axes]
    versions = [
        f"{name.partition('.')[0]} {provenance[key]}"
        for name, key in MAPPINGS.items()
        if name in names and provenance.get(key) is not None
    ]
    return Ridge(
        x=x.values,
        y=y.values[middle],
        low=y.values[low],
        high=y.values[high],
        slope=interval(slopes(found.draws, found.u), LEVEL),
        mapping=", ".join(versions),
    )


def slopes(draws: Floats, u: Floats) -> Floats:
    """(S,) slope of the best y over x, in quantiles of both, of surfaces (S, G, G)."""
    best, away = u[draws.argmax(1)], u - u.mean()
    return np.asarray(best @ away / (away @ away))


def interaction_of(found: Map) -> Interaction:
    """The bilinear part of the map, on the logit of the score."""
    link = found.design.link
    parts = bilinear(found.draws, found.u) * link.scale
    effect = interval(parts, 0.95)
    mean = found.draws.mean(0)
    signs = {bool(_rescaled(mean, found.u, p, q) > 0) for p in POWERS for q in POWERS}
    return Interaction(effect, float(min((parts > 0).mean(), (parts < 0).mean())), effect.excludes_zero, len(signs) > 1)


def bilinear(draws: Floats, u: Floats) -> Floats:
    """(S,) b of the part b (x - 1/2)(y - 1/2) of surfaces (S, G, G), by least squares.

    It is the effect of y from end to end at the upper end of x minus that at the lower end of x.
    """
    away = u - u.mean()
    return np.asarray(np.einsum("sij,i,j->s", draws, away, away) / (away @ away) ** 2)


def interval(draws: Floats, level: float) -> Interval:
    """Mean and equal-tailed interval of draws (S,)."""
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(draws.mean()), float(low), float(high))


def _rescaled(surface: Floats, u: Floats, p: float, q: float) -> float:
    """The bilinear part if x**p and y**q were the axes."""
    from scipy.interpolate import RegularGridInterpolator

    x, y = np.meshgrid(u ** (1 / p), u ** (1 / q))
    moved = RegularGridInterpolator((u, u), surface)(np.stack([y, x], -1))
    return float(bilinear(moved[None], u)[0])


def _scores(found: Map, draws: Floats) -> tuple[Floats, Floats, Floats]:
    """Middle, low and high (G, G) of draws (S, G, G) in units of the objective."""
    link = found.design.link
    ends = link.to_score(np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0))
    return link.to_score(draws.mean(0)), ends.min(0), ends.max(0)


def _best(x: Axis, y: Axis, scores: tuple[Floats, Floats, Floats], sign: float) -> Point:
    mean, low, high = scores
    row, column = np.unravel_index(int(np.nanargmax(sign * mean)), mean.shape)
    at = (row, column)
    score = Interval(float(mean[at]), float(low[at]), float(high[at]))
    return Point(float(x.values[column]), float(y.values[row]), score)


def _axis(space: Space, name: str, u: Floats) -> Axis:
    domain = space.domains[name]
    assert not isinstance(domain, PerChoice)
    return Axis(name, np.array([domain.at(float(q)) for q in u], float), isinstance(domain, LogUniform))


def _profile(found: Map, space: Space, blank: Mask) -> tuple[Floats, Floats, Floats]:
    """Middle, low and high of the best over the other values: for each setting those that the mean response prefers."""
    others = [i for i in range(len(found.design.names)) if i not in found.axes]
    chosen = found.place.copy()
    if others:
        tried = np.array(Sobol().quantiles(len(others), 0, 0, LOOKED_AT))
        mean = replace(found.response, draws=found.response.draws.mean(0)[None])
        for row in range(len(chosen)):
            places = np.tile(found.place[row], (LOOKED_AT, 1))
            places[:, others] = tried
            chosen[row] = places[mean.at(places)[0].argmax()]
    scores = _scores(found, found.response.at(chosen).reshape(found.draws.shape))
    middle, low, high = (np.where(blank, np.nan, part) for part in scores)
    return middle, low, high


def _blank(found: Map) -> Mask:
    """Where the learning rates of the trials nearby leave a gap of more than half their domain, ends included."""
    names = found.design.names
    if RATE not in names or names.index(RATE) in found.axes:
        return np.zeros((GRID, GRID), bool)
    rates, near = found.design.place[:, names.index(RATE)], _nearby(found, found.design.place)
    gaps = [np.diff(np.concatenate([[0.0], np.sort(rates[row]), [1.0]])).max() for row in near]
    return (np.array(gaps) > WIDEST).reshape(GRID, GRID)


def _nearby(found: Map, place: Floats) -> Mask:
    """(G * G, T) whether a trial at `place` (T, D) lies near a setting on both axes."""
    axes = list(found.axes)
    return np.asarray((np.abs(found.place[:, None, axes] - place[None][:, :, axes]) <= NEARBY).all(2))


def _has_nearby(found: Map, place: Floats) -> Mask:
    return _nearby(found, place).any(1).reshape(GRID, GRID)


def _dots(design: Design, space: Space, axes: tuple[int, int]) -> Dots:
    x, y = (
        np.interp(
            design.place[:, i], np.linspace(0, 1, 201), _axis(space, design.names[i], np.linspace(0, 1, 201)).values
        )
        for i in axes
    )
    return Dots(design.trials, x, y, design.score, design.epochs, design.roles)
