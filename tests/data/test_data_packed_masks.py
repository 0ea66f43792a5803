"""Masks and several labels per image inside zips, tars and Parquet files: the same data set as unpacked, or refused."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet
from test_data_packed import Files, png, table, tarred, unpacked, zipped

from cvtune import study
from cvtune.data import Dataset, cache_folder, open_dataset, read_source
from cvtune.errors import DataError
from cvtune.looking import load
from cvtune.recipe import Data
from cvtune.sections import Source

COUNT = 12


def mask_bytes(i: int) -> bytes:
    """Class 1 in half of the pixels, class 2 in one row of every other mask; all different."""
    mask = np.zeros((8, 8), np.uint8)
    mask[:, :4] = 1
    mask[0] = 2 * (i % 2)
    mask[7, : i % 8] = 1
    content = io.BytesIO()
    Image.fromarray(mask).save(content, "PNG")
    return content.getvalue()


def pairs(images: str = "images/", masks: str = "masks/", count: int = COUNT) -> Files:
    return {f"{images}{i:02d}.png": png(i, 8) for i in range(count)} | {
        f"{masks}{i:02d}.png": mask_bytes(i) for i in range(count)
    }


def opened(root: Path, cache: Path, **settings: Any) -> Dataset:
    return open_dataset(Source(source=str(root), **settings), Data(image_size=8), cache_folder(cache), None, 2)


def content(data: Dataset) -> list[list[tuple[bytes, bytes]]]:
    parts = (data.train, data.val, data.test)
    return [[(a.tobytes(), b.tobytes()) for a, b in zip(p.images, p.masks or (), strict=True)] for p in parts]


@pytest.mark.parametrize("around", ["", "nuclei/"])
@pytest.mark.parametrize("pack", [zipped, tarred])
def test_an_archive_with_masks_is_the_folder_that_it_unpacks_to(
    tmp_path: Path, pack: Callable[[Path, Files], Path], around: str
) -> None:
    files = pairs() | {"train.txt": b"00\n01\n02\n03\n", "val.txt": b"04\n05\n", "classes.txt": b"a\nb\nc\n"}
    folder = opened(unpacked(tmp_path / "folder", files), tmp_path / "cache")
    suffix = ".zip" if pack is zipped else ".tar"
    archive = pack(tmp_path / f"d{suffix}", {f"{around}{name}": value for name, value in files.items()})
    packed = opened(archive, tmp_path / "cache")
    assert (packed.task, packed.classes, packed.fingerprint) == ("segment", ("a", "b", "c"), folder.fingerprint)
    assert content(packed) == content(folder)
    assert [len(part) for part in content(packed)] == [4, 2, 0]
    assert "6 images stand in no list and are ignored." in packed.notices
    assert load(str(archive)).recipe.model.name == "small_unet"
    assert load(str(tmp_path / "folder")).recipe.model.name == "small_unet"


def test_parts_of_masks(tmp_path: Path) -> None:
    """Parts by folders inside, on either level, or by the names of archives."""
    inside = {f"{top}{part}/{i:02d}.png": v for part in ("train", "val") for top in ("images/", "masks/")
              for i, v in enumerate(map(mask_bytes if top == "masks/" else lambda i: png(i, 8), range(4)))}  # fmt: skip
    outside = {f"{p}/{s}/{n}": v for name, v in inside.items() for s, p, n in [name.split("/")]}
    wanted = content(opened(unpacked(tmp_path / "folder", inside), tmp_path / "cache"))
    assert [len(part) for part in wanted] == [4, 4, 0]
    for name, files in {"inside": inside, "outside": outside}.items():
        assert content(opened(zipped(tmp_path / f"{name}.zip", files), tmp_path / "cache")) == wanted
    assert content(opened(unpacked(tmp_path / "outside", outside), tmp_path / "cache")) == wanted
    assert load(str(tmp_path / "outside")).recipe.model.name == "small_unet"
    for part in ("train", "val"):
        zipped(tmp_path / "zips" / f"{part}.zip", {n: v for n, v in outside.items() if n.startswith(part)})
    assert content(opened(tmp_path / "zips", tmp_path / "cache")) == wanted
    assert load(str(tmp_path / "zips")).recipe.model.name == "small_unet"


def test_webdataset_with_masks(tmp_path: Path) -> None:
    files = pairs("", "x", 0) | {f"{i:04d}.{end}": value for i in range(COUNT) for end, value in
                                 (("png", png(i, 8)), ("mask.png", mask_bytes(i)), ("cls", b"3"))}  # fmt: skip
    wanted = content(opened(unpacked(tmp_path / "folder", pairs()), tmp_path / "cache"))
    data = opened(tarred(tmp_path / "shard.tar", files), tmp_path / "cache")
    assert data.classes == ("0", "1", "2")
    assert sorted(chain(*content(data))) == sorted(chain(*wanted))
    assert load(str(tmp_path / "shard.tar")).recipe.model.name == "small_unet"
    del files["0003.mask.png"]
    with pytest.raises(DataError, match=r"shard.tar/0003.png: has no mask, and other images have"):
        read_source(Source(source=str(tarred(tmp_path / "shard.tar", files))))


@pytest.mark.parametrize(("column", "struct"), [("mask", False), ("annotation", True), ("label", True)])
def test_parquet_with_masks(tmp_path: Path, column: str, struct: bool) -> None:
    images, masks = ([f(i) for i in range(COUNT)] for f in (lambda i: png(i, 8), mask_bytes))
    split = ["train"] * 6 + ["validation"] * 4 + ["test"] * 2
    stored: Any = [{"bytes": mask, "path": None} for mask in masks] if struct else masks
    path = table(tmp_path / "d.parquet", image=images, split=split, **{column: stored})
    data = opened(path, tmp_path / "cache")
    assert [len(part) for part in content(data)] == [6, 4, 2]
    wanted = content(opened(unpacked(tmp_path / "folder", pairs()), tmp_path / "cache"))
    assert list(chain(*content(data))) == sorted(chain(*wanted), key=lambda pair: pair[0][0])
    assert load(str(path)).recipe.model.name == "small_unet"


def test_a_mask_that_is_missing_in_its_row_is_counted(tmp_path: Path) -> None:
    masks = [mask_bytes(i) if i != 5 else None for i in range(COUNT)]
    path = table(tmp_path / "d.parquet", image=[png(i, 8) for i in range(COUNT)], mask=masks)
    data = opened(path, tmp_path / "cache", max_corrupt=0.1)
    assert len(data.corrupt) == 1 and "the row has no bytes of a mask" in data.corrupt[0]


SEVERAL = [["cat"], ["cat", "dog"], ["dog"], [], ["ant", "dog"], ["ant"]] * 3


def tags_by_red(data: Any) -> dict[int, list[float]]:
    """The labels of each image, which is told by its color."""
    found = {}
    for part in (data.train, data.val, data.test):
        found |= {int(im[0, 0, 0]): tags.tolist() for im, tags in zip(part.images, part.tags, strict=True)}
    return dict(sorted(found.items()))


@pytest.mark.parametrize("kind", ["json", "names", "numbers", "huggingface"])
def test_several_labels_each(tmp_path: Path, kind: str) -> None:
    classes = ["ant", "cat", "dog"]
    numbers = [[classes.index(name) for name in names] for names in SEVERAL]
    images = [png(i, 8) for i in range(len(SEVERAL))]
    if kind == "json":
        files = {f"{i:02d}.png": image for i, image in enumerate(images)}
        files |= {f"{i:02d}.json": json.dumps({"labels": names}).encode() for i, names in enumerate(SEVERAL)}
        path = tarred(tmp_path / "d.tar", files)
    elif kind == "names":
        path = table(tmp_path / "d.parquet", image=images, labels=SEVERAL)
    else:
        said = {"info": {"features": {"labels": {"feature": {"names": classes, "_type": "ClassLabel"}}}}}
        metadata = {"huggingface": json.dumps(said)} if kind == "huggingface" else None
        labels = pa.array(numbers, pa.list_(pa.int64()))
        path = table(tmp_path / "d.parquet", metadata=metadata, image=images, labels=labels)
    data = opened(path, tmp_path / "cache")
    assert data.task == "multilabel"
    assert data.classes == (("0", "1", "2") if kind == "numbers" else tuple(classes))
    assert tags_by_red(data) == {i: [float(k in of_one) for k in range(3)] for i, of_one in enumerate(numbers)}


def test_parts_with_other_labels_are_brought_together(tmp_path: Path) -> None:
    for part, names in {
        "train": SEVERAL,
        "val": [[name for name in names if name != "ant"] for names in SEVERAL],
    }.items():
        images = [png(100 * (part == "val") + i, 8) for i in range(len(names))]
        table(tmp_path / "d" / f"{part}.parquet", image=images, labels=names)
    with pytest.raises(DataError, match="class 'ant' has no images in val"):
        opened(tmp_path / "d", tmp_path / "cache")
    data = opened(tmp_path / "d", tmp_path / "cache", classes={"ant": None})
    assert data.classes == ("cat", "dog") and tags_by_red(data)[101] == [1.0, 1.0]


def mixed(tmp_path: Path) -> Path:
    table(tmp_path / "d" / "train.parquet", image=[png(i) for i in range(4)], label=[0, 1, 0, 1])
    return table(
        tmp_path / "d" / "val.parquet", image=[png(i) for i in range(4)], mask=[mask_bytes(i) for i in range(4)]
    )


def lists_and_single(tmp_path: Path) -> Path:
    files = {f"{i}.png": png(i) for i in range(2)}
    return tarred(tmp_path / "d.tar", files | {"0.json": b'{"label": [1]}', "1.json": b'{"label": 1}'})


def other_images(tmp_path: Path) -> Path:
    return zipped(tmp_path / "d.zip", pairs() | {"images/spare.png": png(77, 8), "images/other.png": png(78, 8)})


BAD: dict[Callable[[Path], Path], str] = {
    lambda tmp: mixed(tmp).parent: "one class in train and masks in val. Give all parts the same",
    lists_and_single: "some images have a list of classes and others one class",
    other_images: r"d.zip: 2 of 14 images have no mask in masks/, for example images/other.png",
    lambda tmp: zipped(tmp / "d.zip", pairs() | {"val.txt": b"01"}): r"has val.txt but no train.txt",
    lambda tmp: zipped(tmp / "d.zip", pairs() | {"train.txt": b"\xff"}): r"train.txt: cannot be read",
}


@pytest.mark.parametrize("number", range(len(BAD)))
def test_bad_archives(tmp_path: Path, number: int) -> None:
    make, message = list(BAD.items())[number]
    with pytest.raises(DataError, match=message):
        read_source(Source(source=str(make(tmp_path))))


def test_the_built_in_study_follows_the_data(tmp_path: Path) -> None:
    """Masks get a model that segments, also where only the content of a file tells; anything else is left alone."""
    np.savez(tmp_path / "masks.npz", x=np.zeros((4, 8, 8), np.uint8), m=np.zeros((4, 8, 8), np.uint8))
    np.savez(tmp_path / "labels.npz", x=np.zeros((4, 8, 8), np.uint8), y=np.zeros(4, np.int64))
    parquet.write_table(pa.table({"path": ["a.png"], "mask": ["b.png"]}), tmp_path / "manifest.parquet")
    parquet.write_table(pa.table({"path": ["a.png"], "label": ["b"]}), tmp_path / "labels.parquet")
    (tmp_path / "torn.parquet").write_bytes(b"PAR1")
    names = {path.name: load(str(path)).recipe.model.name for path in tmp_path.iterdir()}
    segments = {name for name, model in names.items() if model == "small_unet"}
    assert segments == {"masks.npz", "manifest.parquet"}
    assert study.load(str(tmp_path / "manifest.parquet")).recipe.model.name == "small_resnet"  # nobody looked
