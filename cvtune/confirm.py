"""Confirmation: the best recipes and the baselines are trained again with fresh seeds and compared on the test images.

The search reports the best of many scores, which the luck that made it the best has made too good. So `plan` trains
the best recipes anew, `choose_winner` takes one by the validation images, and only then does `compare` look at the
test images, once, to say how much better the winner is and how sure that is.

Two chances count: other seeds would have given other weights (Bouthillier et al. 2021, MLSys, "Accounting for variance
in machine learning benchmarks"), and other test images other scores.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

from cvtune.bootstrap import BETTER, LEVEL, TEST_METRICS, Chance, Floats, metrics_of, redraw, scored
from cvtune.errors import ConfigError, did_you_mean
from cvtune.history import History, TrialRecord
from cvtune.noise import FINISHED
from cvtune.recipe import Recipe, Regularize
from cvtune.regularize import BUNDLE, resolve
from cvtune.schedule import as_changes
from cvtune.study import Study

FORMAT = 1  # of Comparison.to_json
DEFAULT, TRIVIAL = "default", "trivial"  # labels of the baselines
WITHOUT = "without "  # begins the label of a recipe with one knob left out: "without mixup of 00012"
AUGMENTING = ("geometry", "color", "quality", "occlusion", "mixup", "cutmix")  # knobs of `augment`; 0 is off


@dataclass(frozen=True)
class Planned:
    """A confirming trial that is still to be run: `recipe` with a fresh seed. The label says what it repeats."""

    label: str
    recipe: Recipe
    index_of_seed: int  # from 0, within the label


@dataclass(frozen=True)
class RecipeScore:
    """A recipe's test metric: mean over its seeds, with a 95 % interval of its own, and each seed's value."""

    label: str
    mean: float
    low: float
    high: float
    seeds: tuple[float, ...]


@dataclass(frozen=True)
class Difference:
    """Test metric of the winner minus that of the recipe `label`; the intervals of all of them hold together."""

    label: str
    mean: float
    low: float
    high: float

    @property
    def tied(self) -> bool:
        """Whether chance alone may explain the difference."""
        return self.low <= 0 <= self.high


@dataclass(frozen=True)
class Comparison:
    """What the test images say. `note` holds what a reader must know beside it, or nothing."""

    metric: str  # one of bootstrap.BETTER
    winner: str
    recipes: tuple[RecipeScore, ...]
    differences: tuple[Difference, ...]  # every recipe but the winner
    images: int
    groups: int | None  # groups of images that were drawn as one; None: each image on its own
    note: str

    @property
    def tied(self) -> tuple[str, ...]:
        """The recipes that the winner is not shown to differ from."""
        return tuple(d.label for d in self.differences if d.tied)

    def headline(self) -> str:
        """The winner's test metric and its gain over the default recipe in words."""
        own = next(r for r in self.recipes if r.label == self.winner)
        head = (
            f"{self.winner} reaches a test {spoken(self.metric)} of {own.mean:.4g} (95 % interval {own.low:.4g} to "
            f"{own.high:.4g}; seeds: {len(own.seeds)}, images: {self.images})"
        )
        if self.winner == DEFAULT:
            return f"{head}. It is the default recipe itself: on validation, nothing confirmed was better."
        default = next((d for d in self.differences if d.label == DEFAULT), None)
        if default is None:
            return f"{head}. The default recipe was not confirmed beside it."
        low, mean, high = default.low, default.mean, default.high
        if BETTER[self.metric] == "min":
            low, mean, high = -high, -mean, -low
        gain = f"{abs(mean):.3g} {'better' if mean >= 0 else 'worse'} than the default recipe"
        chance = ", which contains 0: it may be chance" if default.tied else ""
        return f"{head}, {gain} (simultaneous 95 % interval of the gain {low:.3g} to {high:.3g}{chance})."

    def sentences(self) -> list[str]:
        """Everything that a person has to know, the headline first."""
        beside = [label for label in self.tied if label != DEFAULT]
        ties = f"Not shown to differ from it on the test images: {', '.join(beside)}." if beside else ""
        return [text for text in (self.headline(), ties, self.note) if text]

    def to_json(self) -> dict[str, Any]:
        """All of it as plain JSON, with `tied`, `sentences` and the format's version."""
        return {"format": FORMAT, **dataclasses.asdict(self), "tied": self.tied, "sentences": self.sentences()}


