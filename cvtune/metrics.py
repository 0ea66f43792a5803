"""Metrics of a classifier on held-out images.

Part of the trial loop, so written here: torchmetrics, which the tests compare with, takes each process a second or
more to import.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

ECE_BINS = 15


def classification(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """What one evaluation says of a classifier.

    The means over classes (balanced accuracy, macro F1) take only classes that occur in `labels`, so a
    class without validation images neither helps nor hurts. Where probabilities are not finite the loss
    says so (NaN or infinite) and every other metric takes its worst value.

    Args:
        logits: float (N, K), N >= 1, on any device.
        labels: int64 (N,), 0 <= label < K, on the same device.

    Returns:
        loss: cross-entropy in nats; accuracy, balanced_accuracy (mean recall), macro_f1: 0..1, more is
        better; ece: expected calibration error over 15 bins, 0..1 (Guo et al. 2017), less is better.
    """
    logits = logits.float()
    loss = F.cross_entropy(logits, labels).item()
    confidence, predicted = logits.softmax(1).max(1)
    if not bool(confidence.isfinite().all()):
        return {"loss": loss, "accuracy": 0.0, "balanced_accuracy": 0.0, "macro_f1": 0.0, "ece": 1.0}
    right, classes = predicted == labels, logits.shape[1]
    hits, support, guesses = (torch.bincount(x, minlength=classes) for x in (labels[right], labels, predicted))
    there = support > 0
    # Bins are open at their lower end, as in the paper. Each adds the gap between its confidences and its hits.
    bins = (confidence * ECE_BINS).ceil().long().clamp(1, ECE_BINS) - 1
    gaps = torch.bincount(bins, weights=confidence.double() - right.double(), minlength=ECE_BINS)
    values = {
        "accuracy": right.double().mean(),
        "balanced_accuracy": (hits / support)[there].double().mean(),
        "macro_f1": (2 * hits / (support + guesses))[there].double().mean(),
        "ece": gaps.abs().sum() / len(labels),
    }
    return {"loss": loss, **dict(zip(values, torch.stack(list(values.values())).tolist(), strict=True))}
