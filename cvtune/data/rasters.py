"""Image files that are no photos: NumPy, TIFF and DICOM, as arrays with the numbers that stand in them.

Each reader looks at the header first and refuses what is too large (see `guard`) before it reads the rest.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cvtune.data.guard import in_turn
from cvtune.kinds import DTYPES, MOST_CHANNELS

Array = npt.NDArray[Any]
Stream = Path | io.BytesIO
HEAD = 132  # bytes that tell the format
_WHOLE = 2**24  # up to here float32 tells whole numbers apart


def reader_of(head: bytes) -> Callable[[Stream], Array | None] | None:
    """What reads a file that begins with `head`; None: Pillow may know."""
    if head[:6] == b"\x93NUMPY":
        return read_npy
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return read_tiff
    return read_dicom if head[128:132] == b"DICM" else None


def kept(array: Array) -> Array:
    """An image (H, W) or (H, W, C) as (H, W, C) of uint8, uint16 or float32. Other numbers become float32.

    Raises:
        ValueError: it has another shape or no numbers, values that are not finite, or whole ones that float32 cannot
            hold.
    """
    array = array[..., None] if array.ndim == 2 else array
    if array.ndim != 3 or 0 in array.shape or array.shape[2] > MOST_CHANNELS:
        raise ValueError(f"shape {array.shape}: an image is (H, W) or (H, W, C) with 1 to {MOST_CHANNELS} channels")
    if array.dtype.name not in DTYPES:
        if array.dtype.kind not in "buif":
            raise ValueError(f"{array.dtype}: an image is of numbers")
        if array.dtype.kind in "ui" and max(abs(int(array.min())), abs(int(array.max()))) > _WHOLE:
            raise ValueError(
                f"{array.dtype} with values beyond 2^24, which float32 cannot tell apart: scale them, or save uint16"
            )
        with np.errstate(over="ignore"):
            array = array.astype(np.float32)
    if array.dtype.kind == "f" and (lost := array.size - int(np.count_nonzero(np.isfinite(array)))):
        raise ValueError(
            f"{lost} of {array.size} values are NaN or infinite: fill them, for example with numpy.nan_to_num"
        )
    return array.astype(array.dtype.newbyteorder("="), order="C", copy=False)


def channels_last(array: Array) -> Array:
    """An array (H, W), (H, W, C) or (C, H, W) as (H, W) or (H, W, C), told by its shape alone.

    The last axis holds the channels if it has at most 4, or is shorter than both others; else the first, if that is
    shorter than both others.

    Raises:
        ValueError: neither is so, or there are other than 2 or 3 axes.
    """
    shape = array.shape
    if len(shape) == 2:
        return array
    if len(shape) == 3 and (shape[2] <= 4 or shape[2] < min(shape[:2])):
        return array
    if len(shape) == 3 and shape[0] < min(shape[1:]):
        return np.moveaxis(array, 0, 2)
    raise ValueError(
        f"shape {shape} does not tell which axis holds the channels: save (H, W), or (H, W, C) with fewer channels "
        "than rows and columns"
    )


def read_npy(stream: Stream) -> Array:
    """The array of an .npy file, (H, W) or (H, W, C); see `channels_last`."""
    return kept(channels_last(npy_array(stream)))


def npy_array(stream: Stream) -> Array:
    """The array of an .npy file as it stands there. Pickled objects are never loaded.

    Raises:
        ValueError: it is none, is too large, or holds Python objects.
    """
    shape, dtype = _npy_header(stream)
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are never loaded: save an array of numbers")
    sides = sorted(shape)[-2:]
    pixels = int(np.prod(sides, dtype=object)) if len(shape) >= 2 else 0
    values = int(np.prod(shape, dtype=object)) if shape else 0
    with in_turn(pixels, -(-values * dtype.itemsize // max(1, pixels))):
        array: Array = np.load(stream, allow_pickle=False)
    return array


def _npy_header(stream: Stream) -> tuple[tuple[int, ...], np.dtype[Any]]:
    with stream.open("rb") if isinstance(stream, Path) else contextlib.nullcontext(stream) as file:
        version = np.lib.format.read_magic(file)
        read: Any = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
    _rewind(stream)
    return shape, dtype


def read_tiff(stream: Stream) -> Array | None:
    """The first image of a TIFF file; None: it is a photo of 8 bits, which Pillow reads.

    Planes and samples are channels, and so are pages of one size that are no photos.
    """
    import tifffile

    tifffile.logger().setLevel(logging.CRITICAL)  # a broken file is counted and told by us, once
    with tifffile.TiffFile(stream) as file:
        if not file.series:
            raise ValueError("no image found in it: the file is cut off or broken")
        series, page = file.series[0], file.pages.first
        if _is_photo(series, page):
            return None
        height, width = page.imagelength, page.imagewidth
        with in_turn(height * width, -(-series.nbytes // max(1, height * width))):
            try:
                array = series.asarray(maxworkers=1)
            except ValueError as error:
                raise ValueError(f"{error}{_install(str(error), 'imagecodecs', 'tiff')}") from error
        sizes = {axis: n for axis, n in zip(series.axes, series.shape, strict=True) if n > 1 or axis in "YX"}
        turned = page.tags.get(274)
        image = _by_axes(array.reshape(tuple(sizes.values())), "".join(sizes))
        return kept(upright(image, turned.value if turned else 1))


def _is_photo(series: Any, page: Any) -> bool:
    """Whether 8 bits of gray, palette, RGB, CMYK or YCbCr are all there is, and alpha where it is called so."""
    if page.dtype is None or page.dtype.name not in ("uint8", "bool") or page.photometric not in (0, 1, 2, 3, 5, 6):
        return False
    if "C" in series.axes or "Q" in series.axes:
        return False
    extra = list(page.extrasamples)
    colors = page.samplesperpixel - len(extra)
    return colors in (1, 3, 4) and (not extra or [int(kind) for kind in extra] in ([1], [2]))


def _by_axes(array: Array, axes: str) -> Array:
    """Of tifffile's axes Y and X, beside them S (samples), C (channels), or I or Q (pages, which the shape tells)."""
    others = axes.replace("Y", "").replace("X", "")
    if others and others not in "SCIQ":
        raise ValueError(f"axes {axes} of shape {array.shape}: save one image (rows, columns, channels) per file")
    if others in ("", "I", "Q"):
        return channels_last(array)
    return np.moveaxis(array, axes.index(others), -1)


