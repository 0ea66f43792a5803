"""The data source of `resolution.py`: crops of two photos, sharp or slightly out of focus."""

from typing import Any

import cv2
import numpy as np
from sklearn.datasets import load_sample_images

CLASSES = ("building", "building out of focus", "flower", "flower out of focus")
COLUMNS = {"train": (0.0, 0.6), "val": (0.6, 0.8), "test": (0.8, 1.0)}  # of a photo's width: no pixel is in two parts
CROPS = {"train": 72, "val": 40, "test": 50}  # of each class
SIDE = 96


def images() -> dict[str, Any]:
    """Crops uint8 (96, 96, 3). What tells the focus is two pixels wide, and gone where a crop is made small."""
    rng = np.random.default_rng(0)
    parts: dict[str, Any] = {"classes": CLASSES}
    for part, (left, right) in COLUMNS.items():
        crops, labels = [], []
        for number, photo in enumerate(load_sample_images().images):
            strip = photo[:, round(left * photo.shape[1]) : round(right * photo.shape[1])]
            for blurred in (0, 1):
                seen = cv2.GaussianBlur(strip, (0, 0), 1.5) if blurred else strip
                for _ in range(CROPS[part]):
                    y, x = rng.integers(0, seen.shape[0] - SIDE), rng.integers(0, seen.shape[1] - SIDE)
                    crops.append(seen[y : y + SIDE, x : x + SIDE])
                    labels.append(2 * number + blurred)
        parts[part] = (np.stack(crops), np.array(labels))
    return parts