def plan(study: Study, history: History) -> list[Planned]:
    """The confirming trials that are still missing: first seeds first, so that a cut leaves each recipe some.

    Confirmed are the best `confirm.top` distinct recipes of the search (a population's winner as its schedule; with
    `confirm.per` as many for each value of that name), with `confirm.ablate` also the best one with one knob left out
    at a time, every candidate, and (unless `confirm.baselines` is off) as baselines the study's own recipe ("default")
    and the same with TrialAugment's fixed policy and default regularization ("trivial"). A confirming trial counts for
    its label however it ended, and a finished noise trial as a seed of the default. Without a top and without
    candidates nothing is planned.
    """
    missing = []
    for place, (label, recipe) in enumerate(_recipes(study, history).items()):
        tried = sum(record.label == label for record in history.of("confirm"))
        done = tried + sum(record.role == "noise" for record in _finished(study, history, label))
        missing += [(index, place, Planned(label, recipe, index)) for index in range(done, study.confirm.seeds)]
    return [planned for _, _, planned in sorted(missing, key=lambda entry: entry[:2])]


def choose_winner(study: Study, history: History) -> dict[str, Any] | None:
    """The recipe with the best mean objective on the validation images, at the last epoch of its confirming trials.

    With folds a confirming trial trains on all of them as one of the search does, and counts by `final`.

    `tied` names the others that may still be the best. They come from multiple comparisons with the best (Hsu 1984,
    Annals of Statistics 12): a recipe is out once its mean lies further behind the winner's than a one-sided t
    quantile allows, at level 5 % divided by the number of comparisons (Bonferroni), with one variance for all. So
    winner and tied hold the best recipe with 95 % confidence. Where no recipe has two finished seeds, all are tied.

    Returns:
        {"label", "scores": {label: [one per finished seed]}, "failed": {label: [trial]}, "tied": [label]} as plain
        JSON. A recipe without a finished seed cannot win. None where no confirming trial has finished.
    """
    scores: dict[str, list[float]] = {}
    failed: dict[str, list[str]] = {}
    records = compared(study, history)
    for record in records:
        scores.setdefault(record.label or DEFAULT, []).append(final(study, record))
    for record in history.of("confirm"):
        if record.reason is not None and record.trial not in {r.trial for r in records}:
            failed.setdefault(record.label, []).append(record.trial)
    if all(record.role == "noise" for record in records):
        return None
    sign = 1.0 if study.better == "max" else -1.0
    means = {label: sign * float(np.mean(values)) for label, values in scores.items()}
    winner = max(means, key=lambda label: means[label])
    return {"label": winner, "scores": scores, "failed": failed, "tied": may_be_best(scores, means, winner)}


def _recipes(study: Study, history: History) -> dict[str, Recipe]:
    """What is confirmed, by label: all with the study's base seed, so that equal recipes are equal."""
    if not study.confirm.top and not study.candidates:
        return {}
    found: dict[str, Recipe] = {}
    taken: Counter[str] = Counter()  # by the value of confirm.per
    for record, _ in history.ranked(study):
        value = repr(record.recipe.flat()[study.confirm.per]) if study.confirm.per else ""
        if taken[value] < study.confirm.top and record.role in ("search", "control"):
            recipe = as_changes(study, history, record.trial)
            if recipe not in found.values():
                found[record.trial] = recipe
                taken[value] += 1
    if study.confirm.ablate and found:
        best = next(iter(found))
        found |= without_one(best, found[best])
    seed = {"seed": study.recipe.seed, "data.folds": study.recipe.data.folds}
    found |= {name: recipe.replace(seed) for name, recipe in study.candidates.items() if name not in found}
    plain = study.recipe.model_copy(update={"regularize": Regularize()})
    baselines = {DEFAULT: study.recipe, TRIVIAL: plain.replace({"augment.policy": "trivial"})}
    if not study.confirm.baselines:
        return found
    if study.recipe.train.loop is not None:
        del baselines[TRIVIAL]  # whether a loop of the user's own honors the policy is not known here
    for label, recipe in baselines.items():
        if label not in found and recipe not in found.values():
            found[label] = recipe
    return found


def without_one(label: str, recipe: Recipe) -> dict[str, Recipe]:
    """The recipe `label` with one knob of its two bundles switched off at a time, by label; none for what is off.

    A knob that `changes` sets during training is left out too: it would come back.
    """
    whole, changed = resolve(recipe), {name for _, values in recipe.changes for name in values}
    is_ours = recipe.augment.policy == "families"
    augmenting = [f"augment.{k}" for k in AUGMENTING if recipe.augment.strength or k in ("mixup", "cutmix")]
    knobs = [*(augmenting if is_ours else []), *(f"regularize.{knob}" for knob in BUNDLE)]
    flat = whole.flat()
    return {
        f"{WITHOUT}{knob} of {label}": recipe.replace({knob: 0.0})
        for knob in knobs
        if flat[knob] and knob not in changed
    }


