"""NumPy archives: x_train, y_train and optionally x_val, y_val, x_test, y_test, class_names; or only x and y."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from cvtune.data.arrays import checked_parts
from cvtune.data.listing import PARTS, Listing, make_listing
from cvtune.errors import DataError
from cvtune.sections import Source


def read(path: Path, source: Source) -> Listing:
    """Reads an .npz with images uint8 (N, H, W) or (N, H, W, 1, 3 or 4) and whole-number labels (N,).

    Raises:
        DataError: the file is missing, is no archive, needs pickle, lacks an array, or its arrays do not fit.
    """
    arrays = _arrays(path)
    named = {part: (f"x_{part}", f"y_{part}") for part in PARTS}
    if "x" in arrays and "x_train" not in arrays:
        named["train"] = ("x", "y")
    raw = {}
    for part, (x, y) in named.items():
        if part != "train" and x not in arrays and y not in arrays:
            continue
        lacking = next((key for key in (x, y) if key not in arrays), None)
        if lacking:
            raise DataError(
                f"{path}: has no array {lacking!r}, only {', '.join(sorted(arrays)) or 'none'}. Save "
                "x_train and y_train (and x_val, y_val, x_test, y_test if you have them), or x and y."
            )
        raw[part] = (arrays[x], arrays[y])
    names = arrays.get("class_names")
    classes, parts = checked_parts(source.source, raw, None if names is None else [str(name) for name in names])
    return make_listing(source, classes, parts, whole=set(parts) == {"train"})


def _arrays(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise DataError(f"{path}: no such file. Check the path.")
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path}: not readable as an .npz archive ({error}). Write it with numpy.savez_compressed, "
            "from arrays of numbers and not of Python objects."
        ) from error
