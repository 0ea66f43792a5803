"""What may be opened as an image, and how large it may be: asked before anything is decoded."""

from __future__ import annotations

import contextlib
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

MAX_PIXELS = 160_000_000  # of a photo, 3 bytes each; decoding takes 7 for each
_LARGE = 20_000_000  # pixels above which images are decoded one at a time, however many threads there are
_PHOTO = 3  # bytes of a pixel
_alone = threading.Lock()


def regular(file: Path) -> Path:
    """The file itself, if it is one: reading a pipe or a device may never end.

    Raises:
        OSError: it is none, or is missing.
    """
    if not stat.S_ISREG(file.stat().st_mode):
        raise OSError("a folder, a pipe or a device, and no file")
    return file


@contextlib.contextmanager
def in_turn(pixels: int, each: int = _PHOTO) -> Iterator[None]:
    """Refuses what is too large and lets what is large wait, so that threads together do not exhaust the memory.

    Args:
        pixels: of the image.
        each: bytes of a pixel; an image of 7 channels of float32 may have 3/28 of the pixels of a photo.

    Raises:
        ValueError: it has more than MAX_PIXELS, or as many bytes as photos of more than that.
    """
    weight = pixels * max(each, _PHOTO) // _PHOTO
    if weight > MAX_PIXELS:
        size = f"{pixels / 1e6:.0f} megapixels"
        of = f" of {each} bytes are {weight / 1e6:.0f} of a photo" if each > _PHOTO else ""
        raise ValueError(f"{size}{of}, at most {MAX_PIXELS // 10**6} are read")
    with _alone if weight > _LARGE else contextlib.nullcontext():
        yield