def final(study: Study, record: TrialRecord) -> float:
    """The objective at the last epoch; with folds the mean over them of the objective at the last epoch of each."""
    ends = [e for e in record.epochs if study.is_judged(e)] if study.recipe.data.folds else record.epochs[-1:]
    return float(np.mean([e[study.objective] for e in ends]))


def _finished(study: Study, history: History, label: str) -> list[TrialRecord]:
    """The trials that count as seeds of a label: for the default also the noise trials, which train it."""
    mine = [r for r in history.of("noise") if label == DEFAULT and DEFAULT not in study.candidates]
    mine += [r for r in history.of("confirm") if r.label == label]
    return [record for record in mine if _is_finished(study, record)]


def _is_finished(study: Study, record: TrialRecord) -> bool:
    last = record.epochs[-1] if record.epochs else {}
    value = last.get(study.objective)
    kept = value is not None and math.isfinite(value) and study.over_limits(last) is None
    return kept and record.reason in FINISHED


def may_be_best(scores: Mapping[str, Sequence[float] | Floats], means: Mapping[str, float], winner: str) -> list[str]:
    """The labels but the winner's that are not shown to be worse; see `choose_winner`.

    Args:
        scores: of each label, one per seed.
        means: of each label, oriented so that more is better.
    """
    others = [label for label in scores if label != winner]
    freedom = sum(len(values) - 1 for values in scores.values())
    if not freedom or not others:
        return others
    pooled = sum(float(np.var(values)) * len(values) for values in scores.values()) / freedom
    quantile = float(stdtrit(freedom, 1 - LEVEL / len(others)))
    tied = []
    for label in others:
        error = math.sqrt(pooled * (1 / len(scores[winner]) + 1 / len(scores[label])))
        if means[winner] - means[label] <= quantile * error:
            tied.append(label)
    return tied


def compared(study: Study, history: History) -> list[TrialRecord]:
    """The trials that the confirmation compares, label by label: finished confirming ones and the default's noise."""
    labels = dict.fromkeys([*_recipes(study, history), *(record.label for record in history.of("confirm"))])
    return [record for label in labels for record in _finished(study, history, label)]


