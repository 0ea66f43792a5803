"""Tars in WebDataset's layout: files with the same key are one sample, `0017.jpg` and its class in `0017.cls`.

The key is the name up to the first dot of its last part, as in https://github.com/webdataset/webdataset.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Sequence

import numpy as np

from cvtune.data.folder import is_image
from cvtune.data.members import Found, Members, items_of
from cvtune.data.packed import Packed
from cvtune.errors import DataError

CLASS_NAMES = ("classes.txt", "classnames.txt")  # beside the shards: one name per line, for labels that are numbers
_IN_JSON = ("label", "cls", "class")  # the first of these keys that a sample's .json has


def by_key(where: str, members: Sequence[Members]) -> Found | None:
    """The images of tars with the labels beside them, in the tars' order; None if no image has any.

    A .cls file holds a number or the name of the class, a .json file has it under `label`, `cls` or `class`.

    Raises:
        DataError: an image has no label, a sample has two images, or some labels are numbers and others names.
    """
    pairs = array("q")  # archive and image, archive and what tells its class
    unlabelled = ""
    for number, each in enumerate(members):
        for i, sidecar in _samples(each):
            if sidecar is None:
                unlabelled = unlabelled or f"{each.archive}/{each.names[i]}"
            else:
                pairs.extend((number, i, number, sidecar))
    if not pairs:
        return None
    both = np.frombuffer(pairs, np.int64).reshape(-1, 4)
    files = items_of(members, both[:, 2:])
    labels = [_label(files.at(row)) for row in range(len(files))]
    if all(label is None for label in labels):
        return None  # a .json about each image that says nothing of its class
    unlabelled = unlabelled or next((str(f) for f, label in zip(files, labels, strict=True) if label is None), "")
    if unlabelled:
        raise DataError(
            f"{unlabelled}: has no class. Each image of a WebDataset needs a .cls file, or a .json file with "
            f"{', '.join(map(repr, _IN_JSON))}, under the same key."
        )
    numbers = [label for label in labels if isinstance(label, int)]
    if numbers and len(numbers) < len(labels):
        named = next(label for label in labels if isinstance(label, str))
        raise DataError(
            f"{where}: the class is {numbers[0]} of one image and {named!r} of another. Use numbers or names."
        )
    items = items_of(members, both[:, :2])
    if numbers:
        return Found(items, np.array(numbers, np.int64), None)
    classes, positions = np.unique(np.array(labels), return_inverse=True)
    return Found(items, positions.astype(np.int64), tuple(classes.tolist()))


def _samples(tar: Members) -> Iterator[tuple[int, int | None]]:
    """The member that is the image of each sample, and the one that tells its class, if any."""
    sidecars: dict[str, int] = {}
    for i, name in enumerate(tar.names):
        if name.lower().endswith((".cls", ".json")):
            key = _key(name)
            if key not in sidecars or name.lower().endswith(".cls"):
                sidecars[key] = i
    before: dict[str, str] = {}
    for i, name in enumerate(tar.names):
        if not is_image(name.rpartition("/")[2]):
            continue
        key = _key(name)
        if key in sidecars and before.setdefault(key, name) != name:
            raise DataError(
                f"{tar.archive}: sample {key!r} has two images, {before[key]!r} and {name!r}. Keep one per sample."
            )
        yield i, sidecars.get(key)


def _key(name: str) -> str:
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.partition(".")[0]


def _label(item: Packed) -> int | str | None:
    """The class in a .cls or .json file, None if it has none."""
    try:
        text = item.read().decode().strip()
        value = json.loads(text) if item.name.lower().endswith(".json") else text
    except (OSError, ValueError) as error:
        raise DataError(f"{item}: not readable as a label ({error}). Write it anew.") from error
    if isinstance(value, dict):
        value = next((value[key] for key in _IN_JSON if key in value), None)
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10:
        return int(value)
    if isinstance(value, str):
        return value or None
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**9):
        return value
    raise DataError(f"{item}: the class is {value!r}. Classes are whole numbers 0..K-1, or names.")
