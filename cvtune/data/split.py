"""Splitting: which rows become train, val and test, or which fold, by class and, where they are known, by group."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from cvtune.data.listing import PARTS, Labelled, Labels
from cvtune.errors import DataError
from cvtune.sections import Source


def split(
    source: Source, classes: Sequence[str], part: Labelled, shown: tuple[Labels, Labels], test_share: float
) -> dict[str, Labels]:
    """Rows of train, val and test, each rising; the same for the same source on every machine.

    Stratified by `part.labels`. Groups stay whole. `shown` are the pairs (row, class) of what images show.
    Where an image shows one class only, each class is in each part that has a share.

    Raises:
        DataError: a class is on fewer than 3 images, or in fewer groups than there are parts.
    """
    counts = np.bincount(shown[1], minlength=len(classes))
    for name, count in zip(classes, counts.tolist(), strict=True):
        if count < 3:
            raise DataError(
                f"{source.source}: class {name!r} has {count} image{'s' * (count != 1)}, too few to split: a class "
                "needs at least 3. Add images, remove the class, or bring val and test parts of your own."
            )
    if part.groups is None:
        return _by_class(source, part.labels, test_share)
    groups, members = _members(part.groups, shown, len(classes))
    shares = {"train": 1 - source.val_share - test_share, "val": source.val_share, "test": test_share}
    used = [name for name in PARTS if shares[name]]
    for name, count in zip(classes, (members[:, :-1] > 0).sum(axis=0).tolist(), strict=True):
        if count < len(used):
            raise DataError(
                f"{source.source}: class {name!r} is in {count} group{'s' * (count != 1)} only, and groups stay whole: "
                f"it cannot be in {', '.join(used)}. Add groups with it, remove the class, or bring parts of your own."
            )
    order = np.random.default_rng(source.split_seed).permutation(len(members))
    owner = np.empty(len(members), np.int64)
    owner[order] = _by_group(members[order], np.array([shares[name] for name in used]))
    return {name: np.flatnonzero(owner[groups] == (used.index(name) if name in used else -1)) for name in PARTS}


def fold_of(labels: Labels, groups: Labels | None, folds: int, seed: int) -> Labels:
    """The fold of each image, int64 (N,) in 0..folds-1; the same for the same arguments on every machine.

    Stratified: of each class the folds hold the same number of images, and of all images, up to one. Groups stay
    whole; then the numbers come as near to that as whole groups allow.

    Args:
        labels: int64 (N,), see `listing.Labelled`.
        groups: int64 (N,), or None.
    """
    if groups is not None:
        groups, members = _members(groups, (np.arange(len(labels)), labels), int(labels.max()) + 1)
        order = np.random.default_rng(seed).permutation(len(members))
        owner = np.empty(len(members), np.int64)
        owner[order] = _by_group(members[order], np.full(folds, 1 / folds))
        return np.asarray(owner[groups])
    rows = [np.random.default_rng([seed, k]).permutation(np.flatnonzero(labels == k)) for k in np.unique(labels)]
    dealt = np.empty(len(labels), np.int64)
    dealt[np.concatenate(rows)] = np.arange(len(labels)) % folds  # one class after the other, like cards
    return dealt


def _members(groups: Labels, shown: tuple[Labels, Labels], classes: int) -> tuple[Labels, npt.NDArray[np.float64]]:
    """The groups as 0..G-1, int64 (N,); and of each the images that show each class, and all of them, (G, K + 1)."""
    _, numbers = np.unique(groups, return_inverse=True)
    members = np.zeros((numbers.max() + 1, classes + 1))
    np.add.at(members, (numbers[shown[0]], shown[1]), 1)
    members[:, -1] = np.bincount(numbers)
    return numbers, members


def _by_class(source: Source, labels: Labels, test_share: float) -> dict[str, Labels]:
    chosen: dict[str, list[Labels]] = {part: [] for part in PARTS}
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        rows = np.random.default_rng([source.split_seed, label]).permutation(rows)
        few = len(rows) < 3  # only where images show several classes: the others stand on more of them
        val = max(1 - few, int(source.val_share * len(rows) + 1e-9))  # 0.29 * 100 is a little below 29
        test = max(1 - few, int(test_share * len(rows) + 1e-9)) if test_share else 0
        for part, taken in zip(PARTS, np.split(rows, [len(rows) - val - test, len(rows) - test]), strict=True):
            chosen[part].append(taken)
    return {part: np.sort(np.concatenate(rows)) for part, rows in chosen.items()}


def _by_group(members: npt.NDArray[np.float64], shares: npt.NDArray[np.float64]) -> Labels:
    """The part of each group, int64 (G,), dealt out as in iterative stratification (Sechidis et al. 2011).

    `members` is (G, K + 1), the last column all images; `shares` (P,), of sum 1. The rarest class that is left comes
    first, and of it the largest group; it goes where it brings the shares of all classes nearest to what they should
    be (chi-squared). The last groups of a class go to parts that have none of it yet.
    """
    members = members / np.maximum(members.sum(axis=0), 1)  # shares of each class
    lacking = np.repeat(shares[:, None], members.shape[1], axis=1)  # (P, K + 1)
    had = np.zeros(lacking.shape, bool)
    owner = np.full(len(members), -1, np.int64)
    while (free := owner < 0).any():
        left = (members[free] > 0).sum(axis=0)
        rarest = int(np.where(left > 0, left, len(members) + 1).argmin())
        mine = np.flatnonzero(free & (members[:, rarest] > 0))
        for done, group in enumerate(mine[np.argsort(-members[mine, rarest], kind="stable")]):
            part = members[group]
            costs = (part * (part - 2 * lacking)).sum(axis=1) / shares
            empty = ~had[:, rarest]
            if 0 < empty.sum() >= len(mine) - done:
                costs[~empty] = np.inf
            owner[group] = costs.argmin()
            lacking[owner[group]] -= part
            had[owner[group]] |= part > 0
    return owner
