"""Schedulers as frozen descriptions: who is stopped early, or takes over whose weights, by which rule.

`ray_schedulers.py` makes Ray's objects of them, `board.py` asks those. Each description knows when it cannot work:
`refusal` gives the whole sentence for a person.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field

from cvtune.fields import Section, field
from cvtune.recipe import MUTABLE
from cvtune.space import Choice, Space

LEARNING = ("tpe", "gp")  # searchers that model the final score by the values that a trial started with


STRENGTHS = ("augment.strength", "regularize.strength")  # whose mean the options of a fair ASHA look at


class FIFO(Section):
    """Every trial runs to its end, in the order of proposal."""

    name: Literal["fifo"] = "fifo"

    def refusal(self, space: Space, max_epochs: int, searcher: str, trials: int) -> str | None:
        """Why this cannot work together, in one sentence; None if it can."""
        return None


class ASHA(Section):
    """Asynchronous successive halving (Li et al. 2020, MLSys): at each rung only the best 1/reduction_factor go on.

    A rung is asked when a trial reports from it, among those that came by before. Strong augmentation and strong
    regularization make a trial start slowly, so that early rungs stop it for what makes it win late. Three things
    make ASHA fair to such trials: `grace_by_strength` (a later first rung for them), `strata` (they are compared
    among themselves only) and `optim.ema` of the recipe (what is scored are then averaged weights, which are less
    noisy at a high rate). `controls` measures what is left of it.
    """

    name: Literal["asha"] = "asha"
    grace_epochs: int = field(
        1, "First rung: no trial is stopped before this many epochs (or folds).", unit="epochs", ge=1
    )
    reduction_factor: float = field(3.0, "One in this many trials passes a rung; also the spacing of rungs.", gt=1)
    brackets: int = field(1, "Brackets with later and later first rungs (1: the most aggressive only).", ge=1, le=10)
    grace_by_strength: float = field(
        0.0,
        "How much longer strong trials are safe: grace_epochs x (1 + this x the mean of augment.strength and "
        "regularize.strength). Rungs below a trial's own grace neither ask nor count it.",
        ge=0,
        le=1000,
    )
    strata: int = field(
        1,
        "Groups by the mean of augment.strength and regularize.strength, equal in width; a trial is compared within "
        "its group only.",
        ge=1,
        le=10,
    )
    controls: int = field(
        0,
        "Random trials that are never stopped, to measure whether the rungs stop trials that would have won.",
        unit="trials",
        ge=0,
        le=1000,
    )

    def refusal(self, space: Space, max_epochs: int, searcher: str, trials: int) -> str | None:
        """Why this cannot work together, in one sentence; None if it can."""
        return _late_grace(self.grace_epochs, max_epochs, trials)


class Promotion(Section):
    """ASHA as its authors wrote it (Li et al. 2020, MLSys, algorithm 2): trials wait at the rungs.

    A trial that reaches a rung goes on once it is among the best 1/reduction_factor of all that have come there. A
    free place takes the trial that may go on from the highest rung, and a new one where none may. So whoever comes
    first has no advantage, and none is lost that is overtaken late; but what waits lies on the disk, and is loaded
    again to go on. Those that still wait when the search is over are stopped.
    """

    name: Literal["promotion"] = "promotion"
    grace_epochs: int = field(1, "First rung: every trial trains for this many epochs (or folds).", unit="epochs", ge=1)
    reduction_factor: float = field(3.0, "One in this many trials passes a rung; also the spacing of rungs.", gt=1)

    def refusal(self, space: Space, max_epochs: int, searcher: str, trials: int) -> str | None:
        """Why this cannot work together, in one sentence; None if it can."""
        return _late_grace(self.grace_epochs, max_epochs, trials)


class HyperBand(Section):
    """HyperBand (Li et al. 2018, JMLR), synchronous: brackets from cautious to aggressive, filled one after another.

    The first bracket's few trials run to max_epochs. Every later one starts with more trials, waits for all of them
    at each rung, and lets the best 1/reduction_factor go on. A bracket begins once it is full or the budget has no
    more trials.
    """

    name: Literal["hyperband"] = "hyperband"
    reduction_factor: float = field(3.0, "One in this many trials passes a rung; also the spacing of rungs.", ge=2)

    def refusal(self, space: Space, max_epochs: int, searcher: str, trials: int) -> str | None:
        """Why this cannot work together, in one sentence; None if it can."""
        first = round(math.log(max_epochs) / math.log(self.reduction_factor)) + 1  # also the number of brackets
        if not trials or (trials > first and first > 1):
            return None
        if first == 1:
            return (
                f"max_epochs = {max_epochs} with scheduler.reduction_factor = {self.reduction_factor:g} leaves "
                "hyperband no rung: no trial could ever be stopped. Raise max_epochs, or use scheduler.name=fifo."
            )
        return (
            f"budget.trials = {trials}: hyperband's first {first} trials always run to max_epochs, so no trial could "
            f"ever be stopped. Raise budget.trials above {first}, or use scheduler.name=asha."
        )


class Median(Section):
    """Median stopping (Golovin et al. 2017, KDD): a trial ends whose best so far is below the median of the others.

    The others are those that have come as far; what counts of them is the mean of their reports up to there.
    """

    name: Literal["median"] = "median"
    grace_epochs: int = field(1, "No trial is stopped before this many epochs (or folds).", unit="epochs", ge=1)
    min_trials: int = field(
        3, "Other trials that must have come as far before one is stopped.", unit="trials", ge=1, le=10**6
    )

    def refusal(self, space: Space, max_epochs: int, searcher: str, trials: int) -> str | None:
        """Why this cannot work together, in one sentence; None if it can."""
        if 0 < trials <= self.min_trials:
            return (
                f"scheduler.min_trials = {self.min_trials} is not below budget.trials = {trials}: no trial could ever "
                "be stopped. Lower it, or use scheduler.name=fifo."
            )
        return _late_grace(self.grace_epochs, max_epochs, trials)


class _Population(Section):
    interval_epochs: int = field(
        1, "Epochs after which a trial is compared with the population again.", unit="epochs", ge=1
    )
    quantile: float = field(
        0.25,
        "Share of the population that takes over weights, and share of it that they are taken from: the lowest and "
        "the highest scores.",
        gt=0,
        le=0.5,
    )
    synch: bool = field(
        True,
        "Whether all trials wait for one another at each comparison: all are then compared at one age, and the same is "
        "decided however many run at once. False: each is compared as it comes, and no slot is ever idle.",
    )

    def _refusal(self, name: str, space: Space, max_epochs: int, searcher: str, trials: int) -> str | None:
        if searcher in LEARNING:
            return (
                f"searcher.name = {searcher} with scheduler.name = {name}: a population changes its values while it "
                "trains, so a model of final scores by starting point learns nothing true. Use searcher.name=random, "
                "sobol or grid."
            )
        if not space.domains:
            return (
                f"scheduler.name = {name} changes the searched values, but nothing is searched. Search one or more of "
                f"{', '.join(MUTABLE)}; or use scheduler.name=fifo."
            )
        conditional = next((searched for searched in space.domains if space.parent(searched)), None)
        if conditional is not None:
            return (
                f"scheduler.name = {name}: {conditional!r} is searched only under a condition, but a trial that takes "
                "over values needs all of them. Remove the condition, or use scheduler.name=asha."
            )
        fixed = [searched for searched in space.domains if searched not in MUTABLE]
        if fixed:
            fit = ", ".join(searched for searched in space.domains if searched in MUTABLE) or "none"
            return (
                f"scheduler.name = {name}: {fixed[0]!r} is searched, but cannot change while a trial trains (weights "
                "of another architecture cannot be taken over, and the data and the optimizer stay). Take it out of "
                f"the space with --set {fixed[0]}=VALUE, or use scheduler.name=asha. Searched and fit for {name}: "
                f"{fit}."
            )
        if trials < 2:
            return (
                f"budget.trials = {trials}: with scheduler.name = {name} these are the population, and one trial "
                "cannot learn from others. Use at least 2, better 8 or more."
            )
        if self.interval_epochs >= max_epochs:
            return (
                f"scheduler.interval_epochs = {self.interval_epochs} is not below max_epochs = {max_epochs}: no trial "
                "could ever take over another one's weights. Lower it, or use scheduler.name=fifo."
            )
        return None


class PBT(_Population):
    """Population-based training (Jaderberg et al. 2017): the worst take over weights and values of the best, changed.

    `budget.trials` is the population; it trains side by side, in turns where there are more trials than places. The
    searched values may change every `interval_epochs`, so what is found is a schedule, not a point. Only values that
    may change during training can be searched. Strengths and other linear axes move additively, so that 0 can be
    left; logarithmic ones by a factor; whole numbers by 1 or more; a choice goes to its neighbor in the list.
    """

    name: Literal["pbt"] = "pbt"
    resample: float = field(
        0.25, "Probability that a value is drawn anew from its whole domain instead of being moved.", ge=0, le=1
    )
    step: float = field(0.2, "How far a linear axis moves up or down, as a share of its range.", gt=0, le=1)
    factor: float = field(1.2, "What a logarithmic axis is multiplied or divided by.", gt=1, le=1000)
    burn_in_epochs: int = field(0, "No trial takes over weights before this many epochs.", unit="epochs", ge=0)

    def refusal(self, space: Space, max_epochs: int, searcher: str, trials: int) -> str | None:
        """Why this cannot work together, in one sentence; None if it can."""
        if not trials:
            return None
        if self.burn_in_epochs >= max_epochs:
            return (
                f"scheduler.burn_in_epochs = {self.burn_in_epochs} is not below max_epochs = {max_epochs}: no trial "
                "could ever take over another one's weights. Lower it, or use scheduler.name=fifo."
            )
        return self._refusal(self.name, space, max_epochs, searcher, trials)


class PB2(_Population):
    """Population-based bandits (Parker-Holder et al. 2020, NeurIPS): PBT that chooses new values by a Gaussian process.

    The process learns from the whole population how much a score rises in the next interval, given the values; it
    needs fewer trials than PBT (4 to 32; it looks at the last 190 reports). The first takeovers copy the values as
    they are, because nothing is known yet. Choices cannot be searched: the process needs an order and a distance.
    """

    name: Literal["pb2"] = "pb2"

    def refusal(self, space: Space, max_epochs: int, searcher: str, trials: int) -> str | None:
        """Why this cannot work together, in one sentence; None if it can."""
        if not trials:
            return None
        choices = [searched for searched, domain in space.domains.items() if isinstance(domain, Choice)]
        if choices:
            return (
                f"scheduler.name = pb2: {choices[0]!r} is a Choice, but a Gaussian process needs an order and a "
                "distance. Give it a range (Uniform, LogUniform or IntUniform), or use scheduler.name=pbt."
            )
        return self._refusal(self.name, space, max_epochs, searcher, trials)


Scheduler = Annotated[FIFO | ASHA | Promotion | HyperBand | Median | PBT | PB2, Field(discriminator="name")]


def _late_grace(grace_epochs: int, max_epochs: int, trials: int) -> str | None:
    if not trials or grace_epochs <= max_epochs:
        return None
    return (
        f"scheduler.grace_epochs = {grace_epochs} is above max_epochs = {max_epochs}: no trial could ever be stopped. "
        "Lower it, or use scheduler.name=fifo."
    )


def folds_refusal(scheduler: Scheduler, folds: int, refused: str | None) -> str | None:
    """Why a scheduler cannot work with `data.folds`; `refused` is what it says itself of so many rounds."""
    if isinstance(scheduler, PBT | PB2):
        return (
            f"data.folds = {folds} with scheduler.name = {scheduler.name}: a population takes over weights and changes "
            "values in mid-training, but a recipe is to be the same on all folds, and each fold trains weights of its "
            "own. Use scheduler.name=asha, or data.folds=null."
        )
    return refused and refused.replace("max_epochs", "data.folds")
