"""The peers' own model and augmentation as user code of cvtune, so that both sides train the same thing."""

from __future__ import annotations

import sys
from pathlib import Path

import albumentations as A
from torch import nn

from cvtune import Recipe

sys.path.insert(0, str(Path(__file__).resolve().parent / "peers"))

import stamps
import textbook_ray


def model(num_classes: int, recipe: Recipe) -> nn.Module:
    """Float (N, 3, H, W) -> logits (N, num_classes)."""
    if "ray" in sys.modules:  # a trial; the check before the first one trains a step, too
        stamps.watch()
    network: nn.Module = textbook_ray.small_resnet(num_classes, recipe.regularize.dropout)
    return network


def pipeline(strength: float, image_size: int) -> A.Compose:
    """uint8 (H, W, 3) -> float (3, image_size, image_size); cvtune drops the two last steps and does them by batch."""
    return textbook_ray.pipeline(strength, image_size)
