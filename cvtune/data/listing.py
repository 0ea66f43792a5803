"""Listing: which labelled images a source holds, in which part, before any of them is decoded."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from cvtune.data.compact import pick
from cvtune.data.packed import Packed
from cvtune.printable import printable

PARTS = ("train", "val", "test")
Pixels = npt.NDArray[Any]  # an image, uint8, uint16 or float32 (H, W, C), or a mask, uint8 (H, W)
Labels = npt.NDArray[np.int64]
Tags = npt.NDArray[np.float32]
# An image file, one in an archive, or an array (H, W) or (H, W, C) of numbers; see decode.load.
Item = Path | Packed | Pixels
Task = Literal["classify", "multilabel", "segment"]
Column = Literal["labels", "tags", "groups", "weights"]
COLUMNS: tuple[Column, ...] = get_args(Column)
IGNORE = 255  # in a mask: a pixel that is neither trained on nor scored
UNKNOWN = -1  # in a lookup: a value that no mask may hold


class Labelled(NamedTuple):
    """One part: N items and what is known of each, in the same order.

    Attributes:
        labels: int64 (N,), the class of each image; of soft labels the likeliest. Of images with several labels, or
            with a mask, the one of their classes that is rarest in train (by images, or by pixels), and the most
            frequent class where none is known: what splits are stratified and `data.oversample` balances by.
        tags: float32 (N, K) in 0..1, what is said of each class, NaN where nothing is: labels of the task
            "multilabel", or soft ones of "classify" (rows of sum 1). None: `labels` say it all.
        masks: of the task "segment": an index image uint8 (H, W) per image, of its size; `IGNORE` where not labelled.
        groups: int64 (N,), images with the same number belong together (a patient, a scene) and share a part.
        weights: float32 (N,), factor on the loss of each image. None: 1.
    """

    items: Sequence[Item]
    labels: Labels
    tags: Tags | None = None
    masks: Sequence[Item] | None = None
    groups: Labels | None = None
    weights: Tags | None = None

    def take(self, rows: npt.NDArray[np.int64]) -> Labelled:
        """What is at `rows`, int64 (M,)."""
        return Labelled(
            pick(self.items, rows),
            self.labels[rows],
            None if self.tags is None else self.tags[rows],
            None if self.masks is None else pick(self.masks, rows),
            None if self.groups is None else self.groups[rows],
            None if self.weights is None else self.weights[rows],
        )


@dataclass(frozen=True)
class Listing:
    """All images of a source. Labels are positions in `classes`. The order is the same on every machine."""

    classes: tuple[str, ...]
    parts: Mapping[str, Labelled]  # train, val, test; only test may be empty
    root: Path | None = None  # the folder that file names are relative to
    notices: tuple[str, ...] = ()
    task: Task = "classify"
    lookup: tuple[int, ...] = ()  # of "segment": what a value of the mask files stands for: a class, IGNORE, or UNKNOWN

    def items(self) -> Iterator[Item]:
        """The images of train, then val, then test."""
        return itertools.chain.from_iterable(self.parts[part].items for part in PARTS)

    def masks(self) -> Iterator[Item | None]:
        """Their masks; None for each image where the task has none."""
        for part in PARTS:
            found = self.parts[part]
            yield from itertools.repeat(None, len(found.labels)) if found.masks is None else found.masks

    def labels(self) -> Labels:
        """Their labels, int64 (N,)."""
        return np.concatenate([self.parts[part].labels for part in PARTS])

    def names(self) -> Iterator[str]:
        """Their names as they are shown, none of which depends on where the data lies: 'cat/1.jpg', or 'train[1]' in
        memory."""
        prefix = len(f"{self.root}/")
        for part in PARTS:
            for i, item in enumerate(self.parts[part].items):
                if self.root is not None:
                    yield printable(str(item)[prefix:])
                else:
                    yield f"{part}[{i}]" + (f" {printable(item.name)}" if isinstance(item, Path) else "")


def join(parts: Mapping[str, Labelled], what: Column) -> Any:
    """One column of train, then val, then test, float32 or int64 (N, ...); None where the parts have none."""
    columns = [getattr(parts[part], what) for part in PARTS]
    return None if any(column is None for column in columns) else np.concatenate(columns)


def without_images(classes: Sequence[str], labels: Labels) -> list[str]:
    """The classes that no label names."""
    counts = np.bincount(labels, minlength=len(classes))
    return [name for name, count in zip(classes, counts, strict=True) if count == 0]
