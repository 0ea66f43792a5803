"""The data of `segmentation.py` and `segmentation_optimizers.py`: discs and bars on noise, and their masks."""

from typing import Any

import cv2
import numpy as np

CLASSES = ("background", "disc", "bar")
SIDE = 48
IMAGES = {"train": 160, "val": 60, "test": 100}
UNSURE = 255  # mask value that is ignored: a rim of two pixels, where anybody's outline would differ


def scene(rng: np.random.Generator, side: int) -> tuple[np.ndarray, np.ndarray]:
    """An image uint8 (side, side, 3) and its mask uint8 (side, side).

    One to three shapes for each square of 48 px, of either class about as large, the later ones in front.
    """
    image = rng.normal(110, 20, (side, side, 3))
    mask = np.zeros((side, side), np.uint8)
    for _ in range(rng.integers(1, 4) * side**2 // SIDE**2):
        label, reach = int(rng.integers(1, 3)), int(rng.integers(6, 11))
        x, y = (int(v) for v in rng.integers(0, side, 2))
        here = np.zeros((side, side), np.uint8)
        if label == 1:
            cv2.circle(here, (x, y), reach, 1, -1)
        else:
            corners = cv2.boxPoints(((x, y), (3 * reach, reach), float(rng.uniform(0, 180))))
            cv2.fillPoly(here, [corners.astype(np.int32)], 1)
        rim = cv2.dilate(here, np.ones((3, 3), np.uint8)) - cv2.erode(here, np.ones((3, 3), np.uint8))
        mask[here == 1] = label
        mask[rim == 1] = UNSURE
        image[here == 1] += rng.choice((-1, 1), 3) * rng.uniform(20, 70, 3)
    return np.clip(cv2.GaussianBlur(image, (0, 0), 0.8), 0, 255).astype(np.uint8), mask


def images() -> dict[str, Any]:
    """Images of 48 px and masks of each part, by a fixed seed."""
    return _parts(SIDE)


def large() -> dict[str, Any]:
    """The same with images of 128 px, which show as many shapes as seven of the small ones."""
    return _parts(128)


def _parts(side: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    parts: dict[str, Any] = {"classes": CLASSES}
    for part, count in IMAGES.items():
        scenes = [scene(rng, side) for _ in range(count)]
        parts[part] = (np.stack([image for image, _ in scenes]), np.stack([mask for _, mask in scenes]))
    return parts
