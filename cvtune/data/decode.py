"""Image files and arrays become uint8 (H, W, 3) RGB, and masks uint8 (H, W), upright and no larger than needed."""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from cvtune.data.listing import IGNORE, UNKNOWN, Item, Pixels
from cvtune.data.packed import Packed
from cvtune.errors import DataError

Fit = Literal["crop", "squash"]
IN_MEMORY = "array"  # begins what is said of an image that is no file
REMEDY = " Replace or remove the file."
LONGEST = 4  # times the shorter side; what is beyond is cut off before an image is resized
MAX_PIXELS = 160_000_000  # of a file, read from its header; decoding takes 7 bytes for each
_LARGE = 20_000_000  # pixels above which images are decoded one at a time, however many threads there are
_alone = threading.Lock()
_PACKED = {"L;2": 85, "L;4": 17}  # Pillow spreads gray values of 2 and 4 bits over 0..255: the factor


def load(item: Item) -> Pixels:
    """The image, uint8 (H, W, 3): a file is decoded, an array brought to three channels (see `decode`)."""
    return _rgb_from_array(item) if isinstance(item, np.ndarray) else decode(item)


def load_pair(
    item: Item, mask: Item | None, lookup: tuple[int, ...], side: int, fit: Fit
) -> tuple[Pixels, Pixels | None]:
    """An image as it is kept, uint8 (h, w, 3), and its mask, uint8 (h, w); see `resize_keep` and `load_mask`.

    Raises:
        DataError: one of them cannot be decoded, or their sizes differ.
    """
    image = load(item)
    if mask is None:
        return resize_keep(image, side, fit), None
    classes = load_mask(mask, lookup)
    if classes.shape != image.shape[:2]:
        (height, width), (rows, columns) = image.shape[:2], classes.shape
        raise DataError(
            f"{_named(item)}: its mask {_short(mask)} has {columns} x {rows} pixels, the upright image "
            f"{width} x {height}.{REMEDY}"
        )
    return resize_keep(image, side, fit), resize_mask(classes, side, fit)


def load_mask(item: Item, lookup: tuple[int, ...]) -> Pixels:
    """A mask as classes, uint8 (H, W): value v of the file is `lookup[v]`, and IGNORE stays if it has no place there.

    Raises:
        DataError: it cannot be decoded, or has values that stand for nothing.
    """
    values = mask_values(item)
    meant = np.full(256, UNKNOWN, np.int16)
    meant[IGNORE] = IGNORE
    meant[: len(lookup)] = lookup
    known = meant >= 0
    if not known.all() and not known[values].all():
        wrong = np.unique(values[~known[values]])
        more = f" and {len(wrong) - 3} more values" if len(wrong) > 3 else ""
        raise DataError(
            f"{_named(item)}: cannot be used as a mask (value {', '.join(map(str, wrong[:3]))}{more}; "
            f"{_valid(lookup)}).{REMEDY}"
        )
    return values if lookup == tuple(range(len(lookup))) else meant.astype(np.uint8)[values]


def _valid(lookup: tuple[int, ...]) -> str:
    if UNKNOWN not in lookup:
        return f"the classes are 0..{len(lookup) - 1}, and {IGNORE} is none"
    values = [str(value) for value, meant in enumerate(lookup) if meant != UNKNOWN]
    return f"the classes are {', '.join(values)}" + (f", and {IGNORE} is none" if len(lookup) <= IGNORE else "")


def mask_values(item: Item) -> Pixels:
    """The values of a mask as they stand in it, uint8 (H, W): of a palette its indices, of gray its levels.

    Raises:
        DataError: the file is missing or broken, has several channels, or values that are not whole, 0..255.
    """
    if isinstance(item, np.ndarray):
        return item.reshape(item.shape[:2])
    try:
        values = _npy(item) if item.suffix.lower() == ".npy" else _indices(item)
        if values.ndim == 3 and values.shape[2] == 1:
            values = values[..., 0]
        if values.ndim != 2:
            raise ValueError(f"shape {values.shape}: a mask has one channel, a palette or gray levels, no colors")
        if values.dtype.kind not in "bui" or values.min(initial=0) < 0 or values.max(initial=0) > 255:
            raise ValueError(f"{values.dtype}: the values must be whole numbers 0..255")
        return np.ascontiguousarray(values, np.uint8)
    except Exception as error:  # Pillow's plugins raise whatever a broken file makes them
        raise DataError(f"{item}: cannot be decoded as a mask ({_reason(error)}).{REMEDY}") from error


