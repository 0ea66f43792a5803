"""Metrics of a classifier on held-out images, from torchmetrics (imported late: it takes seconds)."""

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
    from torchmetrics.functional.classification import multiclass_calibration_error, multiclass_stat_scores

    logits = logits.float()
    loss = F.cross_entropy(logits, labels).item()
    probabilities = logits.softmax(1).clamp(max=1)  # torchmetrics takes 1 + rounding for logits
    if not bool(probabilities.isfinite().all()):
        return {"loss": loss, "accuracy": 0.0, "balanced_accuracy": 0.0, "macro_f1": 0.0, "ece": 1.0}
    classes = logits.shape[1]
    scores = multiclass_stat_scores(probabilities, labels, classes, average=None, validate_args=False)
    ece = multiclass_calibration_error(probabilities, labels, classes, ECE_BINS, validate_args=False)
    hit, false_alarm, _, miss, support = scores[scores[:, 4] > 0].double().unbind(1)
    values = {
        "accuracy": hit.sum() / support.sum(),
        "balanced_accuracy": (hit / support).mean(),
        "macro_f1": (2 * hit / (2 * hit + false_alarm + miss)).mean(),
        "ece": ece.double(),
    }
    return {"loss": loss, **dict(zip(values, torch.stack(list(values.values())).tolist(), strict=True))}
