"""Recipes compared: is the winner really better, what does it do to single classes, which knob carries the bundle."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from cvtune.analysis.findings import (
    Ablation,
    Candidate,
    ClassChange,
    Floats,
    Interval,
    Knob,
    PerClass,
    Ties,
    Unsaid,
)
from cvtune.analysis.response import Response
from cvtune.analysis.surface import interval
from cvtune.analysis.tables import Tables
from cvtune.bootstrap import LEVEL
from cvtune.confirm import DEFAULT, TRIVIAL, WITHOUT, may_be_best
from cvtune.noise import FINISHED

ROUNDS = 4000
SHOWN = 20  # candidates that are kept
HOLDS = 0.9  # probability with which the tied recipes hold the best, where no recipe was confirmed
STRENGTH = "augment.strength"


def ties_of(tables: Tables, response: Response | None) -> Ties:
    """Who may be best: of the confirmed recipes, or before a confirmation of the trials as the response sees them.

    Raises:
        Unsaid: neither is there.
    """
    scores = confirmed(tables)
    if len(scores) > 1:
        return _of_confirmed(tables, scores)
    if response is None:
        raise Unsaid("no recipe was confirmed, and there are too few trials to tell luck from merit")
    return _of_trials(tables, response)


def confirmed(tables: Tables) -> dict[str, Floats]:
    """Label -> objective at the last epoch of its finished seeds, as `confirm.choose_winner` compares them."""
    role, label, reason, last = (tables.column(name) for name in ("role", "label", "reason", "last"))
    found: dict[str, list[float]] = {}
    for i in range(len(role)):
        finished = reason[i] in FINISHED and last[i] is not None and math.isfinite(last[i])
        if role[i] == "confirm" and finished:
            found.setdefault(str(label[i]), []).append(float(last[i]))
    default = [float(last[i]) for i in range(len(role)) if role[i] == "noise" and reason[i] in FINISHED]
    if found and default and tables.study.confirm.baselines and DEFAULT not in tables.study.candidates:
        found.setdefault(DEFAULT, []).extend(value for value in default if math.isfinite(value))
    return {name: np.array(values) for name, values in found.items()}


def pooled_error(scores: Mapping[str, Floats]) -> tuple[float, int]:
    """The standard deviation over seeds, one for all recipes, and its degrees of freedom."""
    freedom = sum(len(values) - 1 for values in scores.values())
    squares = sum(float(((values - values.mean()) ** 2).sum()) for values in scores.values())
    return (math.sqrt(squares / freedom) if freedom else math.nan), freedom


def _of_confirmed(tables: Tables, scores: Mapping[str, Floats]) -> Ties:
    from scipy.stats import t as student

    sign = 1.0 if tables.study.better == "max" else -1.0
    sd, freedom = pooled_error(scores)
    if not freedom:
        raise Unsaid("no confirmed recipe has two finished seeds, so luck and merit cannot be told apart")
    rng = np.random.default_rng(tables.study.recipe.seed)
    means = {name: float(values.mean()) for name, values in scores.items()}
    spread = sd * np.sqrt(freedom / rng.chisquare(freedom, ROUNDS))  # one spread for all recipes, itself uncertain
    draws = {n: means[n] + spread * rng.standard_normal(ROUNDS) / math.sqrt(len(v)) for n, v in scores.items()}
    best = _shares(sign * np.stack(list(draws.values())))
    winner = max(means, key=lambda name: sign * means[name])
    tied = {winner, *may_be_best(scores, {name: sign * mean for name, mean in means.items()}, winner)}
    half = {name: float(student.ppf(0.975, freedom)) * sd / math.sqrt(len(v)) for name, v in scores.items()}
    made = [
        Candidate(
            name,
            _values(tables, name),
            Interval(means[name], means[name] - half[name], means[name] + half[name]),
            float(share),
            name in tied,
        )
        for name, share in zip(scores, best, strict=True)
    ]
    basis = f"validation images, last epoch, {sum(map(len, scores.values()))} trainings with fresh seeds"
    return Ties(tuple(sorted(made, key=lambda c: (c.label != winner, -sign * c.score.mean))), basis)


def _of_trials(tables: Tables, response: Response) -> Ties:
    design = response.design
    chosen = [i for i, role in enumerate(design.roles) if role in ("search", "control")]
    drawn = response.at(design.place[chosen])
    shares = _shares(drawn.T)
    order = np.argsort(-shares, kind="stable")
    held = np.cumsum(shares[order]) - shares[order] < HOLDS
    made = []
    for place, kept in zip(order[:SHOWN], held[:SHOWN], strict=True):
        score = interval(design.link.to_score(drawn[:, place]), 0.95)
        name = design.trials[chosen[place]]
        made.append(Candidate(name, _values(tables, name), score, float(shares[place]), bool(kept)))
    return Ties(tuple(made), "what the search measured, without each trial's own luck, at max_epochs")


def _shares(draws: Floats) -> Floats:
    """How often each row of (K, S) is the highest."""
    return np.asarray(np.bincount(draws.argmax(0), minlength=len(draws)) / draws.shape[1])


def _values(tables: Tables, label: str) -> dict[str, Any]:
    """The searched values of a trial, or of the trials with this label."""
    names, trials, labels = list(tables.study.space.domains), tables.trials["trial"], tables.column("label")
    if label == DEFAULT:
        flat = tables.study.recipe.flat()
        return {name: flat[name] for name in names}
    rows = np.flatnonzero((trials == label) | (labels == label))
    return {name: tables.column(name)[rows[0]] for name in names} if len(rows) else {}


def per_class(tables: Tables) -> PerClass:
    """Recall of every class on the test images: the confirmed winner against weaker augmentation.

    The reference is the confirmed recipe with the next weaker augmentation, the fixed baseline left out. Differences
    are paired over images; their variance adds the chance of the images to that of the seeds. Intervals are widened so
    that they hold for all classes together (Bonferroni).

    Raises:
        Unsaid: no test predictions of classes, or nothing with weaker augmentation was confirmed.
    """
    if not len(tables.predictions.get("target", ())) or tables.comparison is None:
        raise Unsaid("no recipe was confirmed on test images with one class each")
    winner = str(tables.comparison["winner"])
    reference = _weaker(tables, winner)
    labels, trials = tables.predictions["label"].astype(str), tables.predictions["trial"].astype(str)
    target, predicted = (np.asarray(tables.predictions[n], float) for n in ("target", "predicted"))
    if not np.isfinite(target).all():
        raise Unsaid("recall of single classes needs test images with one class each")
    hits = {
        name: np.stack([(target == predicted)[trials == trial] for trial in dict.fromkeys(trials[labels == name])])
        for name in (winner, reference)
    }
    truth = target[trials == trials[labels == winner][0]].astype(int)
    classes = list(tables.provenance.get("classes") or [str(k) for k in range(int(truth.max()) + 1)])
    there = np.unique(truth)
    made = [
        _changed(classes[k], hits[winner][:, truth == k], hits[reference][:, truth == k], len(there)) for k in there
    ]
    return PerClass(
        winner, reference, (_strength(tables, winner), _strength(tables, reference)),
        tuple(sorted(made, key=lambda one: one.change.mean)),
    )  # fmt: skip


def _weaker(tables: Tables, winner: str) -> str:
    """The confirmed recipe with the next weaker augmentation."""
    labels = set(tables.predictions["label"].astype(str)) - {winner}
    kept: dict[str, float] = {
        str(n): _strength(tables, n) for n in labels if n != TRIVIAL and not n.startswith(WITHOUT)
    }
    weaker = [name for name, strength in kept.items() if strength < _strength(tables, winner)]
    if not weaker:
        raise Unsaid(
            "no recipe with weaker augmentation than the winner's was confirmed; add one to the study's candidates"
        )
    return max(weaker, key=lambda name: kept[name])


def _strength(tables: Tables, label: str) -> float:
    if label == DEFAULT:
        return float(tables.study.recipe.augment.strength)
    rows = np.flatnonzero((tables.trials["trial"] == label) | (tables.column("label") == label))
    value = tables.column(STRENGTH)[rows[0]] if len(rows) else None
    return float(value) if value is not None else math.nan


def _changed(name: str, winner: Floats, reference: Floats, together: int) -> ClassChange:
    """One class from hits (seeds, images) of both recipes."""
    from scipy.stats import t as student

    each = winner.mean(0) - reference.mean(0)
    images = len(each)
    seeds = [hits.mean(1).var(ddof=1) / len(hits) for hits in (winner, reference) if len(hits) > 1]
    # An image that no seed is unsure of still might have been another one: one image more that changed, and one less.
    square = (each**2).sum() + 1
    error = math.sqrt(max(square / images - each.mean() ** 2, 0) / images + sum(map(float, seeds)))
    half = float(student.ppf(1 - LEVEL / (2 * together), max(images - 1, 1))) * error
    mean = float(each.mean())
    change = Interval(mean, max(mean - half, -1.0), min(mean + half, 1.0))
    return ClassChange(name, images, float(winner.mean()), float(reference.mean()), change, change.high < 0)


def ablation_of(tables: Tables) -> Ablation:
    """Each knob left out, from the trials that `confirm.ablate` adds to a confirmation.

    The variance over seeds is shared by all recipes; intervals are widened to hold together (Bonferroni).

    Raises:
        Unsaid: the study has no such trials.
    """
    from scipy.stats import t as student

    scores = confirmed(tables)
    knobs = {label: values for label, values in scores.items() if label.startswith(WITHOUT)}
    base = next((label.partition(" of ")[2] for label in knobs), "")
    sd, freedom = pooled_error(scores)
    if base not in scores or not freedom:
        raise Unsaid("the study trained no recipe with a knob left out; --set confirm.ablate=true adds them")
    wide = float(student.ppf(1 - LEVEL / (2 * len(knobs)), freedom))
    sign = 1.0 if tables.study.better == "max" else -1.0
    made = []
    for label, values in knobs.items():
        mean = float(values.mean() - scores[base].mean())
        half = wide * sd * math.sqrt(1 / len(values) + 1 / len(scores[base]))
        name = label.removeprefix(WITHOUT).partition(" of ")[0]
        made.append(Knob(name, Interval(mean, mean - half, mean + half), len(values)))
    return Ablation(base, tuple(sorted(made, key=lambda knob: sign * knob.change.mean)))
