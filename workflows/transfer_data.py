"""The two sets of images for `pretrain.py` and `transfer.py`: scikit-learn's digits 0 to 4, and a few of 5 to 9."""

from typing import Any

import numpy as np
from sklearn.datasets import load_digits

FEW = 2  # training images per class


def many() -> dict[str, Any]:
    """The 901 images of the digits 0 to 4; parts are split off by shares."""
    images, labels = _digits()
    return {"train": (images[labels < 5], labels[labels < 5]), "classes": tuple("01234")}


def few() -> dict[str, Any]:
    """Of the digits 5 to 9: 2 images each to train with, 200 to validate, 686 to test."""
    images, labels = _digits()
    images, labels = images[labels >= 5], labels[labels >= 5] - 5
    train = np.concatenate([np.flatnonzero(labels == label)[:FEW] for label in range(5)])
    rest = np.setdiff1d(np.arange(len(labels)), train)
    rows = {"train": train, "val": rest[:200], "test": rest[200:]}
    return {**{part: (images[r], labels[r]) for part, r in rows.items()}, "classes": tuple("56789")}


def _digits() -> tuple[np.ndarray, np.ndarray]:
    """uint8 (1797, 8, 8) and int64 (1797,), in a fixed random order."""
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    return np.round(digits.images * (255 / 16)).astype(np.uint8)[order], digits.target[order].astype(np.int64)
