"""How large an image may be: asked of its header, before anything is decoded."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

MAX_PIXELS = 160_000_000  # of a photo, 3 bytes each; decoding takes 7 for each
_LARGE = 20_000_000  # pixels above which images are decoded one at a time, however many threads there are
_PHOTO = 3  # bytes of a pixel
_alone = threading.Lock()


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
