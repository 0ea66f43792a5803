"""Cross-validation: training and validation images divided into folds, each of which is validated on once.

The test images stay what they are. Nothing is copied: a fold reads the images where they lie.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from cvtune.data.dataset import Dataset, Images, Part
from cvtune.data.listing import Labels, Pixels, without_images
from cvtune.data.split import fold_of
from cvtune.errors import DataError


@dataclass(frozen=True)
class Picked:
    """Some of the images (or masks) of several parts."""

    parts: tuple[Images, ...]
    rows: Labels  # int64 (N,), places in the parts strung together

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int, /) -> Pixels:
        row = int(self.rows[i])
        for images in self.parts:
            if row < len(images):
                return images[row]
            row -= len(images)
        raise IndexError(f"image {i} of {len(self)}")


class Folds:
    """The images of a study in `count` folds, by class and by group (see `split.fold_of`).

    Raises:
        DataError: a class has fewer images (or groups with it) than there are folds, so that some could not be
            validated on it. Where images show several classes, only the number of all is looked at.
    """

    def __init__(self, data: Dataset, count: int, seed: int) -> None:
        self._data, self.count = data, count
        labels, groups = _joined(data, "labels"), _joined(data, "groups")
        self.owner: Labels = np.zeros(0, np.int64)  # of each training, then each validation image: 0..count-1
        if len(labels) >= 2 * count:
            self.owner = fold_of(labels, groups, count, seed)
        for number in range(count):
            mine = labels[self.owner == number] if len(self.owner) else labels[:0]
            lacking = without_images(data.classes, mine) if data.task == "classify" else []
            if lacking or not len(mine):
                there = int((labels == data.classes.index(lacking[0])).sum()) if lacking else len(labels)
                raise DataError(_too_few(count, lacking, there, groups is not None))

    def __getitem__(self, number: int) -> Dataset:
        """The data set of fold `number`, from 0: its images are `val`, those of the other folds `train`."""
        if not 0 <= number < self.count:
            raise IndexError(f"fold {number} of {self.count}")
        train, val = (np.flatnonzero(mine) for mine in (self.owner != number, self.owner == number))
        return dataclasses.replace(self._data, train=_pick(self._data, train), val=_pick(self._data, val))


def _joined(data: Dataset, what: str) -> Any:
    """A column of training, then validation images; None where not both have it."""
    columns = [getattr(part, what) for part in (data.train, data.val)]
    return None if any(column is None for column in columns) else np.concatenate(columns)


def _pick(data: Dataset, rows: Labels) -> Part:
    def picked(what: str) -> Any:
        columns = [getattr(part, what) for part in (data.train, data.val)]
        if any(column is None for column in columns):
            return None
        if isinstance(columns[0], np.ndarray):
            return np.concatenate(columns)[rows]
        return Picked((columns[0], columns[1]), rows)

    return Part(**{field.name: picked(field.name) for field in dataclasses.fields(Part)})


def _too_few(count: int, lacking: list[str], there: int, grouped: bool) -> str:
    what = f"class {lacking[0]!r} has {there}" if lacking else f"there are {there}"
    whole = " and groups stay whole," if grouped else ""
    return (
        f"data.folds = {count}: {what} training and validation images,{whole} too few for each fold to hold some. Use "
        "fewer folds, add images, or leave the class out with data.classes."
    )
