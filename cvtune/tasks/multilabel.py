"""Any number of classes per image, each of them there, not there, or not known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cvtune import metrics, strips
from cvtune.data.dataset import Part
from cvtune.data.listing import Labels
from cvtune.epoch import Score
from cvtune.loss import Loss, build_tag_loss
from cvtune.probe_set import UNKNOWN, Said
from cvtune.recipe import Recipe


class Sums:
    """The logits themselves: average precision ranks all images."""

    def __init__(self) -> None:
        self._logits: list[Tensor] = []
        self._tags: list[Tensor] = []

    def add(self, logits: Tensor, targets: Tensor) -> None:
        self._logits.append(logits)
        self._tags.append(targets)

    def scores(self) -> dict[str, Score]:
        return metrics.multilabel(torch.cat(self._logits).cpu(), torch.cat(self._tags))

    def stored(self) -> dict[str, np.ndarray[Any, Any]]:
        """probabilities and tags float32 (N, K), NaN where a tag is not known."""
        return {
            "probabilities": torch.cat(self._logits).cpu().sigmoid().numpy(),
            "tags": torch.cat(self._tags).numpy(),
        }


class Multilabel:
    """See `tasks.Rules`."""

    scores: tuple[str, ...] = ("loss", "accuracy", "macro_f1", "map", "recall")

    def count(self, part: Part, rows: Labels, classes: int) -> Tensor:
        """int64 (K, 2): images in which each class is known to be absent, and in which it is there."""
        assert part.tags is not None
        tags = part.tags[rows]
        return torch.from_numpy(np.stack([(tags < 0.5).sum(0), (tags >= 0.5).sum(0)], axis=1))

    def hits(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Known tags told right at a probability of 0.5, and how many there are."""
        known = ~targets.isnan()
        return (((logits > 0) == (targets >= 0.5)) & known).sum(), known.sum()

    def build_loss(self, recipe: Recipe, counts: Tensor | None) -> Loss:
        """See `loss.build_tag_loss`."""
        return build_tag_loss(recipe, counts)

    def sums(self) -> Sums:
        """Those of an evaluation that begins."""
        return Sums()

    def said(self, logits: Tensor, targets: Tensor) -> Said:
        """Of each known tag whether it is there, at a probability of 0.5."""
        tags, chance = targets.to(logits.device), logits.sigmoid()
        known, guess = ~tags.isnan(), chance > 0.5
        return Said(
            guess.short().where(known, UNKNOWN),
            torch.where(guess, chance, 1 - chance)[known],
            (guess & known).sum(0),
            (tags >= 0.5).sum(0),
        )

    def strip(
        self, images: np.ndarray[Any, Any], targets: Tensor, logits: Tensor, classes: Sequence[str]
    ) -> Image.Image:
        """The images, framed by whether all known tags were told right."""
        return strips.draw_tags(images, targets.numpy(), logits.sigmoid().numpy(), classes)
