"""Searchers as frozen descriptions: which point is tried next."""

from __future__ import annotations

from typing import Literal

import numpy as np

from cvtune.recipe import Section, Value, field
from cvtune.space import Space


class Random(Section):
    """Independent random draws from the space (Bergstra & Bengio 2012).

    Trial `index` gets the same point however many trials run beside it and however often a study is resumed.
    """

    name: Literal["random"] = "random"
    seed: int | None = field(None, "Seed of the draws; None: the study's seed.", ge=0, le=2**62)

    def suggest(self, space: Space, seed: int, index: int) -> dict[str, Value]:
        """The point for trial `index` (counted from 0) of a study with `seed`."""
        chosen = seed if self.seed is None else self.seed
        return space.sample(np.random.default_rng(np.random.SeedSequence([chosen, index])))


Searcher = Random
