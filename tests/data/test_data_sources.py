"""Formats, splits, and what is said about input that cannot be used."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from cvtune.data import Listing, read_source
from cvtune.errors import ConfigError, DataError
from cvtune.sections import Source
from cvtune.usercode import load_function, source_hash

X = np.arange(12 * 4 * 4, dtype=np.uint16).astype(np.uint8).reshape(12, 4, 4)
Y = np.arange(12) % 2


def make_folder(root: Path, counts: dict[str, int], suffix: str = ".png") -> Path:
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (4, 4), (i, 0, 0)).save(root / name / f"{i}{suffix}")
    return root


def make_npz(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def listed(source: object, **settings: Any) -> Listing:
    return read_source(Source(source=str(source), **settings))


def names(listing: Listing) -> list[str]:
    return list(listing.names())


def test_split_is_stratified_seeded_disjoint_and_complete(photo_folder: Path) -> None:
    listing = listed(photo_folder)
    assert listing.classes == ("building", "flower", "negative")
    for part, count in (("train", 14), ("val", 3), ("test", 3)):
        assert np.bincount(listing.parts[part].labels).tolist() == [count] * 3
    assert sorted(names(listing)) == sorted(str(p.relative_to(photo_folder)) for p in photo_folder.glob("*/*"))
    for item, label in zip(listing.items(), listing.labels(), strict=True):
        assert item.parent.name == listing.classes[label]  # type: ignore[union-attr]
    assert names(listed(photo_folder)) == names(listing)
    assert names(listed(photo_folder, split_seed=1)) != names(listing)
    assert not len(listed(photo_folder, test_share=0).parts["test"].labels)


@pytest.mark.parametrize("shares", [(0.49, 0.49), (0.01, 0.01), (0.3, 0.0)])
def test_every_part_gets_every_class(tmp_path: Path, shares: tuple[float, float]) -> None:
    root = make_folder(tmp_path / "d", {"a": 3, "b": 4, "c": 5})
    listing = listed(root, val_share=shares[0], test_share=shares[1])
    for part in ("train", "val", "test") if shares[1] else ("train", "val"):
        assert set(listing.parts[part].labels) == {0, 1, 2}
    assert len(set(names(listing))) == 12


@pytest.mark.parametrize("val", ["val", "valid", "Validation"])
def test_parts_of_their_own(tmp_path: Path, val: str) -> None:
    root = make_folder(tmp_path / "d", {f"{p}/{c}": n for p, n in (("train", 4), (val, 2), ("test", 1)) for c in "ab"})
    listing = listed(root)
    assert [len(listing.parts[part].labels) for part in ("train", "val", "test")] == [8, 4, 2]
    assert f"{val}/a/0.png" in names(listing)


def test_train_without_val_is_split_and_test_is_only_what_exists(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "d", {"train/a": 10, "train/b": 10})
    sizes = {part: len(p.labels) for part, p in listed(root, val_share=0.2).parts.items()}
    assert sizes == {"train": 16, "val": 4, "test": 0}
    make_folder(root, {"test/a": 5, "test/b": 5})
    sizes = {part: len(p.labels) for part, p in listed(root, val_share=0.2).parts.items()}
    assert sizes == {"train": 16, "val": 4, "test": 10}


def test_what_is_an_image(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "d", {"a/nested/deeper": 3, "b": 3, ".hidden": 3, "a/.cache": 2})
    (root / "README.txt").write_text("beside the classes: ignored")
    (root / "a" / "notes.txt").write_text("ignored, counted")
    (root / "b" / ".DS_Store").write_bytes(b"")
    (root / "b" / "0.png").rename(root / "b" / "0.PNG")
    listing = listed(root)
    assert len(names(listing)) == 6
    assert listing.notices == ("2 files without an image's extension were ignored, for example a/notes.txt.",)


def test_a_class_named_train(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "vehicles", {"bus": 3, "car": 3, "train": 3})
    assert listed(root).classes == ("bus", "car", "train")


def test_digits() -> None:
    listing = listed("digits")
    assert sum(len(part.labels) for part in listing.parts.values()) == 1797
    assert len(listing.classes) == 10
    images = np.stack(list(listing.items()))
    assert (images.dtype, images.shape[1:], images.max()) == (np.uint8, (8, 8), 255)


def test_digits_are_those_of_scikit_learn() -> None:
    parts, theirs = listed("digits").parts.values(), load_digits()
    ours = [(image.tobytes(), label) for part in parts for image, label in zip(part.items, part.labels, strict=True)]
    images = np.round(theirs.images * (255 / 16)).astype(np.uint8)
    assert sorted(ours) == sorted((image.tobytes(), label) for image, label in zip(images, theirs.target, strict=True))


def test_npz(tmp_path: Path) -> None:
    arrays = {"x_train": X, "y_train": Y, "x_val": X[:4], "y_val": Y[:4, None], "class_names": ["cat", "dog"]}
    listing = listed(make_npz(tmp_path / "a.npz", **arrays))
    assert listing.classes == ("cat", "dog")
    assert [len(p.labels) for p in listing.parts.values()] == [12, 4, 0]
    np.testing.assert_array_equal(np.stack(listing.parts["train"].items), X)
    for keys in (("x", "y"), ("x_train", "y_train")):
        listing = listed(make_npz(tmp_path / "b.npz", **dict(zip(keys, (X, Y), strict=True))))
        assert listing.classes == ("0", "1")
        assert [len(p.labels) for p in listing.parts.values()] == [8, 2, 2]


MASKS = (X.mean(axis=(1, 2), keepdims=True) < X).astype(np.uint8)


@pytest.mark.parametrize("keys", [("x", "m"), ("x_train", "m_train"), ("x_train", "y_train")])
def test_npz_with_masks(tmp_path: Path, keys: tuple[str, str]) -> None:
    listing = listed(make_npz(tmp_path / "a.npz", **dict(zip(keys, (X, MASKS), strict=True))))
    assert (listing.task, listing.classes) == ("segment", ("background", "foreground"))
    for image, mask in zip(listing.items(), listing.masks(), strict=True):
        assert isinstance(image, np.ndarray)
        np.testing.assert_array_equal(mask, image > image.mean())
    both = make_npz(tmp_path / "b.npz", x=X, y=Y, m=MASKS[..., None], class_names=["ground", "thing"])
    assert listed(both).notices == ("y beside masks ignored.",)
    assert listed(both).classes == ("ground", "thing")


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8, np.bool_])
def test_npz_with_several_labels(tmp_path: Path, dtype: Any) -> None:
    tags = np.stack([Y, 1 - Y, Y * 0 + 1], axis=1).astype(dtype)
    listing = listed(make_npz(tmp_path / "a.npz", x_train=X, y_train=tags, x_val=X[:4], y_val=tags[:4]))
    assert (listing.task, listing.classes) == ("multilabel", ("0", "1", "2"))
    train = listing.parts["train"].tags
    assert train is not None and train.dtype == np.float32
    np.testing.assert_array_equal(train, tags)
    if np.issubdtype(dtype, np.floating):
        tags[0, 2] = np.nan
        unknown = listed(make_npz(tmp_path / "b.npz", x_train=X, y_train=tags, x_val=X[:4], y_val=tags[:4]))
        assert np.isnan(unknown.parts["train"].tags).sum() == 1  # type: ignore[arg-type]


def bad_folders() -> list[Any]:
    return [
        ({}, "no such folder"),
        ({"": 3}, r"no class folders \(3 images"),
        (
            {"images": 5, "labels": 5},
            r"5 of 5 files in images/ have one of the same name in labels/.*data.masks=labels",
        ),
        ({"a": 3}, "only the class 'a'"),
        ({"a": 3, "b": 0}, "class 'b' has no images in train"),
        ({"a": 3, "b": 2}, "class 'b' has 2 images, too few to split"),
        ({"train/a": 3, "train/b": 3, "val/a": 1}, "class 'b' has no images in val"),
        ({"train/a": 3, "train/b": 3, "val/a": 1, "val/b": 1, "val/c": 1}, "'c' has no images in train, but val has"),
        ({"train/a": 3, "train/b": 3, "test/c": 1}, "'c' has no images in train, but test has"),
        ({"train/a": 3, "train/b": 3, "val/a": 1, "valid/a": 1}, "both look like the val part"),
        ({"val/a": 3, "test/b": 3}, "no train folder"),
    ]


@pytest.mark.parametrize(("counts", "message"), bad_folders())
def test_bad_folders(tmp_path: Path, counts: dict[str, int], message: str) -> None:
    make_folder(tmp_path / "data", counts)
    with pytest.raises(DataError, match=message):
        listed(tmp_path / "data")


def test_names_that_say_the_class_are_told_with_the_manifest_they_could_be(tmp_path: Path) -> None:
    loose = make_folder(tmp_path / "data", {"": 0})
    for i in range(6):
        (loose / f"{'cat' if i % 2 else 'dog'}_{i}.png").touch()
    with pytest.raises(DataError, match=r"cat \(3\), dog \(3\): write a manifest"):
        listed(loose)


def test_a_folder_that_cannot_be_listed_is_no_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_folder(tmp_path / "d", {"a/locked": 3, "b": 3})
    real = os.scandir

    def scandir(path: str) -> Any:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)  # permissions do not stop the administrator who may run this
    with pytest.raises(DataError, match=r"a/locked: cannot be listed \(Permission denied\)"):
        listed(root)


def test_a_missing_folder_suggests_its_neighbor(tmp_path: Path) -> None:
    make_folder(tmp_path, {"flowers": 1})
    with pytest.raises(DataError, match="Did you mean 'flowers'"):
        listed(tmp_path / "flower")


def test_a_class_that_test_lacks_is_a_notice(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "d", {"train/a": 4, "train/b": 4, "test/a": 1})
    assert "test has no images of b" in listed(root).notices[0]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x_train": X}, "no array 'y_train', only x_train"),
        ({"x_train": X, "y_train": Y, "x_val": X}, "no array 'y_val'"),
        ({"images": X}, "no array 'x_train', only images"),
        ({"x": X, "y": Y[:5]}, "12 images but 5 labels"),
        ({"x": X, "y": Y / 2}, "labels are float64.*whole numbers"),
        ({"x": X, "y": Y - 1}, "label -1 is negative"),
        ({"x": X, "y": Y * 2}, "class '1' has no images in train"),
        ({"x": X, "y": Y, "class_names": ["cat"]}, "label 1 has no class name"),
        ({"x": X + 1j, "y": Y}, "dtype complex128.*uint16 or float32"),
        ({"x": np.zeros((12, 8, 8, 8), np.uint8), "y": Y}, r"shape \(8, 8, 8\) does not tell which axis"),
        ({"x": X[0], "y": Y[:4]}, r"shape \(4, 4\)"),
        ({"x": X, "y": np.stack([Y, Y], 1)}, r"labels have shape \(12, 2\)"),
        ({"x": X, "y": np.stack([Y, Y], 1) * 2.0}, "a label is 2. Of several labels per image each is 0"),
        ({"x": X, "y": np.ones((12, 2)), "class_names": ["a"]}, "2 columns, but there are 1 classes"),
        ({"x_train": X, "y_train": np.ones((12, 2)), "x_val": X, "y_val": np.ones((12, 3))}, "have 2, 3 columns"),
        ({"x_train": X, "y_train": MASKS, "x_val": X, "y_val": Y}, "train are those of 'segment'"),
        ({"x": X, "m": MASKS[:5]}, "12 images but 5 masks"),
        ({"x": X, "m": MASKS / 2}, r"mask 0 has dtype float64 and shape \(4, 4\)"),
        ({"x": X, "m": MASKS * 0}, "only the class '0'"),
        ({"x": X, "y": np.array([None] * 12)}, "not readable as an .npz"),
        ({"x_train": X, "y_train": Y, "x_val": X, "y_val": Y + 1}, "class '2' has no images in train, but val has"),
    ],
)
def test_bad_npz(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        listed(make_npz(tmp_path / "bad.npz", **arrays))


def test_npz_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_text("no archive")
    for name in ("a.npz", "missing.npz"):
        with pytest.raises(DataError, match=f"{name}: (not readable|no such file)"):
            listed(tmp_path / name)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """Writes an importable module."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(name: str, text: str) -> Path:
        sys.modules.pop(name, None)
        path = tmp_path / f"{name}.py"
        path.write_text(text)
        return path

    return write


