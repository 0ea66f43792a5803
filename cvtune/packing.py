"""How many trials share a GPU where `resources.gpu` is "auto": decided by measurement, learned from failures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

HEADROOM = 0.1  # of a GPU's memory stays free
ENOUGH = 0.95  # of the best rate: fewer trials at once that reach it are preferred, each of them is faster
MOST = 16  # trials on one GPU


@dataclass(frozen=True)
class Need:
    """What training the recipe that takes most memory took, alone on a GPU. Memory in bytes.

    Attributes:
        recipe: in words.
        peak: most that the trial's allocator held.
        context: what its process held beside that.
        total: of the GPU.
    """

    recipe: str
    peak: int
    context: int
    total: int


@dataclass(frozen=True)
class Packing:
    """`trials` on each GPU at once, and why, in words."""

    trials: int
    why: str

    @property
    def share(self) -> float:
        """Of a GPU, for one trial."""
        return 1 / self.trials

    def event(self) -> dict[str, Any]:
        """As the journal keeps it."""
        return {**asdict(self), "gpu": self.share}


def most_at_once(need: Need, cores: float, cpu: float) -> int:
    """How many trials may share a GPU by memory and by cores, 1 to `MOST`.

    Args:
        cores: CPU cores of a node for each of its GPUs.
        cpu: those of one trial.
    """
    by_memory = (1 - HEADROOM) * need.total / (need.peak + need.context)
    return max(1, int(min(by_memory, cores / cpu, MOST)))


def to_try(most: int) -> list[int]:
    """How many at once are tried: 1, 2, 4, ... and `most`."""
    return sorted({*(2**k for k in range(most.bit_length())), most})


def choose(need: Need, rates: Mapping[int, float], cores: float, cpu: float) -> Packing:
    """The fewest trials at once whose rate together is at least `ENOUGH` of the best one.

    Args:
        rates: batches per second of so many trials at once, together.
        cores, cpu: as in `most_at_once`.
    """
    trials = min(n for n, rate in rates.items() if rate >= ENOUGH * max(rates.values()))
    tried = ", ".join(f"{n}: {rate:.3g}" for n, rate in sorted(rates.items()))
    why = (
        f"{need.recipe} takes {need.peak / 1e9:.2g} GB and {need.context / 1e9:.2g} GB of context of a GPU's "
        f"{need.total / 1e9:.3g} GB; {cores:g} cores for each GPU, {cpu:g} for each trial; batches per second of so "
        f"many trials at once: {tried}"
    )
    return Packing(trials, why)


def fewer(packing: Packing, trial: str) -> Packing:
    """One trial less on each GPU, after `trial` ran out of memory there."""
    left = packing.trials - 1
    return Packing(left, f"trial {trial} ran out of GPU memory where {packing.trials} shared a GPU")
