"""Checks of images and labels that come as arrays (from .npz files and user code)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cvtune.data.listing import Item, Labelled, Labels
from cvtune.errors import DataError


def checked_parts(
    where: str, raw: Mapping[str, tuple[Any, Any]], classes: Sequence[str] | None
) -> tuple[list[str], dict[str, Labelled]]:
    """Class names and parts from raw (images, labels). Without `classes` they are '0' .. 'K-1' up to the largest label.

    Raises:
        DataError: dtype or shape of images, kind or range of labels, or lengths that differ.
    """
    parts = {part: _labelled(f"{where}, {part}", images, labels) for part, (images, labels) in raw.items()}
    largest = max((int(part.labels.max(initial=-1)) for part in parts.values()), default=-1)
    if classes is None:
        return [str(label) for label in range(largest + 1)], parts
    if largest >= len(classes):
        raise DataError(
            f"{where}: label {largest} has no class name, there are {len(classes)}. "
            f"Labels are whole numbers 0..{len(classes) - 1}: name every class, or correct the labels."
        )
    return [str(name) for name in classes], parts


def _labelled(where: str, images: Any, labels: Any) -> Labelled:
    items = check_images(where, images)
    checked = check_labels(where, labels)
    if len(items) != len(checked):
        raise DataError(
            f"{where}: {len(items)} images but {len(checked)} labels. Each image needs one label, in the same order."
        )
    return Labelled(items, checked)


def check_labels(where: str, labels: Any) -> Labels:
    """Labels as int64 (N,), from whole numbers (N,) or (N, 1) that are not negative."""
    array = np.asarray(labels)
    if array.dtype.kind not in "iu" and array.size:
        raise DataError(
            f"{where}: labels are {array.dtype}. They must be whole numbers 0..K-1, one per image: "
            "convert them, for example with numpy.unique(labels, return_inverse=True)[1]."
        )
    if array.ndim != 1 and array.shape != (len(array), 1):
        raise DataError(f"{where}: labels have shape {array.shape}. Give one whole number per image, shape (N,).")
    flat = array.reshape(-1).astype(np.int64)
    if flat.min(initial=0) < 0:
        raise DataError(f"{where}: label {flat.min()} is negative. Labels are whole numbers 0..K-1: renumber them.")
    return flat


def check_images(where: str, images: Any) -> Sequence[Item]:
    """N images: one uint8 array (N, H, W[, C]), or a sequence of uint8 arrays (H, W[, C]) and of file paths."""
    if isinstance(images, np.ndarray) and images.dtype.kind not in "OU":
        if images.ndim not in (3, 4):
            raise DataError(f"{where}: images have shape {images.shape}. Give (N, H, W) or (N, H, W, channels).")
        _check_image(f"{where}: images have", images.dtype, images.shape[1:])
        return list(images)
    items: list[Item] = []
    for i, image in enumerate(images):
        if isinstance(image, str | Path):
            items.append(Path(image).expanduser().absolute())
        else:
            array = np.asarray(image)
            _check_image(f"{where}: image {i} has", array.dtype, array.shape)
            items.append(array)
    return items


def _check_image(what: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    if dtype != np.uint8:
        raise DataError(
            f"{what} dtype {dtype}. Images are uint8, 0..255: convert them, for example floats in 0..1 with "
            "(255 * x).round().astype('uint8')."
        )
    if len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] not in (1, 3, 4)) or 0 in shape:
        raise DataError(
            f"{what} shape {shape}. An image is (H, W), or (H, W, C) with 1, 3 or 4 channels last: "
            "transpose or reshape it."
        )
