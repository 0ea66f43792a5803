"""Findings: what the tables of a study say, as frozen values. The report draws them; nothing here computes.

Scores are in units of the objective, as it is (a loss stays a loss: `mode` says which way is better). What the data
cannot say is None, and `Findings.missing` states the reason under the same name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cvtune.controls import ControlReport

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


class Unsaid(Exception):
    """The data cannot say this; the message is the reason, as a part of a sentence."""


@dataclass(frozen=True)
class Interval:
    """An estimate and its interval; the owner says at which level."""

    mean: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether chance alone would rarely give an estimate so far from 0."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Axis:
    """One axis of a surface: `values` (G,) rising, evenly spaced in quantiles of the searched domain."""

    name: str
    values: Floats
    is_log: bool


@dataclass(frozen=True)
class Point:
    """A setting: its position on both axes, and the score that the model expects there with its 90 % interval."""

    x: float
    y: float
    score: Interval


@dataclass(frozen=True)
class Dots:
    """The trials that the surface was fitted to, one entry each, to be drawn on it.

    Attributes:
        trial: names.
        x, y: (N,) positions on the two axes.
        score: (N,) best score of each, at the epochs that it trained.
        epochs: (N,) epochs trained.
        role: of each trial; see `history.ROLES`.
    """

    trial: tuple[str, ...]
    x: Floats
    y: Floats
    score: Floats
    epochs: npt.NDArray[np.int64]
    role: tuple[str, ...]


@dataclass(frozen=True)
class Surface:
    """Expected score at max_epochs over two axes. Grids are (G, G): row i is y.values[i], column j is x.values[j].

    Attributes:
        x, y: the axes.
        mean, low, high: average over all other searched values, with its pointwise 90 % interval.
        profile: the best over the other values (learning rate first); NaN where `blank`.
        blank: where the learning rate was not covered well enough to name the best.
        extrapolated: where no trial nearby trained to max_epochs: to be hatched.
        region: the sweet spot: the settings that may be within `epsilon` of the best; left out is what is shown, each
            setting at 90 %, to be worse than the best guess by more.
        near: (G, G) in [0, 1], probability that a setting is within `epsilon` of the best guess.
        epsilon: in units of the objective: the noise floor, or one hundredth of the range where it is not known.
        best: the setting with the highest expected score of the average.
        best_profile: the same of the profile; None where all of it is blank.
        dots: the trials.
        epochs: max_epochs.
    """

    x: Axis
    y: Axis
    mean: Floats
    low: Floats
    high: Floats
    profile: Floats
    blank: Mask
    extrapolated: Mask
    region: Mask
    near: Floats
    epsilon: float
    best: Point
    best_profile: Point | None
    dots: Dots
    epochs: int

    @property
    def region_share(self) -> float:
        """Share of the searched area that the sweet spot takes."""
        return float(self.region.mean())


@dataclass(frozen=True)
class Ridge:
    """The best y for each x.

    Attributes:
        x: (G,) values of the first axis.
        y, low, high: (G,) the best value of the second axis there, with a pointwise 90 % interval.
        slope: how much the best y changes from one end of x to the other, as a share of the range of y (both axes
            measured in quantiles of their domains), with a 90 % interval.
        mapping: versions of the strength mappings that the slope holds for, such as "augment 1, regularize 1".
    """

    x: Floats
    y: Floats
    low: Floats
    high: Floats
    slope: Interval
    mapping: str


@dataclass(frozen=True)
class Interaction:
    """Whether the effect of one axis depends on the other, measured on the logit of the score (the log of a loss).

    Attributes:
        effect: effect of y (from end to end) at the upper end of x minus that at its lower end, of the bilinear part,
            with a 95 % interval; positive: more of one makes more of the other better.
        chance: posterior probability that the sign is the other way round.
        shown: whether the interval excludes 0.
        scale_dependent: whether the sign changes under a monotone re-scaling of the axes.
    """

    effect: Interval
    chance: float
    shown: bool
    scale_dependent: bool


@dataclass(frozen=True)
class Importance:
    """Share of the variance of the expected score over the space, at max_epochs, with a 90 % interval.

    `names` is one searched name, or two for what they do together beyond their own effects.
    """

    names: tuple[str, ...]
    share: Interval


@dataclass(frozen=True)
class Candidate:
    """A recipe that may be the best.

    Attributes:
        label: trial, or label of a confirmed recipe.
        values: its searched values.
        score: expected score without its own luck: of confirmed recipes mean over seeds, with a 95 % interval.
        best: probability of being the best of all candidates.
        tied: whether it is not shown to be worse than the best (see `Ties.basis`).
    """

    label: str
    values: Mapping[str, Any]
    score: Interval
    best: float
    tied: bool


@dataclass(frozen=True)
class Ties:
    """Is the winner really better? `candidates` come best first; `basis` says what they are compared by."""

    candidates: tuple[Candidate, ...]
    basis: str

    @property
    def tied(self) -> tuple[str, ...]:
        """Labels of all that may be the best, the winner first."""
        return tuple(c.label for c in self.candidates if c.tied)


@dataclass(frozen=True)
class ClassChange:
    """Recall of one class on the test images: the winner's, the reference's, and the difference.

    `change` holds a 95 % interval that holds for all classes together; `hurt` if all of it lies below 0.
    """

    name: str
    images: int
    winner: float
    reference: float
    change: Interval
    hurt: bool


@dataclass(frozen=True)
class PerClass:
    """What the winner does to single classes against a recipe with weaker augmentation.

    Attributes:
        winner, reference: labels of the two confirmed recipes.
        strengths: augmentation strength of the two.
        classes: the largest loss first.
    """

    winner: str
    reference: str
    strengths: tuple[float, float]
    classes: tuple[ClassChange, ...]


@dataclass(frozen=True)
class Knob:
    """One knob of a bundle left out: the score without it minus the score with it, with a 95 % interval."""

    name: str
    change: Interval
    seeds: int


@dataclass(frozen=True)
class Ablation:
    """Which knob carries the bundle. `recipe` is the label of the recipe that was ablated; largest loss first."""

    recipe: str
    knobs: tuple[Knob, ...]


@dataclass(frozen=True)
class Gap:
    """Overfitting: score on clean training images minus score on validation images, at the last epoch of a trial.

    Attributes:
        metric: the two columns, such as "clean_accuracy - val_accuracy".
        x, y: (N,) positions on the two axes.
        gap: (N,) above 0: better on what was trained on.
        epochs: (N,) epochs trained.
        over_x, over_y: change of the gap from one end of the axis to the other, with a 95 % interval.
    """

    metric: str
    x: Floats
    y: Floats
    gap: Floats
    epochs: npt.NDArray[np.int64]
    over_x: Interval
    over_y: Interval


@dataclass(frozen=True)
class Rungs:
    """What early stopping saved, and what it may have cost.

    Attributes:
        epochs: (R,) at which was decided.
        correlation: (R,) rank correlation with the final score, of the trials that trained to the end; NaN below 4.
        reached: (R,) trials that came as far.
        trained, whole: epochs that were trained, and that all trials to the end would have taken.
        controls: the replay over control trials; None where there is no journal.
    """

    epochs: npt.NDArray[np.int64]
    correlation: Floats
    reached: npt.NDArray[np.int64]
    trained: int
    whole: int
    controls: ControlReport | None

    @property
    def saved(self) -> float:
        """Share of the epochs that early stopping saved."""
        return 1 - self.trained / self.whole if self.whole else 0.0


@dataclass(frozen=True)
class Third:
    """How the optimum moves with a third variable.

    Attributes:
        name: of the variable.
        values: where the optimum was computed: each of a choice, else three quantiles of the domain.
        best_x, best_y: the best position on each axis there, with 90 % intervals.
        moves: whether an interval of the shift between the first and the last value excludes 0, for x and for y.
    """

    name: str
    values: tuple[Any, ...]
    best_x: tuple[Interval, ...]
    best_y: tuple[Interval, ...]
    moves: tuple[bool, bool]


@dataclass(frozen=True)
class Costs:
    """What the study took: `hours` of device time, by role; GPU-hours where trials had GPUs, else CPU-hours."""

    unit: str
    hours: Mapping[str, float]
    epochs: int

    @property
    def total(self) -> float:
        return sum(self.hours.values())


@dataclass(frozen=True)
class Findings:
    """Everything the tables say. A part that cannot be said is None, and `missing` has the reason under its name.

    Attributes:
        study, objective, mode: of the study; mode is max or min.
        ridge, interaction: of the surface's two axes.
        warnings: what a reader must know before trusting it, each a sentence.
        sentences: the answer in words, the most important first.
    """

    study: str
    objective: str
    mode: str
    surface: Surface | None
    ridge: Ridge | None
    interaction: Interaction | None
    importances: tuple[Importance, ...] | None
    ties: Ties | None
    per_class: PerClass | None
    ablation: Ablation | None
    gap: Gap | None
    rungs: Rungs | None
    third: Third | None
    costs: Costs | None
    missing: Mapping[str, str]
    warnings: tuple[str, ...]
    sentences: tuple[str, ...]
