"""Splits that keep groups whole, and classes that are mapped before anything is split."""

from __future__ import annotations

import numpy as np
import pytest

from cvtune.data.assemble import make_listing
from cvtune.data.listing import PARTS, Labelled, Listing, Task
from cvtune.errors import ConfigError, DataError
from cvtune.sections import Source

PIXEL = np.zeros((2, 2), np.uint8)


def split(
    labels: np.ndarray,
    groups: np.ndarray | None,
    tags: np.ndarray | None = None,
    task: Task = "classify",
    **settings: object,
) -> Listing:
    items = [np.full((2, 2), i % 256, np.uint8) for i in range(len(labels))]
    classes = [f"c{i}" for i in range(labels.max() + 1 if tags is None else tags.shape[1])]
    part = Labelled(items, labels.astype(np.int64), tags, groups=groups)
    return make_listing(Source.model_validate(settings), classes, {"train": part}, whole=True, task=task)


def sizes(listing: Listing) -> list[int]:
    return [len(listing.parts[part].labels) for part in PARTS]


def check_groups(listing: Listing) -> None:
    """No group is in two parts."""
    groups = [set(listing.parts[part].groups.tolist()) for part in PARTS]  # type: ignore[union-attr]
    assert not groups[0] & groups[1] and not groups[0] & groups[2] and not groups[1] & groups[2]


@pytest.mark.parametrize("seed", range(5))
def test_groups_stay_whole_and_classes_are_in_every_part(seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups = rng.integers(0, 60, 900)
    labels = np.where(rng.random(900) < 0.8, groups % 3, rng.integers(0, 3, 900))
    listing = split(labels, groups.astype(np.int64), split_seed=seed)
    check_groups(listing)
    assert sum(sizes(listing)) == 900
    for part, share in (("train", 0.7), ("val", 0.15), ("test", 0.15)):
        counts = np.bincount(listing.parts[part].labels, minlength=3)
        assert (abs(counts / np.bincount(labels) - share) < 0.06).all()
    again = split(labels, groups.astype(np.int64), split_seed=seed)
    for part in PARTS:
        np.testing.assert_array_equal(again.parts[part].groups, listing.parts[part].groups)
    other = split(labels, groups.astype(np.int64), split_seed=seed + 10)
    assert set(other.parts["val"].groups.tolist()) != set(listing.parts["val"].groups.tolist())  # type: ignore[union-attr]


def test_a_large_group_goes_to_train() -> None:
    groups = np.repeat(np.arange(6), [100, 90, 3, 3, 3, 3])
    listing = split(np.arange(202) % 2, groups)
    check_groups(listing)
    assert sizes(listing) == [190, 6, 6]


def test_few_groups_of_a_class_reach_every_part() -> None:
    """Class 1 is in three groups of different size, beside twenty groups without it."""
    labels = np.concatenate([np.zeros(200), np.ones(12)]).astype(np.int64)
    groups = np.concatenate([np.repeat(np.arange(20), 10), np.repeat([20, 21, 22], [2, 4, 6])])
    listing = split(labels, groups)
    check_groups(listing)
    assert [(listing.parts[part].labels == 1).sum() for part in PARTS] == [6, 4, 2]


def test_a_class_in_too_few_groups_is_refused() -> None:
    with pytest.raises(DataError, match=r"class 'c1' is in 2 groups only.*cannot be in train, val, test"):
        split(np.repeat([0, 1], [30, 10]), np.concatenate([np.arange(30), np.repeat([40, 41], 5)]))
    two = split(np.repeat([0, 1], [30, 10]), np.append(np.arange(30), np.repeat([40, 41], 5)), test_share=0)
    assert sizes(two)[2] == 0 and {0, 1} <= set(two.parts["val"].labels)


def test_images_of_nothing_are_dealt_out_too() -> None:
    tags = np.zeros((300, 2), np.float32)
    tags[:30, 0] = 1
    tags[20:50, 1] = 1
    listing = split(np.zeros(300, np.int64), np.arange(300) // 2, tags, "multilabel")
    check_groups(listing)
    assert (abs(np.array(sizes(listing)) - [210, 45, 45]) < 5).all()
    for part in PARTS:
        assert (listing.parts[part].tags.sum(axis=0) > 0).all()  # type: ignore[union-attr]


def test_several_labels_are_split_by_the_rarest() -> None:
    tags = np.zeros((100, 3), np.float32)
    tags[:, 0] = 1
    tags[:40, 1] = 1
    tags[:6, 2] = 1
    tags[50, :] = np.nan
    listing = split(np.zeros(100, np.int64), None, tags, "multilabel")
    train = listing.parts["train"]
    assert train.tags is not None and len(train.labels) == 70
    np.testing.assert_array_equal(train.labels, np.where(train.tags[:, 2] == 1, 2, np.nan_to_num(train.tags)[:, 1]))
    assert [int((listing.parts[part].labels == 2).sum()) for part in PARTS] == [4, 1, 1]


def test_classes_are_merged_renamed_and_left_out() -> None:
    labels = np.arange(60) % 4
    listing = split(labels, None, classes={"c1": "c0", "c2": "other", "c3": None})
    assert listing.classes == ("c0", "other")
    assert np.bincount(listing.labels()).tolist() == [30, 15]
    for item, label in zip(listing.items(), listing.labels(), strict=True):
        assert label == [0, 0, 1][int(item[0, 0]) % 4]  # type: ignore[index, call-overload]
    rare = np.append(labels, 4)  # one image: merged or ignored, the class needs no three of its own
    for new, count in (("c0", 61), (None, 60)):
        assert len(split(rare, None, classes={"c4": new}).labels()) == count
    with pytest.raises(DataError, match="class 'c4' has 1 image, too few to split"):
        split(rare, None)
    with pytest.raises(ConfigError, match=r"data.classes: 'c9' is no class of digits.*Valid: c0, c1"):
        split(labels, None, classes={"c9": "c0"})
    with pytest.raises(DataError, match="only the class 'all'"):
        split(labels, None, classes={f"c{i}": "all" for i in range(4)})


def test_many_groups_of_many_classes() -> None:
    rng = np.random.default_rng(0)
    labels, groups = rng.integers(0, 50, 20000), rng.integers(0, 4000, 20000)
    listing = split(labels, groups)
    check_groups(listing)
    assert (abs(np.array(sizes(listing)) / 20000 - [0.7, 0.15, 0.15]) < 0.01).all()