_TURNS: dict[int, Callable[[Array], Array]] = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


def upright(array: Array, orientation: int) -> Array:
    """An image (H, W) or (H, W, C) turned as its EXIF or TIFF orientation, 1 to 8, says."""
    return _TURNS[orientation](array) if orientation in _TURNS else array


def read_dicom(stream: Stream) -> Array:
    """The image of a DICOM file, after its rescale slope and intercept (so CT in Hounsfield units).

    MONOCHROME1, where large values are dark, is turned around: a stored value v becomes smallest + largest - v of
    those that BitsStored can hold. Palettes become their colors, YBR becomes RGB.
    """
    try:
        import pydicom
        from pydicom.pixels.processing import apply_color_lut, apply_modality_lut
    except ImportError as error:
        raise ValueError(f"is DICOM{_install('requires', 'pydicom', 'dicom')}") from error
    head = pydicom.dcmread(stream, stop_before_pixels=True)
    _rewind(stream)
    if "Rows" not in head or "Columns" not in head:
        raise ValueError("a DICOM file without an image")
    frames = int(head.get("NumberOfFrames") or 1)
    if frames > 1:
        raise ValueError(f"{frames} frames: save one image per file")
    each = int(head.SamplesPerPixel) * int(head.BitsAllocated) // 8
    with in_turn(int(head.Rows) * int(head.Columns), each):
        whole = pydicom.dcmread(stream)
        try:
            array = whole.pixel_array
        except (RuntimeError, NotImplementedError) as error:  # no decoder for its compression
            name, why = whole.file_meta.TransferSyntaxUID.name, str(error).partition("\n")[0]
            raise ValueError(f"{name}: {why} Where a decoder is missing: pip install python-gdcm") from error
    if head.PhotometricInterpretation == "PALETTE COLOR":
        return kept(apply_color_lut(array, whole))
    if head.PhotometricInterpretation == "MONOCHROME1":
        bits, signed = int(head.BitsStored), bool(head.PixelRepresentation)
        array = ((-1 if signed else (1 << bits) - 1) - array.astype(np.int64)).astype(array.dtype)
    changes = (float(head.get("RescaleSlope") or 1), float(head.get("RescaleIntercept") or 0)) != (1.0, 0.0)
    return kept(apply_modality_lut(array, whole) if changes or "ModalityLUTSequence" in head else array)


def _install(said: str, library: str, extra: str) -> str:
    if "require" not in said:
        return ""
    return f": install {library} on every node (pip install 'cvtune[{extra}]')"


def _rewind(stream: Stream) -> None:
    if isinstance(stream, io.BytesIO):
        stream.seek(0)