def test_user_function(module: Callable[[str, str], Path], photo_folder: Path) -> None:
    module(
        "my_data",
        "import numpy as np\n"
        "from pathlib import Path\n"
        f"files = sorted(Path({str(photo_folder)!r}).glob('*/*'))\n"
        "def paths(): return {'train': (files, [i // 20 for i in range(60)]), 'classes': ['x', 'y', 'z']}\n"
        "def arrays(): return {'train': (np.zeros((8, 5, 6, 3), np.uint8), np.arange(8) % 2),\n"
        "    'val': ([np.zeros((3, 4), np.uint8), np.zeros((5, 4, 3), np.uint8)], [0, 1])}\n"
        "def masks():\n"
        "    ragged = [np.eye(h, w, dtype=np.int64) for h, w in ((3, 4), (5, 4), (2, 9))]\n"
        "    images = [np.zeros(mask.shape, np.uint8) for mask in ragged]\n"
        "    return {'train': (images, ragged), 'val': (images, ragged), 'classes': ['ground', 'thing']}\n",
    )
    masks = listed("python:my_data:masks")
    assert (masks.task, masks.classes) == ("segment", ("ground", "thing"))
    assert [item.shape for item in masks.parts["val"].masks or ()] == [(3, 4), (5, 4), (2, 9)]  # type: ignore[union-attr]
    paths = listed("python:my_data:paths")
    assert paths.classes == ("x", "y", "z")
    assert [len(part.labels) for part in paths.parts.values()] == [42, 9, 9]
    assert [len(part.labels) for part in listed("python:my_data:arrays").parts.values()] == [8, 2, 0]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return 5", "returned int without the key 'train'"),
        ("return {'train': 5}", r"no pair \(images, labels\) under 'train'"),
        ("return {'train': ([], []), 'vall': ([], [])}", "unknown key 'vall'. Did you mean 'val'"),
        ("return {'train': ([], [])}", "no class"),
        ("return {'train': ([[1.5]], [0])}", r"image 0 has shape \(1,\)"),
        ("1 / 0", "ZeroDivisionError"),
    ],
)
def test_bad_user_function(module: Callable[[str, str], Path], body: str, message: str) -> None:
    module("bad_data", f"def load():\n    {body}\n")
    with pytest.raises(DataError, match=message):
        listed("python:bad_data:load")


