"""The two sets of images for `pretrain.py` and `transfer.py`: scikit-learn's digits 0 to 6, and a few of 7 to 9."""

from typing import Any

import numpy as np
from sklearn.datasets import load_digits

SPLIT = 7  # the first digit of the second set
FEW = 2  # its training images per class


def many() -> dict[str, Any]:
    """The 1264 images of the digits 0 to 6; parts are split off by shares."""
    images, labels = _digits()
    return {"train": (images[labels < SPLIT], labels[labels < SPLIT]), "classes": tuple("0123456")}


def few() -> dict[str, Any]:
    """Of the digits 7 to 9: two images each to train with, 100 to validate, 427 to test."""
    images, labels = _digits()
    images, labels = images[labels >= SPLIT], labels[labels >= SPLIT] - SPLIT
    train = np.concatenate([np.flatnonzero(labels == label)[:FEW] for label in range(3)])
    rest = np.setdiff1d(np.arange(len(labels)), train)
    rows = {"train": train, "val": rest[:100], "test": rest[100:]}
    return {**{part: (images[r], labels[r]) for part, r in rows.items()}, "classes": tuple("789")}


def _digits() -> tuple[np.ndarray, np.ndarray]:
    """uint8 (1797, 8, 8) and int64 (1797,), in a fixed random order."""
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    return np.round(digits.images * (255 / 16)).astype(np.uint8)[order], digits.target[order].astype(np.int64)
