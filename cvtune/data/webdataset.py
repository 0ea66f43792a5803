"""Tars in WebDataset's layout: files with the same key are one sample, `0017.jpg` and its class in `0017.cls`.

Several classes stand as a list in `0017.json`, a mask in `0017.mask.png`. The key is the name up to the first dot of
its last part, as in https://github.com/webdataset/webdataset.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from cvtune.data.arrays import tags_of
from cvtune.data.compact import PackedItems
from cvtune.data.folder import is_image
from cvtune.data.members import Found, Members, items_of
from cvtune.data.packed import Packed
from cvtune.data.segmentation import MASK_EXTENSIONS
from cvtune.errors import DataError
from cvtune.printable import first_line

CLASS_NAMES = ("classes.txt", "classnames.txt")  # beside the shards: one name per line, for labels that are numbers
_IN_JSON = ("label", "cls", "class", "labels", "classes")  # the first of these keys that a sample's .json has
_MASK = ("mask.", "seg.")  # begin the ending of a mask, 'mask.png'


def by_key(where: str, members: Sequence[Members]) -> Found | None:
    """The images of tars with the labels or masks beside them, in the tars' order; None if no image has any.

    A .cls file holds a number or the name of the class, a .json file has it under `label`, `cls` or `class`, or a list
    of several under `labels`, `classes` or the same keys. Masks count before classes.

    Raises:
        DataError: an image has no label (or no mask), a sample has two images, or some labels are numbers and others
            names, or some are lists and others not.
    """
    masks = _beside(members, masks_of)
    if masks is not None:
        images, others, lacking = masks
        if lacking:
            raise DataError(
                f"{lacking}: has no mask, and other images have. Add the .mask.png of its key, or remove it."
            )
        return Found(images, np.zeros(len(images), np.int64), None, masks=others)
    labelled = _beside(members, _sidecars)
    if labelled is None:
        return None
    items, files, unlabelled = labelled
    labels = [_label(files.at(row)) for row in range(len(files))]
    if all(label is None for label in labels):
        return None  # a .json about each image that says nothing of its class
    unlabelled = unlabelled or next((str(f) for f, label in zip(files, labels, strict=True) if label is None), "")
    if unlabelled:
        raise DataError(
            f"{unlabelled}: has no class. Each image of a WebDataset needs a .cls file, or a .json file with "
            f"{', '.join(map(repr, _IN_JSON))}, under the same key."
        )
    several = [label for label in labels if isinstance(label, list)]
    if several and len(several) < len(labels):
        raise DataError(f"{where}: some images have a list of classes and others one class. Give all of them lists.")
    if several:
        return _several(where, items, several)
    numbers = _are_numbers(where, labels)
    if numbers:
        return Found(items, np.array(labels, np.int64), None)
    classes, positions = np.unique(np.array(labels), return_inverse=True)
    return Found(items, positions.astype(np.int64), tuple(classes.tolist()))


def _several(where: str, items: PackedItems, labels: Sequence[list[Any]]) -> Found:
    every = [label for of_one in labels for label in of_one]
    numbers = _are_numbers(where, every)
    classes: list[Any] = list(range(max(every) + 1)) if numbers else sorted(set(every))
    return Found(
        items,
        np.zeros(len(items), np.int64),
        None if numbers else tuple(classes),
        tags=tags_of(labels, classes),
    )


def _are_numbers(where: str, labels: Sequence[Any]) -> bool:
    numbers = [label for label in labels if isinstance(label, int)]
    if numbers and len(numbers) < len(labels):
        named = next(label for label in labels if isinstance(label, str))
        raise DataError(
            f"{where}: the class is {numbers[0]} of one image and {named!r} of another. Use numbers or names."
        )
    return bool(numbers)


def _beside(
    members: Sequence[Members], find: Callable[[Members], Mapping[str, int]]
) -> tuple[PackedItems, PackedItems, str] | None:
    """Images, the files that `find` gives for their keys, and an image without one; None if no image has any."""
    pairs = array("q")  # archive and image, archive and file
    lacking = ""
    for number, each in enumerate(members):
        for i, beside in _samples(each, find(each)):
            if beside is None:
                lacking = lacking or f"{each.archive}/{each.names[i]}"
            else:
                pairs.extend((number, i, number, beside))
    if not pairs:
        return None
    both = np.frombuffer(pairs, np.int64).reshape(-1, 4)
    return items_of(members, both[:, :2]), items_of(members, both[:, 2:]), lacking


def _sidecars(tar: Members) -> dict[str, int]:
    """The file that tells the class of each key."""
    found: dict[str, int] = {}
    for i, name in enumerate(tar.names):
        if name.lower().endswith((".cls", ".json")):
            key = _key(name)
            if key not in found or name.lower().endswith(".cls"):
                found[key] = i
    return found


def masks_of(tar: Members) -> dict[str, int]:
    """The mask of each key that has one."""
    return {_key(name): i for i, name in enumerate(tar.names) if _is_mask(name)}


def _is_mask(name: str) -> bool:
    """Whether it is '0017.mask.png' or of a like name."""
    ending = name.rpartition("/")[2].partition(".")[2].lower()
    return ending.startswith(_MASK) and ending.endswith(MASK_EXTENSIONS)


def _samples(tar: Members, beside: Mapping[str, int]) -> Iterator[tuple[int, int | None]]:
    """The member that is the image of each sample, and the one beside it, if any."""
    before: dict[str, str] = {}
    for i, name in enumerate(tar.names):
        if not is_image(name.rpartition("/")[2]) or _is_mask(name):
            continue
        key = _key(name)
        if key in beside and before.setdefault(key, name) != name:
            raise DataError(
                f"{tar.archive}: sample {key!r} has two images, {before[key]!r} and {name!r}. Keep one per sample."
            )
        yield i, beside.get(key)


def _key(name: str) -> str:
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.partition(".")[0]


def _label(item: Packed) -> int | str | list[int | str] | None:
    """The class in a .cls or .json file, or a list of several; None if it says nothing of them."""
    try:
        text = item.read().decode().strip()
        value = json.loads(text) if item.name.lower().endswith(".json") else text
    except (OSError, ValueError) as error:
        raise DataError(f"{item}: not readable as a label ({first_line(error)}). Write it anew.") from error
    if isinstance(value, dict):
        value = next((value[key] for key in _IN_JSON if key in value), None)
    if isinstance(value, list):
        several = [_one(item, each) for each in value]
        return [label for label in several if label is not None]
    return _one(item, value)


def _one(item: Packed, value: Any) -> int | str | None:
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10:
        return int(value)
    if isinstance(value, str):
        return value or None
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**9):
        return value
    raise DataError(f"{item}: the class is {value!r}. Classes are whole numbers 0..K-1, or names.")