def made_and_truth(stored: Mapping[str, npt.NDArray[Any]]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """What `compare` takes of a model and of the images, from the arrays that its task has stored.

    Counts of pixels (N, K, 4) and those of them that are there (N, K); or probabilities (N, K) and tags (N, K); or
    probabilities and labels (N,).
    """
    if "counts" in stored:
        return stored["counts"], stored["counts"][..., 2]
    return stored["probabilities"], stored["tags"] if "tags" in stored else stored["labels"]


def spoken(metric: str) -> str:
    """A test metric's name in a sentence: accuracy, balanced accuracy, macro F1, mAP."""
    return {"map": "mAP", "mean_iou": "mean IoU", "macro_f1": "macro F1"}.get(metric, metric.replace("_", " "))


def metric_on_test(name: str, valid: Mapping[str, str] = TEST_METRICS) -> tuple[str, str]:
    """The test metric for an objective (or for a test metric itself), and what to say if it is another one.

    val_X becomes X. What has no counterpart on the test images (train_loss, clean_accuracy) becomes accuracy. `valid`
    are the metrics of the task.
    """
    metric = name.removeprefix("val_")
    if metric in valid:
        return metric, ""
    return "accuracy", f"{name} is not measured on the test images; they are compared by accuracy instead."


def compare(
    study: Study,
    predictions: Mapping[str, Sequence[npt.NDArray[Any]]],
    labels: npt.NDArray[Any],
    groups: npt.NDArray[Any] | None,
    metric: str,
    winner: str,
    seed: int = 0,
    rounds: int = 2000,
) -> Comparison:
    """How much better the winner is on the test images, with intervals that hold for all comparisons together.

    A bootstrap over both chances. Each round draws the test images again, the same ones for every recipe and seed
    (paired, so what makes an image hard cancels; Efron & Tibshirani 1993), in whole groups where there are any, and
    draws each recipe's seeds again (Bouthillier et al. 2021). What a seed changes on single images would show in both
    draws; it counts once. See `bootstrap.Chance` for how the intervals are made to hold together and made honest
    about few seeds. With a single seed each, only the chance of the images counts, and `note` says so.

    Args:
        study: names the objective where `metric` is empty.
        predictions: label -> one array per seed: probabilities (N, C), classes are columns; or of masks the pixels
            counted by image and class, (N, C, 4).
        labels: (N,) true classes, 0..C-1; or tags (N, C), NaN where not known; or of masks (N, C), see
            `made_and_truth`.
        groups: (N,) any values; images with the same one are not independent (one patient, one burst). Or None.
        metric: a test metric or an objective, see `metric_on_test`.
        winner: label that the others are compared with; chosen without the test images.
        seed: of the bootstrap.
        rounds: of the bootstrap.

    Raises:
        ConfigError: the winner has no predictions, a shape or class does not fit, a probability is not finite, or
            there are fewer than two images or groups to draw from.
    """
    _check(predictions, labels, groups, winner)
    name, note = metric_on_test(metric or study.objective, metrics_of(labels, predictions[winner][0]))
    rng, recipes = np.random.default_rng(seed), list(predictions)
    units = np.unique(np.arange(len(labels)) if groups is None else groups, return_inverse=True)[1]
    sums = scored(name, [np.asarray(p) for label in recipes for p in predictions[label]], labels)
    drawn = np.concatenate([sums.under(weights) for weights in redraw(units, rounds, rng)], axis=1)
    ends = np.cumsum([len(predictions[label]) for label in recipes])[:-1]
    seeds = np.split(sums.under(np.ones((len(labels), 1)))[:, 0], ends)
    chance = Chance.of(seeds, np.split(drawn, ends), rng)
    if max(map(len, seeds)) == 1:
        note = f"{note} With one seed for each recipe, the intervals know nothing of the chance of the seed.".strip()
    return Comparison(
        metric=name,
        winner=winner,
        recipes=tuple(_scores(dict(zip(recipes, seeds, strict=True)), chance, math.inf if name == "loss" else 1.0)),
        differences=tuple(_differences(dict(zip(recipes, seeds, strict=True)), chance, winner)),
        images=len(labels),
        groups=None if groups is None else int(units.max()) + 1,
        note=note,
    )


def _scores(seeds: Mapping[str, Floats], chance: Chance, top: float) -> Iterator[RecipeScore]:
    for row, (label, values) in zip(np.eye(len(seeds)), seeds.items(), strict=True):
        mean, half = float(values.mean()), chance.half_widths(row[None])[0]
        yield RecipeScore(label, mean, max(0.0, mean - half), min(top, mean + half), tuple(values.tolist()))


def _differences(seeds: Mapping[str, Floats], chance: Chance, winner: str) -> Iterator[Difference]:
    rows = dict(zip(seeds, np.eye(len(seeds)), strict=True))
    others = [label for label in seeds if label != winner]
    contrasts = np.array([rows[winner] - rows[label] for label in others])
    for label, half in zip(others, chance.half_widths(contrasts), strict=True):
        gap = float(seeds[winner].mean() - seeds[label].mean())
        yield Difference(label, gap, gap - half, gap + half)


def _check(
    predictions: Mapping[str, Sequence[npt.NDArray[Any]]],
    labels: npt.NDArray[Any],
    groups: npt.NDArray[Any] | None,
    winner: str,
) -> None:
    if winner not in predictions or not len(predictions[winner]):
        raise ConfigError(f"The winner {winner!r} has no predictions. {did_you_mean(winner, predictions)}")
    shapes = {label: [np.shape(p) for p in arrays] for label, arrays in predictions.items()}
    classes = shapes[winner][0][1]
    for label, found in shapes.items():
        if not found or any(shape[:2] != (len(labels), classes) for shape in found):
            raise ConfigError(
                f"Predictions of {label!r} have the shapes {found}: each seed needs one row for each of the "
                f"{len(labels)} test images and one column for each of the {classes} classes."
            )
        if not all(np.isfinite(p).all() for p in predictions[label]):
            raise ConfigError(f"Predictions of {label!r} are not all finite. Leave out the seed that diverged.")
    if labels.ndim == 1 and len(labels) and (labels.min() < 0 or labels.max() >= classes):
        raise ConfigError(f"Labels run from {labels.min()} to {labels.max()}, but there are {classes} classes.")
    if groups is not None and len(groups) != len(labels):
        raise ConfigError(f"There are {len(groups)} groups for {len(labels)} test images. Give each image its group.")
    if len(np.unique(np.arange(len(labels)) if groups is None else groups)) < 2:
        raise ConfigError("Fewer than two test images or groups: the chance of the images cannot be measured.")
