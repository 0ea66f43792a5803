"""Truths of the study of calibration: what a final score is, and by how much chance moves it; no Gaussian processes.

`ISSUE` are the truths that calibration is reported for. `DEVELOPMENT` are others, of other formulas and with the roles
of both axes changed: on these the priors of the response were chosen, so that the table of the first stays a test.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

Truth = Callable[[np.ndarray, np.ndarray], np.ndarray]  # logit of the final score at x, y; the rate's part comes on top


def _even(noise: float, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return noise + 0 * x


@dataclass(frozen=True)
class Kind:
    """How a truth of a kind is drawn.

    Attributes:
        drawn: makes one from chances and the size of the interaction in logits (for the kinds with one).
        interacts: whether the truth is no sum of a function of x and one of y.
        has_place: whether one setting is best, not a whole area (or a crest) that only rounding tells apart.
        luck: standard deviation of what a seed adds to a final score, in logits, of its size and x, y.
    """

    drawn: Callable[[Chances, float], Truth]
    interacts: bool = False
    has_place: bool = True
    luck: Callable[[float, np.ndarray, np.ndarray], np.ndarray] = field(default=_even)


@dataclass(frozen=True)
class Chances:
    """What is random in a truth: curvatures, centers, height, where and how deep it drops."""

    a: float
    b: float
    cx: float
    cy: float
    top: float
    edge: float
    drop: float

    def tilt(self, size: float) -> float:
        """Of a parabolic ridge over x whose bilinear part has that size."""
        return size / (2 * self.b)


@dataclass(frozen=True)
class World:
    """A truth and its chances.

    Attributes:
        rate: curvature, best quantile, interaction with x, of the learning rate.
        climb: height of a score curve, how much of it comes with x, its power.
    """

    final: Truth
    luck: Truth
    rate: tuple[float, float, float]
    climb: tuple[float, float, float]


def world(kind: str, rng: np.random.Generator, size: float) -> World:
    """A random truth of a kind. `size`: of the interaction in logits, for the kinds with one."""
    a, b = rng.uniform(2, 6, 2)
    cx, cy = rng.uniform(0.2, 0.8, 2)
    top, edge, drop = rng.uniform(1.5, 2.5), rng.uniform(0.5, 0.85), rng.uniform(1, 2)
    noise = rng.uniform(0.03, 0.12)
    one = KINDS[kind]
    return World(
        one.drawn(Chances(a, b, cx, cy, top, edge, drop), size),
        lambda x, y: one.luck(noise, x, y),
        (rng.uniform(2, 6), rng.uniform(0.3, 0.7), rng.uniform(-1, 1)),
        (rng.uniform(1, 2), rng.uniform(0, 1), rng.uniform(0.4, 1)),
    )


def bump(u: np.ndarray, center: np.ndarray | float, flat: float = 0.0) -> np.ndarray:
    """0 within `flat` of the center, and a parabola down from there."""
    return -(np.maximum(np.abs(u - center) - flat, 0) ** 2)


def fall(u: np.ndarray, edge: float, width: float = 0.03) -> np.ndarray:
    """From 0 to -1 around the edge."""
    return -1 / (1 + np.exp((edge - u) / width))


def _peak(c: Chances, size: float) -> Truth:
    return lambda x, y: c.top + c.a * bump(x, c.cx) + c.b * bump(y, c.cy)


def _plateau(c: Chances, size: float) -> Truth:
    return lambda x, y: c.top + 2 * c.a * bump(x, c.cx, 0.2) + 2 * c.b * bump(y, c.cy, 0.2)


def _cliff(c: Chances, size: float) -> Truth:
    return lambda x, y: c.top + 0.6 * x + c.drop * fall(x, c.edge) + c.b * bump(y, c.cy)


def _border(c: Chances, size: float) -> Truth:
    return lambda x, y: c.top - 1 + 0.3 * c.a * x - 0.3 * c.b * y


def _none(c: Chances, size: float) -> Truth:
    return lambda x, y: c.top + 0 * x + 0 * y


def _ridge(c: Chances, size: float) -> Truth:
    return lambda x, y: c.top + c.a * bump(x, c.cx) + c.b * bump(y - c.tilt(size) * (x - 0.5), c.cy)


def _ridge_cliff(c: Chances, size: float) -> Truth:
    return lambda x, y: c.top + c.drop * fall(x, c.edge) + c.b * bump(y - c.tilt(size) * (x - 0.5), c.cy)


def _saddle_border(c: Chances, size: float) -> Truth:
    return lambda x, y: _border(c, size)(x, y) + size * (x - 0.5) * (y - 0.5)


def _hill(u: np.ndarray, center: float, width: float) -> np.ndarray:
    """From 1 at the center to 0, like a normal density."""
    return np.asarray(np.exp(-(((u - center) / width) ** 2) / 2))


def _dome(c: Chances, size: float) -> Truth:
    return lambda x, y: c.top - 1 + 0.3 * c.a * _hill(x, c.cx, 0.3) + 0.3 * c.b * _hill(y, c.cy, 0.25)


def _roof(c: Chances, size: float) -> Truth:
    return lambda x, y: c.top - 0.4 * c.a * np.abs(x - c.cx) - 0.4 * c.b * np.abs(y - c.cy)


def _breakdown(c: Chances, size: float) -> Truth:
    """Rises with y, then breaks down along a steep line, to a floor."""
    broken = 0.8 * c.drop
    return lambda x, y: c.top + 0.8 * y - broken * np.clip((y - c.edge) / 0.08, 0, 1) + 0.7 * c.a * bump(x, c.cx)


def _terrace(c: Chances, size: float) -> Truth:
    """Flat up to an edge of x, flat again behind it, and the same over y the other way round."""
    return lambda x, y: c.top - c.drop * (x > c.edge) - 0.5 * c.drop * (y < 1 - c.edge)


def _corner(c: Chances, size: float) -> Truth:
    """Saturates towards an end of both axes."""
    return lambda x, y: c.top - 0.4 * c.a * np.exp(-3 * y) - 0.3 * c.b * x**1.5


def _crest(c: Chances, size: float) -> Truth:
    """A ridge like a roof; rising along it, too."""
    return lambda x, y: c.top + 0.5 * x - 0.6 * c.b * np.abs(y - c.cy - 0.5 * c.tilt(size) * (x - 0.5))


def _crest_breakdown(c: Chances, size: float) -> Truth:
    """A rounded ridge whose other end breaks down; level along it."""
    low = 1 - c.edge
    return lambda x, y: (
        c.top
        - c.drop * np.clip((low - x) / 0.1, 0, 1)
        - c.b * (np.sqrt(0.02 + (y - c.cy - c.tilt(size) * (x - 0.5)) ** 2))
    )


ISSUE: Mapping[str, Kind] = {
    "peak": Kind(_peak),
    "plateau": Kind(_plateau, has_place=False),
    "cliff": Kind(_cliff),
    "border": Kind(_border),
    "uneven": Kind(_peak, luck=lambda noise, x, y: noise * (0.5 + 2 * x)),
    "none": Kind(_none, has_place=False),
    "ridge": Kind(_ridge, interacts=True),
    "ridge cliff": Kind(_ridge_cliff, interacts=True, has_place=False),
    "saddle border": Kind(_saddle_border, interacts=True),
}
DEVELOPMENT: Mapping[str, Kind] = {
    "dome": Kind(_dome),
    "roof": Kind(_roof, luck=lambda noise, x, y: noise * (2 - 1.5 * y)),
    "breakdown": Kind(_breakdown),
    "terrace": Kind(_terrace, has_place=False),
    "corner": Kind(_corner),
    "crest": Kind(_crest, interacts=True),
    "crest breakdown": Kind(_crest_breakdown, interacts=True, has_place=False),
}
KINDS = {**ISSUE, **DEVELOPMENT}
