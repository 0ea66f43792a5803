"""Images in zips, tars and Parquet files: found, read in place, and refused where something is wrong."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import pickle
import shutil
import struct
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from cvtune import study
from cvtune.data import Listing, cache_folder, open_dataset, read_source, rows
from cvtune.data.compact import PackedItems
from cvtune.data.decode import decode, load
from cvtune.data.fingerprint import fingerprint
from cvtune.data.packed import Packed
from cvtune.errors import DataError
from cvtune.recipe import Data
from cvtune.sections import Source
from tests.conftest import SHARED

SPAWN = multiprocessing.get_context("spawn")
Files = dict[str, bytes]


def png(value: int, side: int = 4) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (side, side), (value, 0, 0)).save(content, "PNG")
    return content.getvalue()


def images(*folders: str, count: int = 4) -> Files:
    """PNG files `count` in each folder, all different: the red of the k-th one is k."""
    return {f"{f}/{i}.png": png(count * n + i) for n, f in enumerate(folders) for i in range(count)}


def zipped(path: Path, files: Mapping[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def tarred(path: Path, files: Mapping[str, bytes], form: int = tarfile.PAX_FORMAT, mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode, format=form) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            info.mtime = 1234567890.5  # type: ignore[assignment]  # a fraction makes a pax header, as WebDataset's are
            archive.addfile(info, io.BytesIO(content))
    return path


def table(path: Path, rows_per_group: int = 5, metadata: dict[str, str] | None = None, **columns: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    made = pa.table(columns).replace_schema_metadata(metadata)
    parquet.write_table(made, path, row_group_size=rows_per_group)
    return path


def unpacked(root: Path, files: Mapping[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def listed(source: object, **settings: Any) -> Listing:
    return read_source(Source(source=str(source), **settings))


def sizes(listing: Listing) -> list[int]:
    return [len(listing.parts[part].labels) for part in ("train", "val", "test")]


def reds(listing: Listing, part: str) -> list[int]:
    return [int(load(item)[0, 0, 0]) for item in listing.parts[part].items]


PACKERS: dict[str, Callable[[Path, Files], Path]] = {
    "stored.zip": lambda path, files: zipped(path, files, zipfile.ZIP_STORED),
    "deflated.zip": zipped,
    "pax.tar": tarred,
    "gnu.tar": lambda path, files: tarred(path, files, tarfile.GNU_FORMAT),
    "ustar.tar": lambda path, files: tarred(path, files, tarfile.USTAR_FORMAT),
}


@pytest.mark.parametrize("kind", PACKERS)
@pytest.mark.parametrize("around", ["", "photos/"])
def test_an_archive_is_the_folder_that_it_unpacks_to(tmp_path: Path, kind: str, around: str) -> None:
    """The same classes, parts, names, pixels and fingerprint, whatever order the members have."""
    files = images("cat", "dog", "a b/c", "é" * 40 + "/" + "x" * 70)
    folder = unpacked(tmp_path / "photos", files)
    shuffled = dict(sorted(files.items(), key=lambda item: item[1]))
    archive = PACKERS[kind](tmp_path / kind, {around + name: content for name, content in shuffled.items()})
    ours, theirs = listed(archive), listed(folder)
    assert ours.classes == theirs.classes
    assert list(ours.names()) == list(theirs.names())
    assert [load(i).tobytes() for i in ours.items()] == [load(i).tobytes() for i in theirs.items()]
    assert np.array_equal(ours.labels(), theirs.labels())
    cache = cache_folder(tmp_path / "cache")
    assert fingerprint(ours, cache, 2) == fingerprint(theirs, cache, 2)
    assert ours.notices == ()
    assert str(next(ours.items())).startswith(f"{archive}/{around}")


def test_parts_inside_an_archive(tmp_path: Path) -> None:
    files = images("d/train/a", "d/train/b") | images("d/Valid/a", "d/Valid/b", count=1) | {"d/extra/a/1.png": png(1)}
    listing = listed(zipped(tmp_path / "d.zip", files))
    assert sizes(listing) == [8, 2, 0]
    assert listing.notices == ("Only the parts Valid, train are used; extra beside them ignored.",)
    assert reds(listing, "val") == [0, 1]


def test_an_archive_for_each_part(tmp_path: Path) -> None:
    zipped(tmp_path / "d" / "train.zip", images("a", "b"))
    zipped(tmp_path / "d" / "val.zip", images("val/a", "val/b", count=2))
    zipped(tmp_path / "d" / "test.zip", images("a", "b", count=1))
    (tmp_path / "d" / "README.md").write_text("beside")
    listing = listed(tmp_path / "d")
    assert sizes(listing) == [8, 4, 2]
    assert "train.zip/a/0.png" in list(listing.names())
    assert reds(listing, "val") == [0, 1, 2, 3]
    assert listing.parts["val"].labels.tolist() == [0, 0, 1, 1]


def test_a_folder_with_class_folders_is_no_folder_of_archives(tmp_path: Path) -> None:
    unpacked(tmp_path / "d", images("a", "b"))
    zipped(tmp_path / "d" / "original.zip", images("a", "b"))
    assert all(isinstance(item, Path) for item in listed(tmp_path / "d").items())


def test_hidden_files_are_ignored_and_others_counted(tmp_path: Path) -> None:
    junk = {"__MACOSX/a/._0.png": b"x", "a/.DS_Store": b"x", ".git/a/0.png": b"x", "a/notes.txt": b"x", "README": b"x"}
    listing = listed(zipped(tmp_path / "d.zip", images("a", "b") | junk))
    assert sum(sizes(listing)) == 8
    assert listing.notices == ("1 files without an image's extension were ignored, for example a/notes.txt.",)


def samples(count: int, label: Callable[[int], Files], start: int = 0) -> Files:
    found: Files = {}
    for i in range(start, start + count):
        found[f"s/{i:04d}.png"] = png(i)
        found |= {f"s/{i:04d}.{ending}": content for ending, content in label(i).items()}
    return found


LABELS: dict[str, tuple[Callable[[int], Files], tuple[str, ...]]] = {
    "numbers": (lambda i: {"cls": str(i % 2).encode()}, ("0", "1")),
    "names": (lambda i: {"cls": b"dog\n" if i % 2 else b"cat\n", "txt": b"a caption"}, ("cat", "dog")),
    "json": (lambda i: {"json": json.dumps({"w": 4, "label": i % 2}).encode()}, ("0", "1")),
    "json names": (lambda i: {"json": json.dumps({"class": "ab"[i % 2]}).encode()}, ("a", "b")),
    "both": (lambda i: {"json": b'{"w": 4}', "cls": str(i % 2).encode()}, ("0", "1")),
}


@pytest.mark.parametrize("kind", LABELS)
def test_webdataset(tmp_path: Path, kind: str) -> None:
    label, classes = LABELS[kind]
    for shard in range(2):
        tarred(tmp_path / f"train-{shard:03d}.tar", samples(6, label, 6 * shard))
    tarred(tmp_path / "val-000.tar", samples(2, label, 12))
    for source in (tmp_path, tmp_path / "{train,val}-{000..001}.tar", tmp_path / "*.tar"):
        if "{train,val}" in str(source):
            tarred(tmp_path / "val-001.tar", samples(2, label, 14))
        listing = listed(source)
        assert listing.classes == classes
        assert sizes(listing)[0] == 12
        assert reds(listing, "train") == list(range(12))
        assert listing.parts["train"].labels.tolist() == [0, 1] * 6
        assert next(listing.names()) == "train-000.tar/s/0000.png"
    assert sizes(listing) == [12, 4, 0]


def test_webdataset_with_class_names_beside(tmp_path: Path) -> None:
    for shard in range(3):
        tarred(tmp_path / "shards" / f"{shard}.tar", samples(4, LABELS["numbers"][0], 4 * shard))
    assert listed(tmp_path / "shards").classes == ("0", "1")
    (tmp_path / "shards" / "classes.txt").write_text("cat\ndog\n")
    listing = listed(tmp_path / "shards" / "{0..2}.tar")
    assert listing.classes == ("cat", "dog")
    assert sizes(listing) == [8, 2, 2]  # split by class
    (tmp_path / "shards" / "classes.txt").write_text("cat\n")
    with pytest.raises(DataError, match=r"classes.txt: names 1 classes, and the largest label is 1"):
        listed(tmp_path / "shards")


HUGGING_FACE = {"huggingface": json.dumps({"info": {"features": {"label": {"names": ["dog", "cat"]}}}})}


def test_parquet_of_hugging_face(tmp_path: Path) -> None:
    for name, count in (("train-00000-of-00002-ab", 11), ("train-00001-of-00002-cd", 5), ("test-00000-of-00001-ef", 4)):
        image = [{"bytes": png(i), "path": f"{i}.png"} for i in range(count)]
        table(tmp_path / "data" / f"{name}.parquet", 3, HUGGING_FACE, image=image, label=[i % 2 for i in range(count)])
    listing = listed(tmp_path, val_share=0.25)
    assert listing.classes == ("dog", "cat")
    assert sizes(listing) == [13, 3, 4]
    both = sorted([*reds(listing, "train"), *reds(listing, "val")])
    assert both == sorted([*range(11), *range(5)])
    assert reds(listing, "test") == [0, 1, 2, 3]
    assert list(listing.names())[-1] == "data/test-00000-of-00001-ef.parquet/3"


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_parquet_of_plain_bytes_with_names_and_a_split(tmp_path: Path, kind: pa.DataType) -> None:
    labels = pa.array(["b", "a"] * 6).cast(kind)
    split = ["train"] * 8 + ["validation"] * 2 + ["test"] * 2
    path = table(tmp_path / "d.parquet", picture=[png(i) for i in range(12)], cls=labels, split=split)
    listing = listed(path)
    assert listing.classes == ("a", "b")
    assert sizes(listing) == [8, 2, 2]
    assert listing.parts["val"].labels.tolist() == [1, 0]
    assert reds(listing, "test") == [10, 11]
    assert list(listing.names())[-1] == "11"


def test_rows_of_one_group_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = table(tmp_path / "d.parquet", 5, image=[png(i) for i in range(20)], label=[0, 1] * 10)
    listing = listed(path, test_share=0)
    groups: list[int] = []
    real = rows._Table.group
    monkeypatch.setattr(
        rows._Table, "group", lambda self, number, masks: groups.append(number) or real(self, number, masks)
    )
    with ThreadPoolExecutor(4) as pool:
        assert len(list(pool.map(load, listing.parts["train"].items))) == 18
    assert groups == [0, 1, 2, 3]
    monkeypatch.setattr(rows, "KEEP_BYTES", 1)
    rows.forget()
    for row in (0, 1, 19, 0):
        rows.read_row(path, row)
    assert groups[4:] == [0, 3, 0]


def red_elsewhere(item: Packed, pipe: Any) -> None:
    pipe.send(int(load(item)[0, 0, 0]))


@pytest.mark.parametrize("how", ["spawn", "fork"])
@pytest.mark.parametrize("kind", ["zip", "parquet"])
def test_another_process_reads_for_itself(tmp_path: Path, kind: str, how: str) -> None:
    if kind == "zip":
        listing = listed(zipped(tmp_path / "d.zip", images("a", "b")))
    else:
        listing = listed(table(tmp_path / "d.parquet", image=[png(i) for i in range(8)], label=[0, 1] * 4))
    item = listing.parts["train"].items[2]
    assert isinstance(item, Packed)
    here = int(load(item)[0, 0, 0])
    mine, theirs = SPAWN.Pipe()
    process = multiprocessing.get_context(how).Process(target=red_elsewhere, args=(item, theirs))
    process.start()
    assert mine.poll(60)
    assert mine.recv() == here
    process.join()


def test_many_threads_read_one_archive(tmp_path: Path) -> None:
    files = images("a", "b", count=60)
    listing = listed(zipped(tmp_path / "d.zip", files))
    wanted = list(listing.items()) * 20
    with ThreadPoolExecutor(8) as pool:
        for item, content in zip(wanted, pool.map(Packed.read, wanted), strict=True):
            assert content == files[item.name]


def test_items_stay_compact(tmp_path: Path) -> None:
    listing = listed(zipped(tmp_path / "d.zip", images("a", "b", count=30)))
    train = listing.parts["train"]
    assert isinstance(train.items, PackedItems)
    some = train.take(np.array([4, 1]))
    assert isinstance(some.items, PackedItems)
    assert list(some.items) == [train.items[4], train.items[1]]
    assert list(pickle.loads(pickle.dumps(train.items))) == list(train.items)
    assert list(train.items[1:5:2]) == [train.items[1], train.items[3]]
    assert train.items[-1] == train.items[len(train.items) - 1]
    with pytest.raises(IndexError):
        train.items[len(train.items)]


def test_a_data_set_is_opened_from_an_archive(photo_folder: Path, tmp_path: Path) -> None:
    """Through the store, without one, and remembered while the archive stays as it is."""
    archive = Path(shutil.make_archive(str(tmp_path / "photos"), "zip", photo_folder))
    os.utime(archive, (10**9, 10**9))
    cache = cache_folder(tmp_path / "cache")
    settings = Data(image_size=32)
    of_folder = open_dataset(Source(source=str(photo_folder)), settings, cache, None, 2)
    dataset = open_dataset(Source(source=str(archive)), settings, cache, None, 2)
    assert dataset.fingerprint == of_folder.fingerprint
    assert dataset.store == of_folder.store
    fresh = cache_folder(tmp_path / "other")
    without = open_dataset(Source(source=str(archive)), settings, fresh, 0, 2)
    assert without.store is None
    for part in ("train", "val", "test"):
        pairs = zip(getattr(without, part).images, getattr(dataset, part).images, strict=True)
        assert all(np.array_equal(a, b) for a, b in pairs)
    archive.write_bytes(bytes(archive.stat().st_size))  # who reads it again will notice
    os.utime(archive, (10**9, 10**9))
    assert fingerprint(listed(photo_folder), cache, 1).digest == dataset.fingerprint


def test_a_changed_archive_has_another_fingerprint(tmp_path: Path) -> None:
    cache = cache_folder(tmp_path / "cache")
    prints = []
    for value in (1, 2):
        archive = zipped(tmp_path / "d.zip", images("a", "b") | {"a/0.png": png(value)}, zipfile.ZIP_STORED)
        os.utime(archive, (10**9 + value, 10**9 + value))
        prints += [fingerprint(listed(archive), cache, 2) for _ in range(2)]
    assert prints[0] == prints[1] != prints[2] == prints[3]


def with_flag(path: Path, flag: int) -> Path:
    """Sets a bit of the flags in each central header."""
    content = bytearray(path.read_bytes())
    at = content.find(b"PK\1\2")
    while at >= 0:
        content[at + 8] |= flag
        at = content.find(b"PK\1\2", at + 1)
    path.write_bytes(content)
    return path


def stating(path: Path, size: int) -> Path:
    """Makes the first member state another size of its content."""
    content = bytearray(path.read_bytes())
    at = content.find(b"PK\1\2")
    content[at + 24 : at + 28] = struct.pack("<I", size)
    path.write_bytes(content)
    return path


def cut(path: Path, share: float) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    return path


def damaged(path: Path) -> Path:
    """Spoils a header in the middle of a tar."""
    content = bytearray(path.read_bytes())
    content[2 * 1024 : 2 * 1024 + 100] = b"!" * 100
    path.write_bytes(content)
    return path


TWO = images("a", "b")
BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda d: d / "nope.zip", "nope.zip: no such file. Check the path"),
    "no match": (lambda d: d / "nope-{0..3}.tar", r"nope-0.tar: no such file"),
    "no zip": (
        lambda d: unpacked(d, {"x.zip": b"hello"}) / "x.zip",
        "x.zip: not readable as a zip",
    ),
    "torn zip": (lambda d: cut(zipped(d / "x.zip", TWO), 0.7), "x.zip: not readable as a zip"),
    "empty tar": (lambda d: unpacked(d, {"x.tar": b""}) / "x.tar", "x.tar: not readable as a tar"),
    "torn tar": (lambda d: cut(tarred(d / "x.tar", {"a/big.png": bytes(9000)} | TWO), 0.2), "ends within 'a/big.png'"),
    "cut tar": (
        lambda d: cut(tarred(d / "x.tar", TWO, tarfile.USTAR_FORMAT), 0.4),
        "it ends without the blocks that end a tar",
    ),
    "damaged tar": (
        lambda d: damaged(tarred(d / "x.tar", TWO, tarfile.USTAR_FORMAT)),
        r"as a tar \(bad checksum\)",
    ),
    "gzip": (
        lambda d: tarred(d / "x.tar.gz", TWO, mode="w:gz"),
        "only be read from its beginning",
    ),
    "gzip named tar": (lambda d: tarred(d / "x.tar", TWO, mode="w:gz"), "is a compressed tar.*gunzip"),
    "encrypted": (
        lambda d: with_flag(zipped(d / "x.zip", TWO), 1),
        "'a/0.png' is encrypted. Pack it anew",
    ),
    "bzip2": (
        lambda d: zipped(d / "x.zip", TWO, zipfile.ZIP_BZIP2),
        "compressed by method 12. Zips are read",
    ),
    "bomb": (
        lambda d: stating(zipped(d / "x.zip", TWO), 2**31),
        "'a/0.png' states 2 GiB, and a file",
    ),
    "leaves": (
        lambda d: zipped(d / "x.zip", TWO | {"../c/0.png": b"x"}),
        r"holds '../c/0.png', which leads out of the archive",
    ),
    "absolute": (
        lambda d: tarred(d / "x.tar", TWO | {"/c/0.png": b"x"}),
        "holds '/c/0.png', which leads out of the archive",
    ),
    "twice": (lambda d: tarred(d / "x.tar", TWO | {"./a/0.png": b"x"}), "holds 'a/0.png' twice"),
    "nested": (
        lambda d: zipped(d / "x.zip", {"train.zip": b"x"}),
        "holds the archive 'train.zip'. Archives",
    ),
    "no classes": (
        lambda d: zipped(d / "x.zip", {"1.png": b"x", "2.png": b"x"}),
        r"no class folders inside \(2",
    ),
    "one class": (lambda d: zipped(d / "x.zip", images("a")), "only the class 'a'"),
    "no train inside": (
        lambda d: zipped(d / "x.zip", images("val/a", "val/b", "test/a")),
        "has test, val inside but",
    ),
    "two vals": (
        lambda d: zipped(d / "x.zip", images("train/a", "val/a", "valid/a")),
        "'valid' and another folder inside both look like the val part",
    ),
    "no train": (
        lambda d: (zipped(d / "s" / "val.zip", TWO), zipped(d / "s" / "test.zip", TWO))[0].parent,
        "has archives of test, val but none whose name begins with train",
    ),
    "two kinds": (
        lambda d: (zipped(d / "s" / "0.zip", TWO), tarred(d / "s" / "1.tar", TWO))[0].parent,
        "holds .tar and .zip files. Keep one kind",
    ),
    "unlabelled": (
        lambda d: tarred(d / "x.tar", samples(4, LABELS["numbers"][0]) | {"s/9.png": png(9)}),
        r"x.tar/s/9.png: has no class. Each image of a WebDataset needs",
    ),
    "two images": (
        lambda d: tarred(d / "x.tar", samples(4, LABELS["numbers"][0]) | {"s/0001.jpg": png(9)}),
        "sample 's/0001' has two images, 's/0001.png' and 's/0001.jpg'",
    ),
    "mixed labels": (
        lambda d: tarred(d / "x.tar", samples(4, lambda i: {"cls": b"dog" if i else b"0"})),
        "the class is 0 of one image and 'dog' of another",
    ),
    "odd label": (
        lambda d: tarred(d / "x.tar", samples(4, lambda i: {"json": b'{"label": -1}'})),
        "0000.json: the class is -1. Classes are whole numbers",
    ),
    "broken json": (
        lambda d: tarred(d / "x.tar", samples(4, lambda i: {"json": b'{"label"'})),
        "0000.json: not readable as a label",
    ),
    "no parquet": (lambda d: unpacked(d, {"x.parquet": b"hello"}) / "x.parquet", "x.parquet: not readable as Parquet"),
    "no images": (
        lambda d: table(d / "s" / "x.parquet", label=[0, 1]).parent,
        "no single column of image files, only label",
    ),
    "no labels": (lambda d: table(d / "x.parquet", image=[b"", b""]), "no column 'label' or 'mask', only image"),
    "null label": (lambda d: table(d / "x.parquet", image=[b""] * 3, label=[0, None, 1]), "row 1 has no label"),
    "float labels": (lambda d: table(d / "x.parquet", image=[b""] * 2, label=[0.5, 1]), "labels are double. They must"),
    "negative labels": (
        lambda d: table(d / "x.parquet", image=[b""] * 2, label=[-1, 1]),
        "labels are int64 from -1 to 1",
    ),
    "sparse labels": (
        lambda d: table(d / "x.parquet", image=[b""] * 2, label=[0, 10**8]),
        "the largest label is 100000000, but there are 2 images",
    ),
    "huge label": (
        lambda d: tarred(d / "x.tar", samples(4, lambda i: {"json": b'{"label": 1e99}'.replace(b"1e99", b"9" * 99)})),
        "0000.json: the class is 9{99}. Classes are whole numbers",
    ),
    "unknown split": (
        lambda d: table(d / "x.parquet", image=[b""] * 2, label=[0, 1], split=["train", "tset"]),
        "the split 'tset' is unknown. Did you mean 'test'",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_archives(tmp_path: Path, kind: str) -> None:
    make, message = BAD[kind]
    with pytest.raises(DataError, match=message):
        listed(make(tmp_path))


def test_a_group_of_rows_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cvtune.data.parquet.MOST_BYTES", 200)
    path = table(tmp_path / "x.parquet", image=[png(0)] * 20, label=[0, 1] * 10)
    with pytest.raises(DataError, match="Write it anew with row_group_size=256"):
        listed(path)


def spoiled(path: Path, content: bytes) -> Path:
    """The archive with the first occurrence of `content` changed in its last byte."""
    whole = path.read_bytes()
    assert content in whole
    path.write_bytes(whole.replace(content, content[:-1] + b"!", 1))
    return path


def test_what_is_wrong_with_one_image_is_told_when_it_is_decoded(tmp_path: Path) -> None:
    archive = spoiled(zipped(tmp_path / "x.zip", TWO, zipfile.ZIP_STORED), TWO["a/1.png"])
    item = next(item for item in listed(archive).items() if isinstance(item, Packed) and item.name == "a/1.png")
    with pytest.raises(DataError, match=r"x.zip/a/1.png: cannot be decoded \(its bytes do not fit the checksum"):
        decode(item)
    lying = stating(zipped(tmp_path / "lying.zip", {"a/0.png": bytes(5000)} | TWO), 100)
    item = next(item for item in listed(lying).items() if isinstance(item, Packed) and item.name == "a/0.png")
    with pytest.raises(DataError, match="it does not unpack to the size that the archive states"):
        decode(item)
    archive.unlink()
    gone = listed(zipped(tmp_path / "gone.tar.zip", TWO))
    (tmp_path / "gone.tar.zip").unlink()
    with pytest.raises(DataError, match=r"cannot be decoded .*No such file"):
        decode(next(gone.items()))  # type: ignore[arg-type]
    path = table(tmp_path / "x.parquet", image=[png(0), None] * 4, label=[0, 0, 1, 1] * 2)
    with pytest.raises(DataError, match=r"x.parquet/1: cannot be decoded \(the row has no bytes of an image\)"):
        decode(next(i for i in listed(path).items() if isinstance(i, Packed) and i.offset == 1))


def test_an_archive_is_a_target_of_the_command_line(tmp_path: Path) -> None:
    assert study.load(str(zipped(tmp_path / "my photos.zip", TWO))).name == "my-photos"
    tarred(tmp_path / "shards" / "train-000.tar", TWO)
    made = study.load(str(tmp_path / "shards" / "train-{000..000}.tar"))
    assert made.name == "shards"
    assert sum(sizes(read_source(made.data))) == 8
    with pytest.raises(DataError, match="compressed tar"):
        read_source(study.load(str(tmp_path / "x.tar.gz")).data)


def test_sign_digits_are_read_from_their_zips() -> None:
    if not (SHARED / "sign_digits").is_dir():
        pytest.skip("needs shared/data/sign_digits")
    listing = listed(SHARED / "sign_digits")
    assert sizes(listing) == [1442, 310, 310]
    assert listing.classes == tuple("0123456789")
    assert listing.notices == ()
    item = listing.parts["test"].items[0]
    assert load(item).shape == (100, 100, 3)
    assert str(item).startswith(f"{SHARED}/sign_digits/test.zip/0/")
