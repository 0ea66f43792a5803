"""One class per image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cvtune import strips
from cvtune.data.dataset import Part
from cvtune.data.listing import Labels
from cvtune.epoch import Score
from cvtune.loss import Loss, build_loss
from cvtune.metrics import classification
from cvtune.probe_set import Said, said
from cvtune.recipe import Recipe


class Sums:
    """The logits themselves: one number per image and class is little."""

    def __init__(self) -> None:
        self._logits: list[Tensor] = []
        self._labels: list[Tensor] = []

    def add(self, logits: Tensor, targets: Tensor) -> None:
        self._logits.append(logits)
        self._labels.append(hard(targets))

    def scores(self) -> dict[str, Score]:
        return classification(torch.cat(self._logits).cpu(), torch.cat(self._labels))

    def stored(self) -> dict[str, np.ndarray[Any, Any]]:
        """probabilities float32 (N, K) and labels int64 (N,)."""
        probabilities = torch.cat(self._logits).cpu().softmax(1)
        return {"probabilities": probabilities.numpy(), "labels": torch.cat(self._labels).numpy()}


class Classify:
    """See `tasks.Rules`."""

    scores: tuple[str, ...] = ("loss", "accuracy", "balanced_accuracy", "macro_f1", "worst_recall", "ece", "recall")

    def count(self, part: Part, rows: Labels, classes: int) -> Tensor:
        """int64 (K,): images of each class."""
        return torch.from_numpy(np.bincount(part.labels[rows], minlength=classes))

    def hits(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, int]:
        """Images told right, and how many there are."""
        return (logits.argmax(1) == hard(targets)).sum(), len(targets)

    def build_loss(self, recipe: Recipe, counts: Tensor | None) -> Loss:
        """See `loss.build_loss`."""
        return build_loss(recipe, counts)

    def sums(self) -> Sums:
        """Those of an evaluation that begins."""
        return Sums()

    def said(self, logits: Tensor, targets: Tensor) -> Said:
        """The likeliest class of each image."""
        confidence, guess = logits.softmax(1).max(1, keepdim=True)
        return said(guess, confidence, hard(targets).to(logits.device)[:, None], logits.shape[1])

    def strip(
        self, images: np.ndarray[Any, Any], targets: Tensor, logits: Tensor, classes: Sequence[str]
    ) -> Image.Image:
        """The images, framed by whether their class was told right."""
        return strips.draw(images, hard(targets).numpy(), logits.softmax(1).numpy(), classes)


def hard(targets: Tensor) -> Tensor:
    """The class int64 (N,) of soft labels (N, K); others as they are."""
    return targets if targets.ndim == 1 else targets.argmax(1)