def decode(file: Path | Packed) -> Pixels:
    """Decodes an image file, or one in an archive, to uint8 (H, W, 3) RGB.

    Rotated by its EXIF orientation. Transparency shows white. Of an animation the first frame. 16-bit values keep
    their high byte. Floats are multiplied by 255 if all lie in 0..1, else the smallest becomes 0 and the largest 255.

    Raises:
        DataError: the file is missing, truncated, no image, or has more than MAX_PIXELS.
    """
    return _decoded(lambda: _stream(file), str(file))


def decode_bytes(content: bytes, name: str) -> Pixels:
    """The same for the content of an image file; `name` is for messages."""
    return _decoded(lambda: io.BytesIO(content), name)


def _decoded(stream: Callable[[], Path | io.BytesIO], name: str) -> Pixels:
    try:
        with Image.open(stream()) as image, _in_turn(image.width * image.height):
            ImageOps.exif_transpose(image, in_place=True)
            return _rgb(image)
    except Exception as error:  # Pillow's plugins raise whatever a broken file makes them
        raise DataError(f"{name}: cannot be decoded ({_reason(error)}).{REMEDY}") from error


def resize_keep(image: Pixels, side: int, fit: Fit) -> Pixels:
    """Shrinks uint8 (H, W, 3) to what is worth keeping; never enlarges.

    crop: the shorter side becomes at most `side` and the aspect stays, after the longer side was cut around the
    center to 4 x the shorter. squash: both sides become at most `side`.
    """
    return _resize(image, side, fit, cv2.INTER_AREA)


def resize_mask(mask: Pixels, side: int, fit: Fit) -> Pixels:
    """Shrinks a mask, uint8 (H, W), as `resize_keep` does its image; each value is that of the nearest pixel."""
    return _resize(mask, side, fit, cv2.INTER_NEAREST_EXACT)  # plain INTER_NEAREST would shift it by half a pixel


def _resize(image: Pixels, side: int, fit: Fit, interpolation: int) -> Pixels:
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
    return np.asarray(cv2.resize(image, size, interpolation=interpolation), np.uint8)


@contextlib.contextmanager
def _in_turn(pixels: int) -> Iterator[None]:
    """Refuses what is too large and lets what is large wait, so that threads together do not exhaust the memory."""
    if pixels > MAX_PIXELS:
        raise ValueError(f"{pixels / 1e6:.0f} megapixels, at most {MAX_PIXELS // 10**6} are read")
    with _alone if pixels > _LARGE else contextlib.nullcontext():
        yield


def _reason(error: Exception) -> str:
    if isinstance(error, Image.DecompressionBombError):  # far above MAX_PIXELS: Pillow does not even open it
        return f"{str(error).split(',')[0]}; at most {MAX_PIXELS // 10**6} megapixels are read"
    return "no image" if isinstance(error, UnidentifiedImageError) else str(error)


def _npy(file: Path | Packed) -> npt.NDArray[np.generic]:
    mapped = np.load(
        _stream(file), mmap_mode="r", allow_pickle=False
    )  # so that the header is seen before the rest is read
    with _in_turn(mapped.size):
        return np.array(mapped)


def _indices(file: Path | Packed) -> npt.NDArray[np.generic]:
    with Image.open(_stream(file)) as image, _in_turn(image.width * image.height):
        raw = image.tile[0].args if image.tile else ""  # PNG names the mode, TIFF a tuple that begins with it
        packed = _PACKED.get(str(raw[0] if isinstance(raw, tuple) else raw), 1)
        ImageOps.exif_transpose(image, in_place=True)
        return np.asarray(image) // packed


def _stream(file: Path | Packed) -> Path | io.BytesIO:
    return file if isinstance(file, Path) else io.BytesIO(file.read())


def _named(item: Item) -> str:
    return IN_MEMORY if isinstance(item, np.ndarray) else str(item)


def _short(mask: Item) -> str:
    return "array" if isinstance(mask, np.ndarray) else mask.name


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
