"""Bootstrap: how the choice of test images and of seeds moves the metrics of trained models.

Every metric here is a function of weighted sums over the images (hits of each class, say), so that thousands of
resampled test sets are one product of a sparse matrix with the weights of the images.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array, vstack
from scipy.special import ndtr, ndtri, stdtrit

from cvtune.ranking import average_precisions

OF_CLASSES = {"accuracy": "max", "balanced_accuracy": "max", "macro_f1": "max", "worst_recall": "max", "loss": "min"}
TEST_METRICS = OF_CLASSES | {"ece": "min"}  # of images with one class; name -> which is better
TAG_METRICS = {"accuracy": "max", "macro_f1": "max", "map": "max", "loss": "min"}
MASK_METRICS = OF_CLASSES | {"mean_iou": "max", "dice": "max", "foreground_iou": "max"}
BETTER = TEST_METRICS | TAG_METRICS | MASK_METRICS
LEVEL = 0.05  # intervals that hold together are wrong in at most this share of studies
RECALLS = ("balanced_accuracy", "worst_recall")  # what is made of the recall of each class
ECE_BINS = 15  # as on the validation images
CHUNK = 4_000_000  # weights of images held in memory at once

Floats = npt.NDArray[np.float64]


class Scored(Protocol):
    """Models whose metric is known under any weights of the test images: (N, rounds) -> (models, rounds)."""

    def under(self, weights: Floats) -> Floats: ...


def metrics_of(truth: npt.NDArray[Any], made: npt.NDArray[Any]) -> dict[str, str]:
    """The metrics that models can be compared by, and their direction: of masks, of tags, or of classes."""
    return MASK_METRICS if made.ndim == 3 else TAG_METRICS if truth.ndim == 2 else TEST_METRICS


def scored(metric: str, models: Sequence[npt.NDArray[Any]], truth: npt.NDArray[Any]) -> Scored:
    """From what `confirm.made_and_truth` gives of each model."""
    if models[0].ndim == 3:
        return MaskSums(metric, np.stack(models))
    return TagRanks(metric, models, truth) if truth.ndim == 2 else Sums.of(metric, models, truth)


@dataclass(frozen=True)
class MaskSums:
    """Models that give each pixel a class. `counts`: (models, N, K, 4), see `metrics.segmentation`."""

    metric: str
    counts: Floats

    def under(self, weights: Floats) -> Floats:
        """The metric of every model; means over classes take those that occur in the weighted images."""
        models, images, classes, kinds = self.counts.shape
        if self.metric == "dice":
            return np.stack([self._dice(counts, weights) for counts in self.counts])
        flat = self.counts.transpose(0, 2, 3, 1).reshape(-1, images) @ weights
        total = flat.reshape(models, classes, kinds, -1)
        right, predicted, there, loss = (total[:, :, kind] for kind in range(kinds))
        if self.metric in ("accuracy", "loss"):
            return np.asarray((right if self.metric == "accuracy" else loss).sum(1) / there.sum(1))
        by_class = {
            "macro_f1": 2 * right / np.maximum(predicted + there, 1),
            "mean_iou": (iou := right / np.maximum(predicted + there - right, 1)),
            "foreground_iou": iou,
        }.get(self.metric, right / np.maximum(there, 1))
        occurs = there > 0
        if self.metric == "worst_recall":
            return np.asarray(np.where(occurs, by_class, 1.0).min(1))
        if self.metric == "foreground_iou":  # all classes but the first, which is the background by custom
            occurs = occurs & (np.arange(classes) > 0)[:, None]
        return np.asarray(np.where(occurs, by_class, 0).sum(1) / np.maximum(occurs.sum(1), 1))

    def _dice(self, counts: Floats, weights: Floats) -> Floats:
        both = counts[..., 1] + counts[..., 2]
        held = (both > 0).sum(1)
        dice = (2 * counts[..., 0] / np.maximum(both, 1)).sum(1) / np.maximum(held, 1)
        return np.asarray(dice @ weights / np.maximum((held > 0) @ weights, 1))


@dataclass(frozen=True)
class TagRanks:
    """Models that tell each class apart on its own: probabilities (N, K) each, and tags (N, K), NaN if not known."""

    metric: str
    models: Sequence[npt.NDArray[Any]]
    tags: npt.NDArray[Any]

    def under(self, weights: Floats) -> Floats:
        """The metric of every model; means over classes take those that occur in the weighted images."""
        return np.stack([self._of(chance, weights) for chance in self.models])

    def _of(self, chance: npt.NDArray[Any], weights: Floats) -> Floats:
        known, there = ~np.isnan(self.tags), self.tags >= 0.5
        occurs = there.T.astype(float) @ weights > 0  # (K, rounds)
        if self.metric == "map":
            by_class = average_precisions(chance, self.tags, weights)
            return np.asarray(np.where(occurs, by_class, 0).sum(0) / np.maximum(occurs.sum(0), 1))
        if self.metric == "macro_f1":
            guess = (chance > 0.5) & known
            right, told, all_of = (x.T.astype(float) @ weights for x in (guess & there, guess, there))
            by_class = 2 * right / np.maximum(told + all_of, 1)
            return np.asarray(np.where(occurs, by_class, 0).sum(0) / np.maximum(occurs.sum(0), 1))
        if self.metric == "accuracy":
            each = ((chance > 0.5) == there) & known
        else:
            p = np.clip(chance.astype(np.float64), np.finfo(np.float32).tiny, 1 - np.finfo(np.float32).epsneg)
            tags = np.where(known, self.tags, 0.0)
            each = np.where(known, -tags * np.log(p) - (1 - tags) * np.log1p(-p), 0.0)
        return np.asarray(each.sum(1) @ weights / np.maximum(known.sum(1) @ weights, 1))


@dataclass(frozen=True)
class Sums:
    """What a metric of some trained models is made of.

    Attributes:
        metric: one of TEST_METRICS.
        terms: (models x sums, N) what each image adds to the sums of each model.
        support: (C, N) which class each image is of.
    """

    metric: str
    terms: csr_array
    support: csr_array

    @classmethod
    def of(cls, metric: str, models: Sequence[npt.NDArray[Any]], labels: npt.NDArray[Any]) -> Sums:
        """From each model's probabilities (N, C) and the true classes (N,)."""
        ones, images = np.ones(len(labels)), np.arange(len(labels))
        support = csr_array((ones, (labels, images)), shape=(models[0].shape[1], len(labels)))
        return cls(metric, vstack([_terms(metric, p, labels) for p in models], format="csr"), support)

    def under(self, weights: Floats) -> Floats:
        """The metric of every model, (models, rounds), under weights of the images (N, rounds).

        Means over classes take the classes that occur among the weighted images, as on the validation images.
        """
        classes = self.support.shape[0]
        wide = {"ece": ECE_BINS, "macro_f1": 2 * classes} | dict.fromkeys(RECALLS, classes)
        sums = (self.terms @ weights).reshape(-1, wide.get(self.metric, 1), weights.shape[1])
        if self.metric in ("accuracy", "loss", "ece"):
            return np.asarray(np.abs(sums).sum(1) / weights.sum(0))
        there = self.support @ weights
        hits = sums[:, :classes]
        if self.metric == "worst_recall":
            return np.asarray(np.where(there > 0, hits / np.maximum(there, 1), 1.0).min(1))
        if self.metric == "balanced_accuracy":
            by_class = hits / np.maximum(there, 1)
        else:
            by_class = 2 * hits / np.maximum(there + sums[:, classes:], 1)
        return np.asarray(np.where(there > 0, by_class, 0).sum(1) / (there > 0).sum(0))


