"""Listing: which labelled images a source holds, in which part, before any of them is decoded."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from cvtune.data.compact import pick
from cvtune.data.packed import Packed
from cvtune.errors import DataError
from cvtune.sections import Source

PARTS = ("train", "val", "test")
Pixels = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]
Tags = npt.NDArray[np.float32]
# An image file, one in an archive, or uint8 (H, W), (H, W, 1), (H, W, 3) or (H, W, 4); see decode.load.
Item = Path | Packed | Pixels
Task = Literal["classify", "multilabel", "segment"]
IGNORE = 255  # in a mask: a pixel that is neither trained on nor scored


class Labelled(NamedTuple):
    """One part: N items and what is known of each, in the same order.

    Attributes:
        labels: int64 (N,), the class of each image. Of images with several labels, or with a mask, the class that is
            rarest in the part: what splits are stratified and `data.oversample` balances by.
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

    def items(self) -> Iterator[Item]:
        """The images of train, then val, then test."""
        return itertools.chain.from_iterable(self.parts[part].items for part in PARTS)

    def labels(self) -> Labels:
        """Their labels, int64 (N,)."""
        return np.concatenate([self.parts[part].labels for part in PARTS])

    def names(self) -> Iterator[str]:
        """Their names, none of which depends on where the data lies: 'cat/1.jpg', or 'train[1]' in memory."""
        prefix = len(f"{self.root}/")
        for part in PARTS:
            for i, item in enumerate(self.parts[part].items):
                if self.root is not None:
                    yield str(item)[prefix:]
                else:
                    yield f"{part}[{i}]" + (f" {item.name}" if isinstance(item, Path) else "")


def make_listing(
    source: Source,
    classes: Sequence[str],
    parts: Mapping[str, Labelled],
    *,
    whole: bool,
    root: Path | None = None,
    notices: Sequence[str] = (),
) -> Listing:
    """A checked Listing. Where `parts` has no val, it is split from train, and test too if the source is one `whole`.

    Raises:
        DataError: fewer than two classes, a class without images in train or val, or too few to split.
    """
    if len(classes) < 2:
        named = f"only the class {classes[0]!r}" if classes else "no class"
        raise DataError(
            f"{source.source}: has {named}, but classifying needs two or more. Add a folder (or label) for each class."
        )
    nothing = Labelled((), np.zeros(0, np.int64))
    parts = {part: parts.get(part, nothing) for part in PARTS if part != "val" or part in parts}
    _check_classes(source.source, classes, parts)
    if "val" not in parts:
        test_share = source.test_share if whole else 0.0
        rows = _split(source, classes, parts["train"].labels, test_share)
        split = {part: parts["train"].take(rows[part]) for part in PARTS}
        parts = split if whole else {**split, "test": parts["test"]}
    missing = without_images(classes, parts["test"].labels)
    if missing and len(parts["test"].labels):
        notices = [*notices, f"test has no images of {', '.join(missing)}: its accuracy says nothing about them."]
    return Listing(tuple(classes), parts, root, tuple(notices))


def without_images(classes: Sequence[str], labels: Labels) -> list[str]:
    """The classes that no label names."""
    counts = np.bincount(labels, minlength=len(classes))
    return [name for name, count in zip(classes, counts, strict=True) if count == 0]


def _check_classes(where: str, classes: Sequence[str], parts: Mapping[str, Labelled]) -> None:
    empty = without_images(classes, parts["train"].labels)
    if empty:
        elsewhere = [part for part, found in parts.items() if classes.index(empty[0]) in found.labels]
        but = f", but {' and '.join(elsewhere)} has some" if elsewhere else ""
        raise DataError(
            f"{where}: class {empty[0]!r} has no images in train{but}. All parts need the same classes: "
            "add images of it to train, or remove the class."
        )
    missing = without_images(classes, parts["val"].labels) if "val" in parts else []
    if missing:
        raise DataError(
            f"{where}: class {missing[0]!r} has no images in val. Trials are compared on all classes of train: move "
            "some of its images there, or remove the val part so that it is split from train."
        )


def _split(source: Source, classes: Sequence[str], labels: Labels, test_share: float) -> dict[str, Labels]:
    """Rows of train, val and test, each rising. At least one row of each class in each part that has a share."""
    chosen: dict[str, list[Labels]] = {part: [] for part in PARTS}
    for label, name in enumerate(classes):
        rows = np.flatnonzero(labels == label)
        if len(rows) < 3:
            raise DataError(
                f"{source.source}: class {name!r} has {len(rows)} image{'s' * (len(rows) > 1)}, too few to split: "
                "a class needs at least 3. Add images, remove the class, or bring val and test parts of your own."
            )
        rows = np.random.default_rng([source.split_seed, label]).permutation(rows)
        val = max(1, int(source.val_share * len(rows) + 1e-9))  # 0.29 * 100 is a little below 29
        test = max(1, int(test_share * len(rows) + 1e-9)) if test_share else 0
        for part, taken in zip(PARTS, np.split(rows, [len(rows) - val - test, len(rows) - test]), strict=True):
            chosen[part].append(taken)
    return {part: np.sort(np.concatenate(rows)) for part, rows in chosen.items()}
