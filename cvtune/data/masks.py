"""What masks show before anything is decoded for training: their classes, and how many pixels each image has of them.

Splits, oversampling and the number of classes need this, so every mask is decoded once here and once more when the
store is built. Index masks are quick beside their images (664 nuclei of 256 px: 0.4 s), and the result is remembered in
the cache, so that later runs open none.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cvtune.data.assemble import make_listing
from cvtune.data.cache import remember
from cvtune.data.decode import mask_values
from cvtune.data.fingerprint import stamps
from cvtune.data.listing import IGNORE, Item, Labelled, Listing
from cvtune.errors import DataError
from cvtune.sections import Source


def segmented(
    source: Source,
    names: Sequence[str] | None,
    parts: Mapping[str, Labelled],
    *,
    root: Path | None,
    notices: Sequence[str],
    cache: Path | None,
    workers: int,
) -> Listing:
    """A Listing of images with masks. Without `names` the classes are '0' .. the largest value in the masks of train.

    `cache` keeps what the masks show; None: they are looked at each time. A mask that cannot be decoded counts as one
    that shows nothing: building the store will tell.

    Raises:
        DataError: the masks give no classes, or see `make_listing`.
        ConfigError: see `make_listing`.
    """
    shown = {name: pixels_of(part.masks or (), cache, workers) for name, part in parts.items()}
    if names is None:
        names = _class_names(source.source, shown["train"], parts["train"].masks or ())
    if len(names) > IGNORE:
        raise DataError(f"{source.source}: {len(names)} classes. A mask can name {IGNORE} at most (0..{IGNORE - 1}).")
    tagged = {name: part._replace(tags=shown[name][:, : len(names)].astype(np.float32)) for name, part in parts.items()}
    whole = set(parts) == {"train"}
    return make_listing(source, names, tagged, whole=whole, root=root, notices=notices, task="segment")


def pixels_of(masks: Sequence[Item], cache: Path | None, workers: int) -> npt.NDArray[np.uint32]:
    """How many pixels of each mask have each value, uint32 (N, 256); a row of zeros where it cannot be decoded."""
    stamped = stamps(masks) if cache else None
    known: Path | None = None
    if cache and stamped:
        known = cache / f"{hashlib.blake2b(b'|'.join(stamped.facts), digest_size=16).hexdigest()}.masks"
        found = _recall(known, len(masks))
        if found is not None:
            return found

    with ThreadPoolExecutor(max(1, workers)) as pool:
        rows = list(pool.map(_pixels, masks))
    result = np.stack(rows) if rows else np.zeros((0, 256), np.uint32)
    if known and stamped and stamped.settled:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, pixels=result)
        remember(known, buffer.getvalue())
    return result


def _pixels(mask: Item) -> npt.NDArray[np.uint32]:
    try:
        return np.bincount(mask_values(mask).reshape(-1), minlength=256).astype(np.uint32)
    except DataError:
        return np.zeros(256, np.uint32)


def _recall(known: Path, count: int) -> npt.NDArray[np.uint32] | None:
    try:
        with np.load(known, allow_pickle=False) as arrays:
            found: npt.NDArray[np.uint32] = arrays["pixels"]
    except (OSError, ValueError, LookupError, EOFError, zipfile.BadZipFile):  # missing or torn: look again
        return None
    return found if found.shape == (count, 256) else None


def _class_names(where: str, pixels: npt.NDArray[np.uint32], masks: Sequence[Item]) -> list[str]:
    used = np.flatnonzero(pixels[:, :IGNORE].any(axis=0)).tolist()
    if not used:
        for mask in masks:
            mask_values(mask)  # says why nothing could be decoded
        raise DataError(f"{where}: no mask of train has a labelled pixel (a value other than {IGNORE}).")
    count = used[-1] + 1
    if len(used) < count:
        listed = ", ".join(map(str, used[:8])) + (f" and {len(used) - 8} more" if len(used) > 8 else "")
        raise DataError(
            f"{where}: the masks of train hold the values {listed}. A pixel's value is its class, counted from 0 "
            "without gaps: renumber them, or name every value in classes.txt (one name per line, the first for 0)."
        )
    return ["background", "foreground"] if count == 2 else [str(value) for value in range(count)]


def listed_names(path: Path) -> list[str] | None:
    """The class names in a file with one per line; None where there is no such file.

    Raises:
        DataError: it cannot be read, or names a class twice.
    """
    if not path.is_file():
        return None
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}). Write one class name per line, as UTF-8.") from error
    twice: Any = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{path}: names the class {twice!r} twice. Line n names the pixels of value n - 1: correct it.")
    return names