def redraw(units: npt.NDArray[np.int64], rounds: int, rng: np.random.Generator) -> Iterator[Floats]:
    """How often each image is drawn when units are drawn again with replacement: (N, some of the rounds) at a time.

    Args:
        units: (N,) which unit (the image itself, or its group) each image belongs to, counted from 0.
    """
    count = int(units.max()) + 1
    for start in range(0, rounds, step := max(1, CHUNK // len(units))):
        size = min(step, rounds - start)
        drawn = rng.integers(count, size=(size, count)) + count * np.arange(size)[:, None]
        times = np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count)
        yield np.ascontiguousarray(times[:, units].T, dtype=np.float64)


@dataclass(frozen=True)
class Chance:
    """How chance moves the mean metrics of k recipes.

    Attributes:
        images: (k, rounds) deviations when the images are drawn again.
        both: (k, rounds) deviations when each recipe's seeds are drawn again as well.
        twice: (k,) the part of the variance in `images` that is the seeds': what a seed changes on single images.
        seeds: (k,) variance of the mean over seeds.
        freedom: (k,) degrees of freedom of `seeds`.
    """

    images: Floats
    both: Floats
    twice: Floats
    seeds: Floats
    freedom: Floats

    @classmethod
    def of(cls, measured: Sequence[Floats], drawn: Sequence[Floats], rng: np.random.Generator) -> Chance:
        """From each recipe's metric by seed (n,), and the same in every round of images (n, rounds).

        Drawing n seeds again shows only (n - 1)/n of their variance: the deviations are widened by sqrt(n/(n - 1)).
        A recipe with a single seed borrows the spread of the others, and has none where all have one.
        """
        counts = np.array([len(values) for values in measured])
        several = np.maximum(counts, 2)
        left = [(v - v.mean()) * math.sqrt(n / (n - 1)) for v, n in zip(measured, several, strict=True)]
        pool = np.concatenate([r for r in left if len(r) > 1] or [np.zeros(1)])
        left = [r if len(r) > 1 else pool for r in left]
        rounds = drawn[0].shape[1]
        moved = [r[rng.integers(len(r), size=(n, rounds))].mean(0) for r, n in zip(left, counts, strict=True)]
        images = np.stack([d.mean(0) - d.mean() for d in drawn])
        apart = np.array([(d - d.mean(0)).var(1).sum() for d in drawn])
        freedom = np.where(counts > 1, counts - 1, max(1, (counts - 1).sum()))
        seeds = np.array([(r**2).mean() for r in left]) / counts
        return cls(images, images + np.stack(moved), apart / (counts * (several - 1)), seeds, freedom)

    def half_widths(self, contrasts: Floats) -> list[float]:
        """Half the widths of 95 % intervals that hold together, of contrasts of recipes (m, k).

        They share one critical value, the 95 % quantile of the largest standardized deviation (max-T; Westfall & Young
        1993). For the seeds' share of the variance, which few seeds know badly, it is carried over from the normal to
        Student's t distribution, with degrees of freedom after Satterthwaite (1946).
        """
        if not len(contrasts):
            return []
        moved = contrasts @ self.both
        error = moved.std(1, keepdims=True)
        largest = np.abs(moved / np.where(error > 0, error, 1.0)).max(0)
        # Draws from few seeds have too short tails: never less than a single comparison of normal deviations needs.
        critical = max(float(np.quantile(largest, 1 - LEVEL)), -float(ndtri(LEVEL / 2)))
        images = np.maximum((contrasts @ self.images).var(1) - contrasts**2 @ self.twice, 0)
        seeds = contrasts**2 * self.seeds
        squares = (seeds**2 / self.freedom).sum(1)
        freedom = np.where(squares > 0, seeds.sum(1) ** 2 / np.where(squares > 0, squares, 1.0), 1.0)
        student = -stdtrit(freedom, ndtr(-critical))
        return [float(half) for half in np.sqrt(critical**2 * images + student**2 * seeds.sum(1))]


def _terms(metric: str, probabilities: npt.NDArray[Any], labels: npt.NDArray[Any]) -> csr_array:
    images, shape = np.arange(len(labels)), (probabilities.shape[1], len(labels))
    predicted, confidence = probabilities.argmax(1), probabilities.max(1).astype(np.float64)
    right = (predicted == labels).astype(np.float64)
    if metric == "loss":
        chosen = np.maximum(probabilities[images, labels].astype(np.float64), np.finfo(np.float32).tiny)
        return csr_array(-np.log(chosen)[None])
    if metric == "accuracy":
        return csr_array(right[None])
    if metric == "ece":  # bins are open at their lower end (Guo et al. 2017)
        bins = np.clip(np.ceil(confidence * ECE_BINS).astype(int), 1, ECE_BINS) - 1
        return csr_array((confidence - right, (bins, images)), shape=(ECE_BINS, len(labels)))
    hits = csr_array((right, (labels, images)), shape=shape)
    if metric in RECALLS:
        return hits
    return vstack([hits, csr_array((np.ones(len(labels)), (predicted, images)), shape=shape)], format="csr")
