"""The data source of `imbalance.py`: digits of which the training images of every other class are rare."""

from typing import Any

import numpy as np
from sklearn.datasets import load_digits

COMMON, RARE = 74, 8  # training images of an even and of an odd digit


def images() -> dict[str, Any]:
    """Training images as unequal as 74 : 8; validation and test images, 40 and 60 of every digit, are not."""
    digits = load_digits()
    pictures = np.round(digits.images * (255 / 16)).astype(np.uint8)
    parts: dict[str, list[np.ndarray]] = {"train": [], "val": [], "test": []}
    for label in range(10):
        rows = np.random.default_rng(label).permutation(np.flatnonzero(digits.target == label))
        parts["test"].append(rows[:60])
        parts["val"].append(rows[60:100])
        parts["train"].append(rows[100 : 100 + (RARE if label % 2 else COMMON)])
    chosen = {part: np.concatenate(rows) for part, rows in parts.items()}
    return {part: (pictures[rows], digits.target[rows].astype(np.int64)) for part, rows in chosen.items()}
