"""Searchers as frozen descriptions: which point is tried next. `suggest.py` makes what learns of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from cvtune.fields import Section, field
from cvtune.recipe import Value
from cvtune.space import NOTHING, Choice, IntUniform, Plain, Space

if TYPE_CHECKING:  # see `space.py`; what needs it imports it
    import numpy as np

MOST_CELLS = 100_000  # points of a grid; it is built as a whole and shuffled
MOST_AXES = 21_201  # of a Sobol sequence (the direction numbers of Joe & Kuo 2008)


class _Seeded(Section):
    seed: int | None = field(None, "Seed of the draws; None: the study's seed.", ge=0, le=2**62)

    def generator(self, seed: int, *index: int) -> np.random.Generator:
        """Random numbers that depend on the study's `seed`, unless the searcher has its own, and on `index`."""
        import numpy as np

        return np.random.default_rng(np.random.SeedSequence([seed if self.seed is None else self.seed, *index]))

    def refusal(self, space: Space) -> str | None:
        """Why this searcher cannot search the space, in one sentence; None if it can."""
        return None


class Random(_Seeded):
    """Independent random draws from the space (Bergstra & Bengio 2012).

    Trial `index` gets the same point however many trials run beside it and however often a study is resumed.
    """

    name: Literal["random"] = "random"

    def suggest(self, space: Space, seed: int, index: int, given: Mapping[str, Value] = NOTHING) -> dict[str, Value]:
        """The point for trial `index` (counted from 0) of a study with `seed`; `given` values are kept."""
        return space.sample(self.generator(seed, index), given)


class Grid(_Seeded):
    """Every combination of a few values per axis, each point once, in an order shuffled by the seed.

    The order is shuffled so that a study that ends early has seen all of the space coarsely, not one corner of it.
    """

    name: Literal["grid"] = "grid"
    points: int = field(
        3,
        "Values per axis, both ends of the range included. A choice takes all of its values, whole numbers all "
        "where they are fewer.",
        ge=2,
        le=1000,
    )

    def suggest(
        self, space: Space, seed: int, index: int, given: Mapping[str, Value] = NOTHING
    ) -> dict[str, Value] | None:
        """The point for trial `index`; None: the grid is exhausted.

        With `given` values, one of the points that have them; there is always one.
        """
        if given:
            cells = self.cells(space, given)
            return cells[int(self.generator(seed, index).integers(len(cells)))]
        cells = self.cells(space)
        return cells[self.order(len(cells), seed)[index]] if index < len(cells) else None

    def order(self, cells: int, seed: int) -> list[int]:
        """The order in which that many points are tried."""
        return [int(i) for i in self.generator(seed).permutation(cells)]

    def cells(self, space: Space, given: Mapping[str, Value] = NOTHING) -> list[dict[str, Value]]:
        """Every point of the grid, none twice; the list ends one past `MOST_CELLS`."""
        cells: list[dict[str, Value]] = [{}]
        for name in space.order():
            grown: list[dict[str, Value]] = []
            for cell in cells:
                domain = space.domain(name, cell)
                if domain is None:  # a name whose condition fails adds no point, so that no point comes twice
                    grown.append(cell)
                else:
                    axis = [given[name]] if name in given else self._axis(domain)
                    grown += [{**cell, name: value} for value in axis]
                if len(grown) > MOST_CELLS:
                    return grown
            cells = grown
        return cells

    def refusal(self, space: Space) -> str | None:
        """Why this searcher cannot search the space, in one sentence; None if it can."""
        if len(self.cells(space)) <= MOST_CELLS:
            return None
        return (
            f"searcher: a grid of {self.points} points per axis over {len(space.domains)} searched names has more than "
            f"{MOST_CELLS:,} points. Use fewer points, search fewer names, or another searcher, such as sobol."
        )

    def _axis(self, domain: Plain) -> list[Value]:
        import numpy as np

        if isinstance(domain, Choice):
            return list(domain.values)
        if isinstance(domain, IntUniform):
            wanted = min(self.points, domain.high - domain.low + 1)
            return [round(value) for value in np.linspace(domain.low, domain.high, wanted)]
        between = [domain.at(float(u)) for u in np.linspace(0, 1, self.points)[1:-1]]
        return [domain.low, *between, domain.high]


class Sobol(_Seeded):
    """A scrambled Sobol sequence (Sobol 1967; scrambling of Owen 1998): fills the space more evenly than random draws.

    As with random draws, a point depends on nothing but space, seed and index.
    """

    name: Literal["sobol"] = "sobol"

    def suggest(self, space: Space, seed: int, index: int, given: Mapping[str, Value] = NOTHING) -> dict[str, Value]:
        """The point for trial `index` (counted from 0) of a study with `seed`; `given` values are kept."""
        quantiles = self.quantiles(len(space.domains), seed, index, 1)[0]
        return space.pick(dict(zip(space.domains, quantiles, strict=True)), given)

    def quantiles(self, axes: int, seed: int, start: int, count: int) -> list[list[float]]:
        """Points `start` to `start + count` of the sequence: (count, axes), each in [0, 1)."""
        from scipy.stats import qmc

        if not axes:
            return [[]] * count
        sequence = qmc.Sobol(axes, scramble=True, seed=self.generator(seed))
        if start:  # SciPy's fast_forward(0) fails
            sequence.fast_forward(start)
        rows: list[list[float]] = sequence.random(count).tolist()
        return rows

    def refusal(self, space: Space) -> str | None:
        """Why this searcher cannot search the space, in one sentence; None if it can."""
        if len(space.domains) <= MOST_AXES:
            return None
        return f"searcher: a Sobol sequence has at most {MOST_AXES:,} axes; search fewer names, or use random."


class TPE(_Seeded):
    """Tree-structured Parzen estimator (Bergstra et al. 2011), over all values jointly (Falkner et al. 2018).

    It learns from stopped trials too: they rank after the finished ones, by how far they came and their last score.
    A running trial counts as a poor one, so that several at once do not get the same point.
    """

    name: Literal["tpe"] = "tpe"
    startup: int = field(10, "Different points that are tried at random before it learns.", ge=1, le=10_000)


class GP(_Seeded):
    """Bayesian optimization with a Gaussian process and log expected improvement (Ament et al. 2023).

    The most careful with few trials; its cost rises with the cube of their number. What it learns from a stopped trial
    is an estimate of where its score would have ended (see `evidence.final_scores`).
    """

    name: Literal["gp"] = "gp"
    startup: int = field(10, "Different points that are tried at random before it learns.", ge=1, le=10_000)


Searcher = Annotated[Random | Grid | Sobol | TPE | GP, Field(discriminator="name")]
