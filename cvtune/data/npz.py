"""NumPy archives: x_train, y_train and optionally x_val, y_val, x_test, y_test, class_names; or only x and y.

Masks are called m_train or stand in y_train.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from cvtune.data.arrays import listing_of
from cvtune.data.listing import PARTS, Listing
from cvtune.errors import DataError
from cvtune.printable import first_line
from cvtune.sections import Source


def read(path: Path, source: Source, workers: int = 1) -> Listing:
    """Reads an .npz with images (N, H, W) or (N, H, W, C) and labels or masks as `listing_of` knows them.

    Masks may also be called m_train, m_val, m_test, or m.

    Raises:
        DataError: the file is missing, is no archive, needs pickle, lacks an array, or its arrays do not fit.
    """
    arrays = _arrays(path)
    alone = "x" in arrays and "x_train" not in arrays
    named = {part: "" if alone and part == "train" else f"_{part}" for part in PARTS}
    labels = "m" if "m" + named["train"] in arrays else "y"
    raw = {}
    for part, suffix in named.items():
        x, y = f"x{suffix}", f"{labels}{suffix}"
        if part != "train" and x not in arrays and y not in arrays:
            continue
        lacking = next((key for key in (x, y) if key not in arrays), None)
        if lacking:
            raise DataError(
                f"{path}: has no array {lacking!r}, only {', '.join(sorted(arrays)) or 'none'}. Save "
                "x_train and y_train (and x_val, y_val, x_test, y_test if you have them), or x and y."
            )
        raw[part] = (arrays[x], arrays[y])
    unused = sorted(set(arrays) & {f"y{suffix}" for suffix in named.values()}) if labels == "m" else []
    notices = [f"{', '.join(unused)} beside masks ignored."] if unused else []
    names = arrays.get("class_names")
    classes = None if names is None else [str(name) for name in names]
    return listing_of(source, raw, classes, workers=workers, notices=notices)


def has_masks(path: Path) -> bool:
    """Whether an .npz has arrays of masks, by their names."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return not {"m", "m_train"}.isdisjoint(archive.files)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return False


def _arrays(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise DataError(f"{path}: no such file. Check the path.")
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path}: not readable as an .npz archive ({first_line(error)}). Write it with numpy.savez_compressed, "
            "from arrays of numbers and not of Python objects."
        ) from error
