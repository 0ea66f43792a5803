"""One class per pixel, but for those that are ignored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cvtune import metrics, strips
from cvtune.data.dataset import Part
from cvtune.data.listing import IGNORE, Labels
from cvtune.epoch import Score
from cvtune.loss import Loss, build_mask_loss
from cvtune.probe_set import SIDE, Said, said
from cvtune.recipe import Recipe

MOST = 1000  # masks whose pixels are counted


class Sums:
    """Pixels counted by image and class, on the device; the logits of one batch live no longer than that batch."""

    def __init__(self) -> None:
        self._counts: list[Tensor] = []

    def add(self, logits: Tensor, targets: Tensor) -> None:
        self._counts.append(metrics.count_pixels(logits, targets.to(logits.device).long(), IGNORE))

    def scores(self) -> dict[str, Score]:
        return metrics.segmentation(self.stored()["counts"])

    def stored(self) -> dict[str, np.ndarray[Any, Any]]:
        """counts float64 (N, K, 4), see `metrics.segmentation`."""
        return {"counts": torch.cat(self._counts).cpu().numpy()}


class Segment:
    """See `tasks.Rules`."""

    scores: tuple[str, ...] = (
        *("loss", "accuracy", "balanced_accuracy", "macro_f1", "worst_recall", "mean_iou", "dice"),
        *("recall", "iou"),
    )

    def count(self, part: Part, rows: Labels, classes: int) -> Tensor:
        """int64 (K,): pixels of each class, as kept in the store; of large data in 1000 masks spread over `rows`."""
        assert part.masks is not None
        counts = np.zeros(IGNORE + 1, np.int64)
        for row in rows[np.unique(np.linspace(0, len(rows) - 1, MOST).astype(int))]:
            counts += np.bincount(part.masks[int(row)].ravel(), minlength=IGNORE + 1)
        return torch.from_numpy(counts[:classes])

    def hits(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Labelled pixels told right, and how many there are."""
        labelled = targets != IGNORE
        guess = logits.max(1).indices  # see `metrics.count_pixels`
        return ((guess == targets) & labelled).sum(), labelled.sum()

    def build_loss(self, recipe: Recipe, counts: Tensor | None) -> Loss:
        """See `loss.build_mask_loss`."""
        return build_mask_loss(recipe, counts)

    def sums(self) -> Sums:
        """Those of an evaluation that begins."""
        return Sums()

    def said(self, logits: Tensor, targets: Tensor) -> Said:
        """The likeliest class at some points of each image."""
        every = -(-logits.shape[-1] // SIDE)
        logits = logits[..., every // 2 :: every, every // 2 :: every]
        masks = targets[..., every // 2 :: every, every // 2 :: every].to(logits.device).long().flatten(1)
        confidence, guess = (found.flatten(1) for found in logits.softmax(1).max(1))
        return said(guess, confidence, masks.where(masks != IGNORE, -1), logits.shape[1])

    def strip(
        self, images: np.ndarray[Any, Any], targets: Tensor, logits: Tensor, classes: Sequence[str]
    ) -> Image.Image:
        """The images with their masks and the predicted ones."""
        return strips.draw_masks(images, targets.numpy(), logits.argmax(1).to(torch.uint8).numpy(), classes)
