"""The probe set: validation images, always the same ones, whose predictions are compared from report to report.

They are evaluated anyway, so that this costs next to nothing. What it tells of a run is for `health.py`: a rate that is
too high shows in predictions that keep changing while the loss falls.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

IMAGES = 512  # at most; a rate of flips then has a standard error of at most 0.022
SIDE = 16  # places of an image, along each side, at which a predicted mask is looked at
UNKNOWN = -1  # as a guess: the place has no label, so that it does not count


class Said(NamedTuple):
    """What a model says of N images of the probe set, at P places each: 1, one per tag, or one per point of a mask."""

    guess: Tensor  # int16 (N, P): class, or 0 and 1 of a tag; `UNKNOWN` where there is no label
    confidence: Tensor  # float32 (M,): probability of each guess that counts
    predicted: Tensor  # int64 (K,): how often each class is guessed
    there: Tensor  # int64 (K,): how often it is right


class ProbeSet:
    """Which images of a part are in the probe set, and what was said of them at the last report.

    Args:
        images: in the part; of more than `IMAGES` every second, third, ... is taken.
        masks: whether they have masks.

    Attributes:
        last: the guesses of the last report, see `Said`; None before the first. Part of a checkpoint.
    """

    def __init__(self, images: int, masks: bool) -> None:
        self.every, self.masks = max(1, -(-images // IMAGES)), masks
        self.last: Tensor | None = None

    def within(self, start: int) -> slice:
        """The rows of a batch that belong to the set, if its first one is image `start`."""
        return slice(-start % self.every, None, self.every)

    def look(self, said: Sequence[Said]) -> dict[str, Any]:
        """`probe_*` of an Epoch by name; these guesses are the last ones from here on."""
        guess = torch.cat([batch.guess for batch in said]).cpu()
        before, self.last = self.last, guess
        predicted, there = (sum(counts) for counts in zip(*((s.predicted, s.there) for s in said), strict=True))
        assert isinstance(predicted, Tensor) and isinstance(there, Tensor)
        confidence = torch.cat([batch.confidence for batch in said])
        area = 1.0 - (predicted[0] / predicted.sum()).item() if self.masks and int(predicted.sum()) else None
        return {
            "probe_flips": _flips(before, guess),
            "probe_confidence": confidence.mean().item() if bool(confidence.isfinite().all()) else None,
            "probe_entropy": _spread(predicted, there),
            "probe_area": area,
        }


def said(guess: Tensor, confidence: Tensor, truth: Tensor, classes: int) -> Said:
    """`Said` of one class per place.

    Args:
        guess: int64 (N, P).
        confidence: float32 (N, P).
        truth: int64 (N, P), on the same device; below 0 where there is no label.
        classes: K.
    """
    known = truth >= 0
    counts = (torch.bincount(found[known], minlength=classes) for found in (guess, truth))
    return Said(guess.where(known, UNKNOWN).short(), confidence[known], *counts)


def _flips(before: Tensor | None, now: Tensor) -> float | None:
    if before is None or before.shape != now.shape:
        return None
    known = now != UNKNOWN
    return ((before != now) & known).sum().item() / max(1, int(known.sum()))


def _spread(predicted: Tensor, there: Tensor) -> float | None:
    """Entropy of what is predicted over that of what is right; None where one class alone is right."""
    one, other = (torch.special.entr(counts / counts.sum().clamp(min=1)).sum().item() for counts in (predicted, there))
    return one / other if other > 0 else None