def test_load_function_errors(module: Callable[[str, str], Path]) -> None:
    module("some_code", "value = 3\ndef load(): return 7\n")
    module("broken_code", "1 / 0\n")
    assert load_function("python:some_code:load", "data.source")() == 7
    for ref, message in {
        "python:some_code:laod": "'laod' does not exist.*Did you mean 'load'",
        "python:some_code:value": "'value' is no function",
        "python:no_such_code:load": "module 'no_such_code' was not found.*importable on every worker",
        "python:broken_code:load": "importing 'broken_code' failed.*ZeroDivisionError",
        "some_code.load": "write 'python:module:function'",
    }.items():
        with pytest.raises(ConfigError, match=f"data.source = .*{message}"):
            load_function(ref, "data.source")


def test_source_hash_follows_the_file_and_runs_nothing(module: Callable[[str, str], Path]) -> None:
    path = module("hashed_code", "raise SystemExit\n")
    first = source_hash("python:hashed_code:f")
    assert len(first) == 64
    path.write_text("raise SystemExit  # changed\n")
    assert source_hash("python:hashed_code:f") != first
    for ref in ("python:no_such_code:f", "python:no_such.code:f", "python:sys:exit"):
        with pytest.raises(ConfigError, match="importable on every worker"):
            source_hash(ref)
