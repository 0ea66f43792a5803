"""Image files and arrays become uint8 (H, W, 3) RGB, upright and no larger than training needs."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from cvtune.data.listing import Item, Pixels
from cvtune.data.packed import Packed
from cvtune.errors import DataError

Fit = Literal["crop", "squash"]
REMEDY = " Replace or remove the file."
LONGEST = 4  # times the shorter side; what is beyond is cut off before an image is resized


def load(item: Item) -> Pixels:
    """The image, uint8 (H, W, 3): a file is decoded, an array brought to three channels (see `decode`)."""
    return _rgb_from_array(item) if isinstance(item, np.ndarray) else decode(item)


def decode(file: Path | Packed) -> Pixels:
    """Decodes an image file, or one in an archive, to uint8 (H, W, 3) RGB.

    Rotated by its EXIF orientation. Transparency shows white. Of an animation the first frame. 16-bit values keep
    their high byte. Floats are multiplied by 255 if all lie in 0..1, else the smallest becomes 0 and the largest 255.

    Raises:
        DataError: the file is missing, truncated, or no image.
    """
    try:
        with Image.open(file if isinstance(file, Path) else io.BytesIO(file.read())) as image:
            ImageOps.exif_transpose(image, in_place=True)
            return _rgb(image)
    except Exception as error:  # Pillow's plugins raise whatever a broken file makes them
        reason = "no image" if isinstance(error, UnidentifiedImageError) else str(error)
        raise DataError(f"{file}: cannot be decoded ({reason}).{REMEDY}") from error


def resize_keep(image: Pixels, side: int, fit: Fit) -> Pixels:
    """Shrinks uint8 (H, W, 3) to what is worth keeping; never enlarges.

    crop: the shorter side becomes at most `side` and the aspect stays, after the longer side was cut around the
    center to 4 x the shorter. squash: both sides become at most `side`.
    """
    height, width = image.shape[:2]
    if fit == "squash":
        size = (min(side, width), min(side, height))
    else:
        shorter = min(height, width)
        image = _center(image, min(height, LONGEST * shorter), min(width, LONGEST * shorter))
        scale = min(1.0, side / shorter)
        size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
    if size == (image.shape[1], image.shape[0]):
        return np.ascontiguousarray(image)
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)


def _center(image: Pixels, height: int, width: int) -> Pixels:
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return image[top : top + height, left : left + width]


def _rgb(image: Image.Image) -> Pixels:
    if image.mode.startswith("I"):  # 16-bit gray; wider integers are cut to that range
        return _gray(np.clip(np.asarray(image), 0, 65535) >> 8)
    if image.mode == "F":
        return _gray(_from_floats(np.asarray(image)))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))  # convert would copy RGB too


def _from_floats(values: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    values = np.nan_to_num(values)
    low, high = values.min(), values.max()
    if low < 0 or high > 1:
        values = (values - low) / max(high - low, np.finfo(np.float32).tiny)
    return np.round(values * 255)


def _gray(values: npt.NDArray[np.number]) -> Pixels:
    return np.repeat(values.astype(np.uint8)[..., None], 3, axis=2)


def _rgb_from_array(array: Pixels) -> Pixels:
    if array.ndim == 2 or array.shape[2] == 1:
        return _gray(array.reshape(array.shape[:2]))
    return _rgb(Image.fromarray(array)) if array.shape[2] == 4 else array
