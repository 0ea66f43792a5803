"""Image files and arrays become arrays (H, W, C), and masks uint8 (H, W), upright and no larger than needed.

Photos of 8 bits become uint8 (H, W, 3) RGB, gray ones too. All other images keep their numbers and their channels:
uint8, uint16 or float32 (see `rasters`).
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from cvtune.data.guard import MAX_PIXELS, in_turn, regular
from cvtune.data.listing import IGNORE, UNKNOWN, Item, Pixels
from cvtune.data.packed import Packed
from cvtune.data.rasters import HEAD, channels_last, kept, npy_array, reader_of, upright
from cvtune.errors import DataError
from cvtune.kinds import Kind, kind_of
from cvtune.pixels import resized
from cvtune.printable import printable

Fit = Literal["crop", "squash"]
IN_MEMORY = "array"  # begins what is said of an image that is no file
REMEDY = " Replace or remove the file."
LONGEST = 4  # times the shorter side; what is beyond is cut off before an image is resized
PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".ppm", ".pgm")  # Pillow's, whatever is inside
# What is read, whatever the file is called. Pillow knows more, and for PostScript it would start another program.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "PPM", "WEBP", "TIFF", "AVIF", "JPEG2000")
_PACKED = {"L;2": 85, "L;4": 17}  # Pillow spreads gray values of 2 and 4 bits over 0..255: the factor
warnings.filterwarnings("ignore", module=r"PIL\b")  # they name no file: what cannot be used we tell ourselves


def load(item: Item) -> Pixels:
    """The image as (H, W, C), of whatever kind it is: a file is decoded, an array checked (see `decode`, `kept`).

    Raises:
        DataError: it cannot be decoded.
    """
    if not isinstance(item, np.ndarray):
        return decode(item)
    try:
        return _with_three(kept(channels_last(item)))
    except ValueError as error:
        raise DataError(f"{IN_MEMORY}: cannot be used ({error}).{REMEDY}") from error


def load_pair(
    item: Item, mask: Item | None, lookup: tuple[int, ...], side: int, fit: Fit
) -> tuple[Pixels, Pixels | None]:
    """An image as it is kept, (h, w, C), and its mask, uint8 (h, w); see `resize_keep` and `load_mask`.

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


def check_kind(image: Pixels, kind: Kind, item: Item) -> Pixels:
    """The image (H, W, C) itself.

    Raises:
        DataError: it is not of the kind that the data set is.
    """
    if (own := kind_of(image)) == kind:
        return image
    raise DataError(f"{_named(item)}: is {own}, the images of this data set are {kind}.{REMEDY}")


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
        DataError: the file is missing or broken, has colors, or values that are not whole, 0..255.
    """
    if isinstance(item, np.ndarray):
        return item.reshape(item.shape[:2])
    try:
        values = npy_array(_stream(item)) if item.suffix.lower() == ".npy" else _indices(item)
        values = _one_channel(values)
        if values.dtype.kind not in "bui" or values.min(initial=0) < 0 or values.max(initial=0) > 255:
            raise ValueError(f"{values.dtype}: the values must be whole numbers 0..255")
        return np.ascontiguousarray(values, np.uint8)
    except Exception as error:  # Pillow's plugins raise whatever a broken file makes them
        raise DataError(f"{_named(item)}: cannot be decoded as a mask ({reason(error)}).{REMEDY}") from error


def decode(file: Path | Packed) -> Pixels:
    """Decodes an image file, or one in an archive, to (H, W, C).

    Photos, which have 8 bits, become uint8 (H, W, 3) RGB: gray is repeated, transparency shows white, of an animation
    the first frame is taken. Everything else keeps its numbers. All are turned by their EXIF orientation.

    Raises:
        DataError: the file is missing, truncated, no image, too large (see `guard`), or holds numbers that cannot be
            kept (see `rasters.kept`).
    """
    try:
        stream = _stream(file)
        if isinstance(stream, io.BytesIO) or file.suffix.lower() not in PHOTO_SUFFIXES:
            read = reader_of(_head(stream))
            image = read(stream) if read else None
            if image is not None:
                return _with_three(image)
        return _by_pillow(stream)
    except Exception as error:  # the libraries raise whatever a broken file makes them
        raise DataError(f"{_named(file)}: cannot be decoded ({reason(error)}).{REMEDY}") from error


def open_image(stream: Path | io.BytesIO) -> ImageFile.ImageFile:
    """A file of one of FORMATS as Pillow opens it: its header is read, nothing is decoded.

    Raises:
        OSError: it is no file, or none of these (`UnidentifiedImageError`).
        Exception: whatever a broken file makes Pillow's plugins raise.
    """
    return Image.open(stream, formats=FORMATS)


def reason(error: Exception) -> str:
    """Why a file cannot be used, in a few words of one line."""
    if isinstance(error, Image.DecompressionBombError):  # far above MAX_PIXELS: Pillow does not even open it
        return f"{str(error).split(',')[0]}; at most {MAX_PIXELS // 10**6} megapixels are read"
    if isinstance(error, UnidentifiedImageError):
        return "no image of a format that is read"
    return printable((isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__)


def decode_bytes(content: bytes, name: str) -> Pixels:
    """The uint8 (H, W, 3) of the content of a photo's file; `name` is for messages."""
    try:
        return _by_pillow(io.BytesIO(content))
    except Exception as error:
        raise DataError(f"{printable(name)}: cannot be decoded ({reason(error)}).{REMEDY}") from error


