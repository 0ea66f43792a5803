"""Design: what a study's tables hold of the response to its searched values, one row per trial and age.

A trial that was stopped early says what it scored at the ages that it reached, and nothing is made up beyond: it is
censored, never as if finished. Later code predicts the score at max_epochs from all rows together, which is fair as
long as the rows that decided the stop are among them (Rubin 1976: missing at random).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cvtune.analysis.findings import Floats
from cvtune.analysis.tables import Tables
from cvtune.confirm import DEFAULT
from cvtune.recipe import FIELDS
from cvtune.space import Choice

RATIO = 3.0  # ages at which a trial is looked at: max_epochs, a third of it, a ninth, ...
AGES = 4  # of them at most, and the last epoch of a trial
EDGE = 0.002  # shares are kept this far from 0 and 1 before their logit is taken
FENCE = 3.0  # interquartile ranges below the lower quartile from which a score counts as just bad
SPOILT = "diverged"  # the one way to fail that says something of the recipe

Curves = Mapping[str, tuple[npt.NDArray[np.int64], Floats]]  # by trial


@dataclass(frozen=True)
class Link:
    """From scores to the scale on which effects add up: logit of a share, log of a loss; more is always better there.

    Attributes:
        objective: name of the score.
        sign: 1 where a higher score is better, else -1.
        shift, scale: what makes the measured ones mean 0 and standard deviation 1.
    """

    objective: str
    sign: float
    shift: float = 0.0
    scale: float = 1.0

    @property
    def is_share(self) -> bool:
        """Whether the score lies in [0, 1]."""
        return not self.objective.endswith("loss")

    def raw(self, score: npt.ArrayLike) -> Floats:
        """On the added scale, before it is standardized."""
        values = np.asarray(score, float)
        if self.is_share:
            values = np.clip(values, EDGE, 1 - EDGE)
            return np.asarray(self.sign * np.log(values / (1 - values)))
        return np.asarray(self.sign * np.log(np.maximum(values, 1e-6)))

    def to_link(self, score: npt.ArrayLike) -> Floats:
        return np.asarray((self.raw(score) - self.shift) / self.scale)

    def to_score(self, value: npt.ArrayLike) -> Floats:
        """The inverse of `to_link`."""
        raw = self.sign * np.clip(np.asarray(value, float) * self.scale + self.shift, -30, 30)
        return np.asarray(1 / (1 + np.exp(-raw)) if self.is_share else np.exp(raw))


@dataclass(frozen=True)
class Design:
    """N rows of T trials over D searched names.

    Attributes:
        names: searched names, in the order of the space.
        levels: of each name, how many values a choice has; 0: it has a range.
        place: (T, D) in [0, 1], the quantile of each trial's values in their domains.
        trials: names of the T trials; `roles` and `labels` beside.
        score: (T,) best score of each trial; `epochs` (T,) how many it trained.
        of: (N,) which trial a row is of.
        left: (N,) how much of the training was left, on a log scale: 0 at max_epochs, 1 after the first epoch.
        y: (N,) best score up to there, on the standardized scale of `link`.
    """

    names: tuple[str, ...]
    levels: tuple[int, ...]
    place: Floats
    trials: tuple[str, ...]
    roles: tuple[str, ...]
    labels: tuple[str, ...]
    score: Floats
    epochs: npt.NDArray[np.int64]
    of: npt.NDArray[np.int64]
    left: Floats
    y: Floats
    link: Link

    @property
    def whole(self) -> npt.NDArray[np.bool_]:
        """(T,) whether a trial trained to max_epochs."""
        done = np.zeros(len(self.trials), bool)
        done[self.of[self.left == 0]] = True
        return done


def design_of(tables: Tables) -> Design:
    """All trials that say something: with a score, with values inside the space, and with one recipe throughout.

    Left out are the fixed baseline (its augmentation is no strength) and trials that took over weights.
    """
    study = tables.study
    curves = means_over_folds(tables) if study.recipe.data.folds else curves_of(tables)
    most, names = study.recipe.max_epochs, tuple(study.space.domains)
    sign = 1.0 if study.better == "max" else -1.0
    kept: list[tuple[int, float, int]] = []
    places: list[list[float]] = []
    rows: list[tuple[int, float, float]] = []
    for index, trial in enumerate(tables.trials["trial"]):
        curve = curves.get(str(trial))
        values = study.space.restrict(_values(tables, names, index))
        if curve is None or values is None or not _counts(tables, index, set(curves)):
            continue
        best = np.maximum.accumulate(sign * curve[1]) * sign
        number = len(kept)
        kept.append((index, float(best[-1]), int(curve[0][-1])))
        places.append(study.space.encode(values))
        rows += [(number, _left(int(curve[0][i]), most), float(best[i])) for i in _looked_at(curve[0], most)]
        if tables.column("reason")[index] == SPOILT and curve[0][-1] < most:
            rows.append((number, 0.0, math.nan))
    of, left, scores = (np.array(column) for column in zip(*rows, strict=True)) if rows else (np.zeros(0),) * 3
    y, link = _standardized(Link(study.objective, sign), scores.astype(float))
    return Design(
        names=names,
        levels=tuple(len(d.values) if isinstance(d := study.space.domains[n], Choice) else 0 for n in names),
        place=np.array(places, float).reshape(len(kept), len(names)),
        trials=tuple(str(tables.trials["trial"][i]) for i, _, _ in kept),
        roles=tuple(str(tables.column("role")[i] or "search") for i, _, _ in kept),
        labels=tuple(str(tables.column("label")[i] or "") for i, _, _ in kept),
        score=np.array([score for _, score, _ in kept], float),
        epochs=np.array([epochs for _, _, epochs in kept], np.int64),
        of=of.astype(np.int64),
        left=left.astype(float),
        y=y,
        link=link,
    )


def means_over_folds(tables: Tables) -> Curves:
    """Of each trial over folds one point: its mean over the folds it finished, at max_epochs.

    Fewer folds tell the same mean with more noise; they are no earlier age of it.
    """
    most = np.array([tables.study.recipe.max_epochs], np.int64)
    return {trial: (most, means[-1:]) for trial, (_, means) in curves_of(tables, "folds_mean").items()}


def curves_of(tables: Tables, score: str = "") -> Curves:
    """Of each trial the steps (E,) with a finite score (the objective if not named), rising, and the score (E,)."""
    objective = np.asarray(tables.epochs[score or tables.study.objective], float)
    steps = np.asarray(tables.epochs["step"], float)
    names = np.asarray(tables.epochs["trial"]).astype(str)
    order = np.lexsort((steps, names))
    order = order[np.isfinite(objective[order])]
    starts = np.flatnonzero(np.r_[True, names[order][1:] != names[order][:-1]]) if len(order) else np.zeros(0, int)
    return {
        str(names[part[0]]): (steps[part].astype(np.int64), objective[part])
        for part in np.split(order, starts[1:])
        if len(part)
    }


def _values(tables: Tables, names: tuple[str, ...], index: int) -> dict[str, Any]:
    """The searched values of a trial as a recipe has them: columns hold whole numbers as floats and null as NaN."""
    made: dict[str, Any] = {}
    for name in names:
        value = tables.column(name)[index]
        if isinstance(value, float | np.floating):
            value = None if math.isnan(value) else FIELDS[name].kind(value)
        made[name] = value
    return made


def _counts(tables: Tables, index: int, searched: set[str]) -> bool:
    """Whether a trial's recipe is a point of the space: no candidate of another kind, no weights of another trial."""
    exploits = tables.column("exploits")[index]
    label = tables.column("label")[index]
    if tables.column("role")[index] == "confirm" and label not in searched | {DEFAULT}:
        return False
    return exploits is None or not exploits > 0


def _left(step: int, most: int) -> float:
    return max(0.0, 1 - math.log(step) / math.log(most)) if most > 1 else 0.0


def _looked_at(steps: npt.NDArray[np.int64], most: int) -> list[int]:
    """Positions of the reports that make rows: near the ages max_epochs / 3**k, and the last."""
    wanted = {round(most / RATIO**k) for k in range(AGES)}
    return [i for i, step in enumerate(steps) if step in wanted or i == len(steps) - 1]


def _standardized(link: Link, scores: Floats) -> tuple[Floats, Link]:
    """Scores on the link's scale; NaN, and what lies far below all others, count as just bad."""
    raw = link.raw(scores)
    known = raw[np.isfinite(raw)]
    if not len(known):
        return raw, link
    lower, upper = np.quantile(known, [0.25, 0.75])
    floor = max(float(known.min()), float(lower - FENCE * (upper - lower)))
    raw = np.maximum(np.where(np.isfinite(raw), raw, floor), floor)
    made = Link(link.objective, link.sign, float(raw.mean()), float(raw.std()) or 1.0)
    return (raw - made.shift) / made.scale, made
