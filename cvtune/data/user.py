"""Images from a user's function: 'python:module:function'."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cvtune.data.arrays import listing_of
from cvtune.data.listing import PARTS, Listing
from cvtune.errors import DataError, did_you_mean
from cvtune.sections import Source
from cvtune.usercode import load_function


def read(source: Source, workers: int = 1) -> Listing:
    """Calls the function. It returns {"train": (images, labels)}, optionally with "val", "test" and "classes".

    Images: arrays (H, W) or (H, W, C), or paths of image files. Labels: whole numbers 0..K-1; of several labels
    per image float, bool or uint8 (N, K); masks, as arrays (H, W) or paths. See `arrays.listing_of`.

    Raises:
        ConfigError: the function cannot be imported.
        DataError: the function fails, or what it returns cannot be used.
    """
    function = load_function(source.source, "data.source")
    try:
        result = function()
    except Exception as error:  # whatever a user's function may raise
        reason = f"{type(error).__name__}: {error}"
        raise DataError(f"{source.source} failed ({reason}). Call it by itself to see where.") from error
    result = _checked(source.source, result)
    return listing_of(source, {p: result[p] for p in PARTS if p in result}, result.get("classes"), workers=workers)


def _checked(where: str, result: Any) -> Mapping[str, Any]:
    shape = 'Return {"train": (images, labels)}, optionally with "val", "test" and "classes".'
    if not isinstance(result, Mapping) or "train" not in result:
        raise DataError(f"{where} returned {type(result).__name__} without the key 'train'. {shape}")
    for key, value in result.items():
        if key not in (*PARTS, "classes"):
            raise DataError(f"{where} returned the unknown key {key!r}. {did_you_mean(str(key), [*PARTS, 'classes'])}")
        if key != "classes" and not (isinstance(value, tuple | list) and len(value) == 2):
            raise DataError(f"{where} returned no pair (images, labels) under {key!r}. {shape}")
    return result