def resize_keep(image: Pixels, side: int, fit: Fit) -> Pixels:
    """Shrinks (H, W, C) to what is worth keeping; never enlarges.

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
    return resized(image, size, interpolation)


def _one_channel(values: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """(H, W) of gray levels that were written as (H, W, 1), with transparency, or as three equal channels."""
    if values.ndim == 3 and 1 <= values.shape[2] <= 4:
        colors = values[..., : 3 if values.shape[2] >= 3 else 1]
        if (colors == colors[..., :1]).all():
            return colors[..., 0]
    if values.ndim != 2:
        raise ValueError(f"shape {values.shape}: a mask has one channel, a palette or gray levels, no colors")
    return values


def _indices(file: Path | Packed) -> npt.NDArray[np.generic]:
    with open_image(_stream(file)) as image, in_turn(image.width * image.height):
        raw = image.tile[0].args if image.tile else ""  # PNG names the mode, TIFF a tuple that begins with it
        packed = _PACKED.get(str(raw[0] if isinstance(raw, tuple) else raw), 1)
        ImageOps.exif_transpose(image, in_place=True)
        return np.asarray(image) // packed


def _stream(file: Path | Packed) -> Path | io.BytesIO:
    return regular(file) if isinstance(file, Path) else io.BytesIO(file.read())


def _named(item: Item) -> str:
    return IN_MEMORY if isinstance(item, np.ndarray) else printable(str(item))


def _short(mask: Item) -> str:
    return "array" if isinstance(mask, np.ndarray) else printable(mask.name)


def _center(image: Pixels, height: int, width: int) -> Pixels:
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return image[top : top + height, left : left + width]


def _head(stream: Path | io.BytesIO) -> bytes:
    if isinstance(stream, io.BytesIO):
        return bytes(stream.getbuffer()[:HEAD])
    with stream.open("rb") as file:
        return file.read(HEAD)


def _by_pillow(stream: Path | io.BytesIO) -> Pixels:
    with open_image(stream) as image:
        wide = _is_wide(image)
        with in_turn(image.width * image.height, 2 * len(image.getbands()) if wide else 3):
            if not wide:
                ImageOps.exif_transpose(image, in_place=True)
                return _rgb(image)
            orientation = image.getexif().get(0x0112, 1)
            return kept(upright(_wide(stream, image.getbands()), orientation))


def _is_wide(image: Image.Image) -> bool:
    """Whether a PNG, PPM or PGM has 16 bits, of which Pillow itself would read 8 in color, and others in gray."""
    if image.format not in ("PNG", "PPM"):
        return False
    tiles: Any = getattr(image, "tile", None)
    how = tiles[0].args if tiles else ""
    most = how[-1] if isinstance(how, tuple) else 0  # the largest value of a PPM or PGM
    return image.mode.startswith("I") or ";16" in str(how) or (isinstance(most, int) and most > 255)


def _wide(stream: Path | io.BytesIO, bands: tuple[str, ...]) -> Pixels:
    content = stream.read_bytes() if isinstance(stream, Path) else stream.getvalue()
    array = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if array is None:
        raise ValueError("16 bits, truncated or damaged")
    if array.ndim == 3:  # OpenCV's order is blue, green, red, and gray with alpha is given as four channels
        array = array[..., [0, 3]] if bands == ("L", "A") else array[..., [2, 1, 0, 3][: array.shape[2]]]
    return np.asarray(array)


def _rgb(image: Image.Image) -> Pixels:
    if image.mode == "F" or image.mode.startswith("I"):
        return kept(np.asarray(image))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))  # convert would copy RGB too


def _with_three(image: Pixels) -> Pixels:
    """Gray of 8 bits as RGB, as of a photo; other images as they are."""
    return np.repeat(image, 3, axis=2) if kind_of(image) == Kind("uint8", 1) else image
