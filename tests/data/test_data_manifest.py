"""Manifests: what their columns mean, and what is said of those that cannot be used."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
from PIL import Image

from cvtune.data import Dataset, Listing, cache_folder, open_dataset, read_source
from cvtune.errors import DataError
from cvtune.recipe import Data
from cvtune.sections import Source

NAMES = [f"pictures/{i:02d}.png" for i in range(12)]


def write(root: Path, columns: dict[str, list[Any]], suffix: str = ".csv", name: str = "list") -> Path:
    """A manifest and, unless they are there, twelve images and masks for it."""
    for folder in ("pictures", "masks"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for i, file in enumerate(NAMES):
        Image.new("RGB", (10, 9), (i, 0, 0)).save(root / file)
        mask = np.zeros((9, 10), np.uint8)
        mask[:, : i % 5] = 1
        Image.fromarray(mask).save(root / "masks" / f"{i:02d}.png")
    table = pa.table(columns)
    path = root / f"{name}{suffix}"
    if suffix.lower() == ".csv":
        pa.csv.write_csv(table, path)
    else:
        pa.parquet.write_table(table, path)
    return path


def listed(path: Path, **settings: Any) -> Listing:
    return read_source(Source(source=str(path), **settings))


def opened(path: Path, cache: Path, **settings: Any) -> Dataset:
    return open_dataset(Source(source=str(path), **settings), Data(image_size=8), cache_folder(cache), None, 1)


LABEL = ["cat", "dog", "007"] * 4
SPLIT = ["train"] * 6 + ["valid"] * 3 + ["test"] * 3


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".CSV"])
def test_one_label_each(tmp_path: Path, suffix: str) -> None:
    listing = listed(write(tmp_path / "d", {"path": NAMES, "label": LABEL, "split": SPLIT}, suffix))
    assert (listing.task, listing.classes, listing.notices) == ("classify", ("007", "cat", "dog"), ())
    assert {part: found.labels.tolist() for part, found in listing.parts.items()} == {
        "train": [1, 2, 0] * 2,
        "val": [1, 2, 0],
        "test": [1, 2, 0],
    }
    assert list(listing.names()) == NAMES
    whole = listed(write(tmp_path / "e", {"path": NAMES, "label": LABEL}, suffix))
    assert [np.bincount(found.labels).tolist() for found in whole.parts.values()] == [[2] * 3, [1] * 3, [1] * 3]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_several_labels_each(tmp_path: Path, suffix: str) -> None:
    cells = ["cat", "cat; dog", None, "dog", "cat;bird", "cat"] * 2
    columns: dict[str, list[Any]] = {"path": NAMES, "labels": cells, "split": ["train"] * 6 + ["val"] * 6}
    if suffix == ".parquet":
        columns["labels"] = [cell and [name.strip() for name in cell.split(";")] for cell in cells]
    listing = listed(write(tmp_path / "d", columns, suffix))
    assert (listing.task, listing.classes) == ("multilabel", ("bird", "cat", "dog"))
    train = listing.parts["train"]
    assert train.tags is not None
    assert train.tags.tolist() == [[0, 1, 0], [0, 1, 1], [0, 0, 0], [0, 0, 1], [1, 1, 0], [0, 1, 0]]
    assert train.labels.tolist() == [1, 2, 1, 2, 0, 1]  # the rarest shown; of nothing the most frequent


def test_merged_and_ignored_columns(tmp_path: Path) -> None:
    columns = {"path": NAMES, "labels:cat": [1, 0, None] * 4, "labels:lynx": [0, 0, 1] * 4, "labels:dog": [0, 1, 0] * 4}
    path = write(tmp_path / "d", {**columns, "split": ["train", "train", "train", "val", "val", "val"] * 2})
    listing = listed(path, classes={"lynx": "cat", "dog": "other"})
    tags = listing.parts["train"].tags
    assert (listing.classes, listing.task) == (("cat", "other"), "multilabel")
    assert tags is not None and tags[:3].tolist() == [[1, 0], [0, 1], [1, 0]]
    unknown = listed(path, classes={"lynx": None}).parts["train"].tags
    assert unknown is not None and unknown.shape == (6, 2) and math.isnan(unknown[2, 0])


def test_soft_labels(tmp_path: Path) -> None:
    soft = {"label:a": [0.8, 0.2, 0.1] * 4, "label:b": [0.2, 0.8, 0.1] * 4, "label:c": [0, 0, 0.8] * 4}
    listing = listed(write(tmp_path / "d", {"path": NAMES, **soft}))
    assert (listing.task, listing.classes) == ("classify", ("a", "b", "c"))
    for part in listing.parts.values():
        assert part.tags is not None
        np.testing.assert_array_equal(part.labels, part.tags.argmax(axis=1))
        np.testing.assert_allclose(part.tags.sum(axis=1), 1)
    dropped = listed(tmp_path / "d" / "list.csv", classes={"c": None})
    assert len(dropped.labels()) == 8
    for part in dropped.parts.values():
        assert part.tags is not None
        np.testing.assert_allclose(part.tags.sum(axis=1), 1)
    several = write(tmp_path / "e", {"path": NAMES, "label:a": [1, 1, 0] * 4, "label:b": [1, 0, None] * 4})
    assert listed(several).task == "multilabel"


def test_masks_groups_and_weights_reach_the_parts(tmp_path: Path) -> None:
    columns: dict[str, list[Any]] = {
        "path": NAMES,
        "mask": [f"masks/{Path(name).name}" for name in NAMES],
        "group": ["p1", "p2", None] * 4,
        "weight": [0.5, 2, 1] * 4,
        "split": ["train"] * 6 + ["val"] * 6,
    }
    path = write(tmp_path / "d", columns)
    data = opened(path, tmp_path / "cache")
    assert (data.task, data.classes) == ("segment", ("background", "foreground"))
    assert data.train.masks is not None and data.train.weights is not None and data.train.groups is not None
    assert [mask.shape for mask in data.train.masks] == [(9, 10)] * 6
    assert data.train.weights.tolist() == [0.5, 2, 1] * 2
    assert data.train.weights.dtype == np.float32 and data.train.groups.dtype == np.int64
    groups = data.train.groups.tolist()
    assert groups[0] == groups[3] and groups[1] == groups[4] and len(set(groups)) == 4
    assert any("2 groups have images in train and in val (4 images there)" in notice for notice in data.notices)
    prints = {data.fingerprint}
    for column, value in (("weight", [0.5, 2, 3] * 4), ("group", ["p1", "p2", "p3"] * 4)):
        prints.add(opened(write(tmp_path / "d", {**columns, column: value}), tmp_path / "cache").fingerprint)
    assert len(prints) == 3


def test_files_that_are_missing_are_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "d", {"path": [*NAMES, "pictures/gone.png"], "label": [*LABEL, "cat"]})
    assert opened(path, tmp_path / "cache", max_corrupt=0.1).corrupt[0].startswith("pictures/gone.png: cannot be dec")
    with pytest.raises(DataError, match="1 of 13 images"):
        opened(path, tmp_path / "cache")


def test_images_in_two_parts_are_told(tmp_path: Path) -> None:
    path = write(tmp_path / "d", {"path": NAMES, "label": LABEL, "split": SPLIT})
    (path.parent / NAMES[7]).write_bytes((path.parent / NAMES[1]).read_bytes())
    (path.parent / NAMES[8]).write_bytes((path.parent / NAMES[2]).read_bytes())
    (path.parent / NAMES[9]).write_bytes((path.parent / NAMES[6]).read_bytes())  # val and test: nothing trains on them
    for _ in range(2):
        (notice,) = opened(path, tmp_path / "cache").notices
        assert notice.startswith(
            f"2 images of val are in train, too (the same bytes), for example {NAMES[7]} = {NAMES[1]}"
        )


@pytest.mark.parametrize("soft", [False, True])
def test_rows_without_a_label_are_left_out_and_counted(tmp_path: Path, soft: bool) -> None:
    cats: list[float | None] = [None, 1.0, 0.3, *[0.0, 1.0, 0.8] * 3]
    of = (
        {"label:cat": cats, "label:dog": [None if cat is None else 1 - cat for cat in cats]}
        if soft
        else {"label": [None, *LABEL[1:]]}
    )
    listing = listed(write(tmp_path / "d", {"path": NAMES, **of, "split": SPLIT}))
    assert listing.task == "classify" and [len(part.labels) for part in listing.parts.values()] == [5, 3, 3]
    assert next(Path(item).name for item in listing.items()) == "01.png"
    assert "1 of 12 rows have no label and are left out" in listing.notices[0]


@pytest.mark.parametrize(
    "escape", ["../outside.png", "/etc/hostname", "pictures/../../x.png", "linked/0.png", "link.png"]
)
@pytest.mark.parametrize("column", ["path", "mask"])
def test_no_path_leaves_the_folder(tmp_path: Path, escape: str, column: str) -> None:
    (tmp_path / "outside").mkdir()
    Image.new("L", (10, 9)).save(tmp_path / "outside" / "0.png")
    columns = {"path": list(NAMES), "mask": [f"masks/{Path(name).name}" for name in NAMES]}
    columns[column][4] = escape
    path = write(tmp_path / "d", columns)
    (path.parent / "linked").symlink_to(tmp_path / "outside")
    (path.parent / "link.png").symlink_to(tmp_path / "outside" / "0.png")
    with pytest.raises(DataError, match=rf"list.csv, row 5: {column} = '{escape}' leaves .*/d\. Paths are relative"):
        listed(path)


def test_links_within_the_folder(tmp_path: Path) -> None:
    path = write(tmp_path / "d", {"path": [f"alias/../alias/{Path(n).name}" for n in NAMES], "label": LABEL})
    (path.parent / "alias").symlink_to("pictures")
    assert len(listed(path).labels()) == 12


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"label": LABEL}, "no column 'path'"),
        ({"path": NAMES}, "nothing that says what the images show. .*Its columns: path"),
        ({"path": NAMES, "label": LABEL, "mask": NAMES}, "both 'label' and 'mask'"),
        ({"path": NAMES, "label": [None] * 12}, "no row for training has a label. Fill in column 'label'"),
        ({"path": NAMES, "mask": [None, *NAMES[1:]]}, "row 1: mask is empty. Every image needs a mask"),
        ({"path": [None, *NAMES[1:]], "label": LABEL}, "row 1: path is empty"),
        ({"path": NAMES, "label": LABEL, "split": ["trian", *SPLIT[1:]]}, "row 1: split = 'trian'. Write train, val"),
        ({"path": NAMES, "label": LABEL, "split": ["val"] * 12}, "names no row 'train'"),
        ({"path": NAMES, "label": LABEL, "weight": ["x", *"1" * 11]}, "row 1: weight = 'x'. A weight is a number"),
        ({"path": NAMES, "label": LABEL, "weight": [1] * 11 + [0]}, "row 12: weight = '0'"),
        ({"path": NAMES, "label": LABEL, "weight": ["1"] * 11 + ["inf"]}, "row 12: weight = 'inf'"),
        ({"path": NAMES, "label": LABEL, "weight": ["1"] * 11 + ["nan"]}, "row 12: weight = 'nan'"),
        ({"path": NAMES, "label": LABEL, "weight": [1] * 11 + [None]}, "row 12: weight is empty"),
        ({"path": NAMES, "label:a": [2] * 12}, "row 1: label:a = '2'. Write 0"),
        ({"path": NAMES, "labels": [None] * 12}, "no class, but there is nothing to learn"),
        ({"path": NAMES, "label": ["cat"] * 12}, "only the class 'cat'"),
        ({"path": NAMES, "label": ["cat"] * 11 + ["dog"]}, "class 'dog' has 1 image, too few to split"),
        (
            {"path": NAMES, "label": ["cat", "dog"] * 3 + ["cat"] * 6, "split": SPLIT},
            "class 'dog' has no images in val",
        ),
        ({"path": NAMES, "label": [*LABEL[:-1], "cow"], "split": SPLIT}, "'cow' has no images in train, but test has"),
        ({"path": [], "label": []}, "has no rows"),
    ],
)
def test_bad_manifests(tmp_path: Path, columns: dict[str, list[Any]], message: str) -> None:
    columns = {name: cells or pa.array([], pa.string()) for name, cells in columns.items()}
    with pytest.raises(DataError, match=message):
        listed(write(tmp_path / "d", columns))


def test_what_is_no_table(tmp_path: Path) -> None:
    for name, content in (("a.csv", b"path,label\nx,y,z\n"), ("b.parquet", b"no parquet"), ("c.csv", b"")):
        (tmp_path / name).write_bytes(content)
    (tmp_path / "d.csv").write_bytes(b"path,label\n\xff\xfe.png,x\n")
    (tmp_path / "e.csv").write_text("path,label,path\n1,2,3\n")
    said = {
        "a.csv": "not readable",
        "b.parquet": "not readable",
        "c.csv": "not readable",
        "e.csv": "two columns 'path'",
    }
    for name, text in {**said, "d.csv": "", "missing.csv": "no such file"}.items():
        with pytest.raises(DataError, match=f"{name}.*{text}"):
            listed(tmp_path / name)


def test_columns_that_mean_nothing_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "d", {"path": NAMES, "label": LABEL, "wieght": [1] * 12, "author": ["me"] * 12})
    assert listed(path).notices == ("Columns that say nothing to us are ignored: wieght, author.",)
