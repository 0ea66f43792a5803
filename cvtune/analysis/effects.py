"""Effects: how much each searched value matters, and how the optimum of two moves with a third."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np

from cvtune.analysis.findings import Floats, Importance, Interval, Third, Unsaid
from cvtune.analysis.response import Response
from cvtune.analysis.surface import GRID, LEVEL, interval, map_of
from cvtune.searchers import Sobol
from cvtune.space import Choice, PerChoice, Plain, Space

POINTS, FEW = 256, 192  # of the space, and draws, from which shares are computed
QUANTILES = (0.1, 0.5, 0.9)  # of a third variable with a range
THIRDS = ("data.image_size", "data.train_fraction", "model.name", "model.width")  # looked for in this order


def importances(response: Response) -> tuple[Importance, ...]:
    """The share of the response's variance over the space that each value has, alone or beyond it in a pair.

    A functional analysis of variance (Hooker 2007; for hyperparameters Hutter et al. 2014), exact here because the
    response is a sum of effects with mean 0. It is about max_epochs, and about the whole of the searched space: a
    value may matter much overall and little near the best.
    """
    places = np.array(Sobol().quantiles(len(response.design.names), 0, 0, POINTS))
    few = response.thinned(FEW)
    own: dict[tuple[int, ...], Floats] = {(i,): few.averaged(places, (i,)) for i in range(len(response.design.names))}
    mean = few.averaged(places, ())
    for pair in combinations(range(len(response.design.names)), 2):
        own[pair] = few.averaged(places, pair) - own[(pair[0],)] - own[(pair[1],)] + mean
    variances = {key: values.var(1) for key, values in own.items()}
    total = np.maximum(sum(variances.values()), 1e-12)
    found = [
        Importance(tuple(response.design.names[i] for i in key), interval(variance / total, LEVEL))
        for key, variance in variances.items()
    ]
    return tuple(sorted(found, key=lambda one: -one.share.mean))


def third_of(response: Response, space: Space) -> Third:
    """How the best setting of the two axes moves with a third searched variable, averaged over all others.

    Taken is the first of `THIRDS` that is searched, else any Choice that is no axis.

    Raises:
        Unsaid: there is none, or no two axes.
    """
    axes, names = response.axes, response.design.names
    others = [n for n in (*THIRDS, *(n for n, d in space.domains.items() if isinstance(d, Choice))) if n in names]
    others = [n for n in others if axes and names.index(n) not in axes]
    if axes is None or not others:
        raise Unsaid(f"no third variable was searched; it would be one of {', '.join(THIRDS)}, or any Choice")
    domain, index = space.domains[others[0]], names.index(others[0])
    assert not isinstance(domain, PerChoice)
    found = map_of(response, axes)
    x, y = (_plain(space, names[i]) for i in axes)
    quantiles = [domain.quantile(v) for v in domain.values] if isinstance(domain, Choice) else list(QUANTILES)
    best: list[tuple[Floats, Floats]] = []
    for quantile in quantiles:
        place = found.place.copy()
        place[:, index] = quantile
        top = response.averaged(place, (*axes, index)).argmax(1)
        best.append((found.u[top % GRID], found.u[top // GRID]))
    shifts = [interval(best[-1][k] - best[0][k], LEVEL) for k in (0, 1)]
    return Third(
        name=others[0],
        values=tuple(domain.at(q) for q in quantiles),
        best_x=tuple(_at(x, us) for us, _ in best),
        best_y=tuple(_at(y, us) for _, us in best),
        moves=(shifts[0].excludes_zero, shifts[1].excludes_zero),
    )


def _plain(space: Space, name: str) -> Plain:
    domain = space.domains[name]
    assert not isinstance(domain, PerChoice)
    return domain


def _at(domain: Plain, quantiles: Floats) -> Interval:
    low, middle, high = np.quantile(quantiles, [(1 - LEVEL) / 2, 0.5, (1 + LEVEL) / 2], method="nearest")
    values: list[Any] = [domain.at(float(q)) for q in (middle, low, high)]
    return Interval(*(float(v) for v in values))
