"""What masks show before anything is decoded for training: their classes, and how many pixels each image has of them.

Splits, oversampling and the number of classes need this, so every mask is decoded once here and once more when the
store is built. Index masks are quick beside their images (664 nuclei of 256 px: 0.4 s), and the result is remembered in
the cache, so that later runs open none.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cvtune.data.assemble import make_listing
from cvtune.data.cache import remember
from cvtune.data.decode import mask_values
from cvtune.data.fingerprint import stamps
from cvtune.data.listing import IGNORE, UNKNOWN, Item, Labelled, Listing
from cvtune.errors import DataError
from cvtune.sections import Source

BLACK_AND_WHITE = (0, 255)  # what a mask of two classes holds that was drawn to be looked at


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

    A pixel's value is its class and 255 is none, unless `data.mask_values` says otherwise, or the masks of all parts
    together hold 0 and 255 and nothing else: then 255 is the second of two classes.

    `cache` keeps what the masks show; None: they are looked at each time. A mask that cannot be decoded counts as one
    that shows nothing: building the store will tell.

    Raises:
        DataError: the masks give no classes, or see `make_listing`.
        ConfigError: see `make_listing`.
    """
    shown = {name: pixels_of(part.masks or (), cache, workers) for name, part in parts.items()}
    values = source.mask_values
    if values is None and (names is None or len(names) == len(BLACK_AND_WHITE)) and _black_and_white(shown.values()):
        values = BLACK_AND_WHITE
        notices = [*notices, f"All masks hold 0 and {IGNORE} only, so {IGNORE} is the second class, not a missing one."]
    if values is not None:
        names = _named(source.source, values, names)
    elif names is None:
        names = _class_names(source.source, shown["train"], parts["train"].masks or ())
    if len(names) > IGNORE:
        raise DataError(f"{source.source}: {len(names)} classes. A mask can name {IGNORE} at most (0..{IGNORE - 1}).")
    values = values or tuple(range(len(names)))
    tagged = {name: part._replace(tags=shown[name][:, values].astype(np.float32)) for name, part in parts.items()}
    whole = set(parts) == {"train"}
    listing = make_listing(source, names, tagged, whole=whole, root=root, notices=notices, task="segment")
    return dataclasses.replace(listing, lookup=_by_value(values, listing.lookup))


def _black_and_white(shown: Iterable[npt.NDArray[np.uint32]]) -> bool:
    """Whether masks, taken together, hold both values of a picture in black and white, and no other."""
    used = np.any([pixels.any(axis=0) for pixels in shown], axis=0)
    return np.flatnonzero(used).tolist() == list(BLACK_AND_WHITE)


def _named(where: str, values: Sequence[int], names: Sequence[str] | None) -> Sequence[str]:
    """The names of the classes that `values` stand for."""
    if names is not None and len(names) != len(values):
        raise DataError(
            f"{where}: {len(names)} classes have names, and data.mask_values = {list(values)} names {len(values)} "
            "values. Give a value for each class, in the same order."
        )
    return names or (["background", "foreground"] if len(values) == 2 else [str(value) for value in values])


def _by_value(values: Sequence[int], classes: Sequence[int]) -> tuple[int, ...]:
    """The lookup by the value of a mask, from that by its position in `values`."""
    lookup = [UNKNOWN] * (max(values) + 1)
    for value, of in zip(values, classes, strict=True):
        lookup[value] = of
    return tuple(lookup)


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
        example = masks[int(np.flatnonzero(pixels[:, used[-1]])[0])]
        named = "" if isinstance(example, np.ndarray) else f" ({example} has {used[-1]})"
        raise DataError(
            f"{where}: the masks of train hold the values {listed}{named}. A pixel's value is its class, counted from "
            f"0 without gaps: {_remedy(used)}."
        )
    return ["background", "foreground"] if count == 2 else [str(value) for value in range(count)]


def _remedy(used: list[int]) -> str:
    if len(used) > 16:
        return "so many values may come of smooth edges or of JPEG, which changes them. Write the masks anew without"
    return (
        f"say --set 'data.mask_values={json.dumps(used)}', renumber them, or name every value in classes.txt (one name "
        "per line, the first for 0)"
    )


def listed_names(path: Path) -> list[str] | None:
    """The class names in a file with one per line; None where there is no such file.

    Raises:
        DataError: it cannot be read, or names a class twice.
    """
    if not path.is_file():
        return None
    try:
        return class_names(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}). Write one class name per line, as UTF-8.") from error


def class_names(text: str, where: str) -> list[str]:
    """The class names in a text with one per line.

    Raises:
        DataError: it names a class twice.
    """
    names = [line.strip() for line in text.splitlines() if line.strip()]
    twice: Any = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(
            f"{where}: names the class {twice!r} twice. Line n names the pixels of value n - 1: correct it."
        )
    return names
