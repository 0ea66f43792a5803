"""Your own model, data source, transform and loss for `own_code.py`: plain functions, imported on every worker."""

from typing import Any

import albumentations as A
import numpy as np
import torch
from torch import nn

from cvtune import Recipe


def model(num_classes: int, recipe: Recipe) -> nn.Module:
    """Takes float (N, 3, H, W), gives logits (N, num_classes). The recipe comes with every knob as a number."""
    return nn.Sequential(
        nn.Conv2d(3, recipe.model.width, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Dropout(recipe.regularize.dropout), nn.Linear(4 * recipe.model.width, num_classes),
    )  # fmt: skip


def images() -> dict[str, Any]:
    """Images uint8 (N, H, W, 3) and labels per part; without val and test they are split off. Here: stripes."""
    rng = np.random.default_rng(0)
    labels = np.arange(300) % 2
    pictures = rng.integers(0, 120, (300, 16, 16, 3), dtype=np.uint8)
    pictures[labels == 0, ::4] += 100  # class 0: lying stripes
    pictures[labels == 1, :, ::4] += 100  # class 1: standing stripes
    return {"train": (pictures, labels), "classes": ("lying", "standing")}


def transform(strength: float, image_size: int) -> A.Compose:
    """Any albumentations pipeline; cvtune seeds it, and normalizes on the device."""
    return A.Compose(
        [A.RandomBrightnessContrast(p=strength), A.GaussNoise(p=strength), A.Resize(image_size, image_size)]
    )


def loss(logits: torch.Tensor, target: torch.Tensor, recipe: Recipe) -> torch.Tensor:
    """One loss per sample. Here: poly loss (Leng et al. 2022), cross-entropy plus 1 - p of the label."""
    p = logits.softmax(1).gather(1, target[:, None])[:, 0]
    return nn.functional.cross_entropy(logits, target, reduction="none") + 1 - p
