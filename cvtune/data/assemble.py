"""A checked Listing from what a reader has found: classes mapped, parts split off, nothing that cannot train."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cvtune.data.listing import PARTS, Labelled, Labels, Listing, Tags, Task, without_images
from cvtune.data.relabel import relabel
from cvtune.data.split import split
from cvtune.errors import DataError
from cvtune.printable import printable
from cvtune.sections import Source

LONGEST = 200  # letters of a class's name


def make_listing(
    source: Source,
    classes: Sequence[str],
    parts: Mapping[str, Labelled],
    *,
    whole: bool,
    root: Path | None = None,
    notices: Sequence[str] = (),
    task: Task = "classify",
) -> Listing:
    """A checked Listing with `data.classes` applied, and `labels` made from `tags` where there are any.

    Where `parts` has no val, it is split from train, and test too if the source is one `whole`. Of the task
    "segment" `tags` are pixels per image and class; the Listing has none.

    Raises:
        DataError: too few classes, two that look alike, a class without images in train or val, or too few to split.
        ConfigError: `data.classes` names a class that there is not.
    """
    where = source.source
    classes = _shown_as(where, classes)
    classes, parts, lookup = relabel(source, classes, parts, task)
    if len(classes) < (1 if task == "multilabel" else 2):
        named = f"only the class {classes[0]!r}" if classes else "no class"
        wanted = {
            "classify": "classifying needs two or more. Add a folder (or label) for each class.",
            "multilabel": "there is nothing to learn. Name the classes in the labels.",
            "segment": "segmenting needs two or more. A pixel's value in a mask is its class, counted from 0, and "
            "255 is none (or, where all masks hold 0 and 255 only, the second class): see data.mask_values.",
        }[task]
        raise DataError(f"{where}: has {named}, but {wanted}")
    parts = {part: parts.get(part, _none_of(parts["train"])) for part in PARTS if part != "val" or part in parts}
    parts = _with_labels(parts, task)
    notices = [*notices, *_shared_groups(parts)]
    _check_classes(where, classes, parts, task, split=False)
    if "val" not in parts:
        train = parts["train"]
        rows = split(source, classes, train, _shown(train, task), source.test_share if whole else 0.0)
        made = {part: train.take(rows[part]) for part in PARTS}
        parts = made if whole else {**made, "test": parts["test"]}
        _check_classes(where, classes, parts, task, split=True)
    missing = _absent(classes, parts["test"], task)
    if missing and len(parts["test"].labels):
        notices = [*notices, f"test has no images of {', '.join(missing)}: its accuracy says nothing about them."]
    if task == "segment":
        parts = {name: part._replace(tags=None) for name, part in parts.items()}
    return Listing(tuple(classes), parts, root, tuple(notices), task, lookup)


def _shown_as(where: str, classes: Sequence[str]) -> list[str]:
    """The names of the classes as they are shown from here on: in messages, tables, pages, and in `data.classes`."""
    names = [printable(name) for name in classes]
    if names and len(longest := max(names, key=len)) > LONGEST:
        raise DataError(
            f"{where}: a class would be called {longest[:40]!r}... ({len(longest)} letters, at most {LONGEST}). Look "
            "whether the labels are what they should be."
        )
    if len(set(names)) < len(set(classes)):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{where}: two classes would both be shown as {twice!r}. Rename one of them.")
    return names


def _shown(part: Labelled, task: Task) -> tuple[Labels, Labels]:
    """Each pair of an image and a class that it shows: rows and classes, int64 (M,). Of soft labels the likeliest."""
    if part.tags is None or task == "classify":
        return np.arange(len(part.labels)), part.labels
    rows, columns = np.nonzero(_said(part.tags))
    return rows, columns


def _said(tags: Tags) -> npt.NDArray[np.bool_]:
    with np.errstate(invalid="ignore"):  # NaN is no class
        return np.asarray(tags >= 0.5)


def _none_of(part: Labelled) -> Labelled:
    """A part without images, but with the columns of another one."""
    return part.take(np.zeros(0, np.int64))


def _with_labels(parts: Mapping[str, Labelled], task: Task) -> dict[str, Labelled]:
    """The parts with `labels` from `tags`, as `Labelled` says."""
    tags = parts["train"].tags
    if tags is None:
        return dict(parts)
    if task == "classify":
        return {name: part._replace(labels=_column(part).argmax(axis=1)) for name, part in parts.items()}
    often = np.nan_to_num(tags).sum(axis=0)
    rarity = np.argsort(np.argsort(-often, kind="stable"), kind="stable")  # 0: the most frequent class
    by_rarity = np.argsort(rarity)

    def rarest(part: Labelled) -> Labels:
        ranks = np.where(_said(_column(part)), rarity, 0)
        return np.asarray(by_rarity[ranks.max(axis=1)], np.int64)

    return {name: part._replace(labels=rarest(part)) for name, part in parts.items()}


def _column(part: Labelled) -> Tags:
    assert part.tags is not None  # a reader gives every part the same columns
    return part.tags


def _absent(classes: Sequence[str], part: Labelled, task: Task) -> list[str]:
    return without_images(classes, _shown(part, task)[1])


def _check_classes(
    where: str, classes: Sequence[str], parts: Mapping[str, Labelled], task: Task, *, split: bool
) -> None:
    empty = _absent(classes, parts["train"], task)
    if empty:
        name = empty[0]
        elsewhere = [part for part, found in parts.items() if name not in _absent(classes, found, task)]
        but = f", but {' and '.join(elsewhere)} has some" if elsewhere else ""
        raise DataError(
            f"{where}: class {name!r} has no images in train{but}. All parts need the same classes: "
            f"add images of it to train, {_unless(name)}."
        )
    missing = _absent(classes, parts["val"], task) if "val" in parts else []
    if missing and split:
        raise DataError(
            f"{where}: the split leaves class {missing[0]!r} without images in val: too few images or groups have it. "
            f"Try another data.split_seed, bring parts of your own, {_unless(missing[0])}."
        )
    if missing:
        raise DataError(
            f"{where}: class {missing[0]!r} has no images in val. Trials are compared on all classes of train: move "
            "some of its images there, or remove the val part so that it is split from train."
        )


def _unless(name: str) -> str:
    return f"or leave the class out with --set 'data.classes={json.dumps({name: None})}'"


def _shared_groups(parts: Mapping[str, Labelled]) -> list[str]:
    """A notice where official parts share a group; what we split ourselves never does."""
    groups = {name: part.groups for name, part in parts.items() if part.groups is not None}
    if "train" not in groups:
        return []
    notices = []
    for name, found in groups.items():
        shared = np.intersect1d(groups["train"], found)
        if name != "train" and len(shared):
            rows = np.flatnonzero(np.isin(found, shared))
            example = parts[name].items[rows[0]]
            named = f", for example that of {printable(example.name)}" if isinstance(example, Path) else ""
            notices.append(
                f"{len(shared)} groups have images in train and in {name} ({len(rows)} images there){named}: "
                f"scores on {name} are better than they would be on new groups."
            )
    return notices
