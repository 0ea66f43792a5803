"""Metrics on held-out images, one function per task.

Part of the trial loop, so written here: torchmetrics, which the tests compare with, takes each process a second or
more to import. Means over classes take only classes that occur in the truth, so a class without held-out images neither
helps nor hurts. Where a model's outputs are not finite the loss says so (NaN or infinite) and every other metric takes
its worst value.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from cvtune.epoch import Score
from cvtune.ranking import average_precisions

ECE_BINS = 15
RIGHT, PREDICTED, THERE, LOSS = range(4)  # what `segmentation` counts of a class in an image


def classification(logits: Tensor, labels: Tensor) -> dict[str, Score]:
    """What one evaluation says of a classifier.

    Args:
        logits: float (N, K), N >= 1, on any device.
        labels: int64 (N,), 0 <= label < K, on the same device.

    Returns:
        loss: cross-entropy in nats; accuracy, balanced_accuracy (mean recall), macro_f1, worst_recall: 0..1, more is
        better; ece: expected calibration error over 15 bins, 0..1 (Guo et al. 2017), less is better; recall: of each
        class, None where it does not occur.
    """
    logits = logits.float()
    loss = F.cross_entropy(logits, labels).item()
    confidence, predicted = logits.softmax(1).max(1)
    classes = logits.shape[1]
    support = torch.bincount(labels, minlength=classes)
    there = support > 0
    if not bool(confidence.isfinite().all()):
        worst = {"accuracy": 0.0, "balanced_accuracy": 0.0, "macro_f1": 0.0, "worst_recall": 0.0, "ece": 1.0}
        return {"loss": loss, **worst, "recall": by_class(np.zeros(classes), there.cpu().numpy())}
    right = predicted == labels
    hits, guesses = (torch.bincount(x, minlength=classes) for x in (labels[right], predicted))
    # Bins are open at their lower end, as in the paper. Each adds the gap between its confidences and its hits.
    bins = (confidence * ECE_BINS).ceil().long().clamp(1, ECE_BINS) - 1
    gaps = torch.bincount(bins, weights=confidence.double() - right.double(), minlength=ECE_BINS)
    recall = hits / support
    values = {
        "accuracy": right.double().mean(),
        "balanced_accuracy": recall[there].double().mean(),
        "macro_f1": (2 * hits / (support + guesses))[there].double().mean(),
        "worst_recall": recall[there].double().min(),
        "ece": gaps.abs().sum() / len(labels),
    }
    scores: dict[str, Score] = dict(zip(values, torch.stack(list(values.values())).tolist(), strict=True))
    return {"loss": loss, **scores, "recall": by_class(recall.cpu().numpy(), there.cpu().numpy())}


def multilabel(logits: Tensor, tags: Tensor) -> dict[str, Score]:
    """What one evaluation says of a model that tells each class apart on its own.

    Args:
        logits: float (N, K), N >= 1, on any device.
        tags: float32 (N, K) in 0..1, on the same device; NaN is not counted, 0.5 and more is there.

    Returns:
        loss: binary cross-entropy in nats, mean over the known tags; accuracy: share of them told right at a
        probability of 0.5; macro_f1, and recall of each class, at 0.5; map: mean over classes of the average precision.
    """
    logits, known, there = logits.float(), ~tags.isnan(), tags >= 0.5
    loss = F.binary_cross_entropy_with_logits(logits[known], tags[known]).item()
    if not bool(logits.isfinite().all()):
        recall = by_class(np.zeros(logits.shape[1]), there.any(0).cpu().numpy())
        return {"loss": loss, "accuracy": 0.0, "macro_f1": 0.0, "map": 0.0, "recall": recall}
    chance = logits.sigmoid()
    guessed = (chance > 0.5) & known
    hits, support, guesses = (x.sum(0).cpu().numpy() for x in (guessed & there, there, guessed))
    occurs = support > 0
    recall, f1 = hits / np.maximum(support, 1), 2 * hits / np.maximum(support + guesses, 1)
    precision = average_precisions(chance.cpu().numpy(), tags.cpu().numpy())[:, 0]
    return {
        "loss": loss,
        "accuracy": (guessed == there)[known].double().mean().item(),
        "macro_f1": mean(f1, occurs),
        "map": mean(precision, occurs),
        "recall": by_class(recall, occurs),
    }


def count_pixels(logits: Tensor, masks: Tensor, ignore: int) -> Tensor:
    """What `segmentation` needs of a batch, so that no logits have to be kept: float64 (N, K, 4), on their device.

    Args:
        logits: float (N, K, H, W).
        masks: int64 (N, H, W), classes or `ignore`, on the same device.
    """
    images, classes = logits.shape[:2]
    logits, labelled = logits.float(), masks != ignore
    losses = F.cross_entropy(logits, masks, reduction="none", ignore_index=ignore)
    guess = logits.max(1).indices  # argmax(1) says the same in ten times the time (torch 2.15 on a CPU)
    first = torch.arange(images, device=logits.device).view(-1, 1, 1) * (classes + 1)

    def count(of: Tensor, where: Tensor, weights: Tensor | None = None) -> Tensor:
        places = (first + torch.where(where, of, classes)).flatten()  # the last place takes what is not counted
        found = torch.bincount(places, weights, minlength=images * (classes + 1))
        return found.view(images, classes + 1)[:, :classes].double()

    right, predicted, there = count(guess, labelled & (guess == masks)), count(guess, labelled), count(masks, labelled)
    return torch.stack([right, predicted, there, count(masks, labelled, losses.double().flatten())], dim=-1)


def segmentation(counts: npt.NDArray[np.float64]) -> dict[str, Score]:
    """What one evaluation says of a model that gives each pixel a class.

    Args:
        counts: float64 (N, K, 4), of each image and class the pixels told `RIGHT`, `PREDICTED` and `THERE`, and the sum
            of the `LOSS` of those that are there; ignored pixels are in none. See `count_pixels`.

    Returns:
        Of all pixels together: loss (cross-entropy in nats, mean), accuracy, balanced_accuracy (mean recall),
        worst_recall, macro_f1 and mean_iou, and by class recall and iou, None where a class does not occur.
        dice: the mean over images of an image's mean over the classes that it or its prediction holds (the macro,
        samplewise Dice score of torchmetrics, background included).
    """
    total = counts.sum(0)
    there, pixels = total[:, THERE] > 0, max(1.0, total[:, THERE].sum())
    loss = float(total[:, LOSS].sum() / pixels)
    if not math.isfinite(loss):
        zero = by_class(np.zeros(len(total)), there)
        names = ("accuracy", "balanced_accuracy", "worst_recall", "macro_f1", "mean_iou", "dice")
        return {"loss": loss, **dict.fromkeys(names, 0.0), "recall": zero, "iou": zero}
    recall, f1, iou = recall_f1_iou(total)
    dice = dice_of_images(counts)
    return {
        "loss": loss,
        "accuracy": float(total[:, RIGHT].sum() / pixels),
        "balanced_accuracy": mean(recall, there),
        "worst_recall": float(recall[there].min()) if there.any() else 0.0,
        "macro_f1": mean(f1, there),
        "mean_iou": mean(iou, there),
        "dice": mean(dice, ~np.isnan(dice)),
        "recall": by_class(recall, there),
        "iou": by_class(iou, there),
    }


def recall_f1_iou(total: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], ...]:
    """Recall, F1 and intersection over union of each class, each (K, ...), of counts summed over images (K, 4, ...)."""
    right, predicted, there = total[:, RIGHT], total[:, PREDICTED], total[:, THERE]
    both = predicted + there
    return tuple(a / np.maximum(b, 1e-12) for a, b in ((right, there), (2 * right, both), (right, both - right)))


def dice_of_images(counts: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The Dice score of each image, (N,); NaN where it has no labelled pixel. See `segmentation`."""
    both = counts[..., PREDICTED] + counts[..., THERE]
    scores = 2 * counts[..., RIGHT] / np.maximum(both, 1)
    held = (both > 0).sum(1)
    return np.where(held > 0, scores.sum(1) / np.maximum(held, 1), np.nan)


def mean(values: npt.NDArray[Any], there: npt.NDArray[np.bool_]) -> float:
    """The mean over what is there; 0 if nothing is."""
    return float(values[there].mean()) if there.any() else 0.0


def by_class(values: npt.NDArray[Any], there: npt.NDArray[np.bool_]) -> list[float | None]:
    """A list for tables and journals, None for classes that do not occur."""
    return [float(value) if occurs else None for value, occurs in zip(values, there, strict=True)]
