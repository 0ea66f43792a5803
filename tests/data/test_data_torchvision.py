"""Published data sets: small ones in the layouts that torchvision expects, and what the table says of torchvision."""

from __future__ import annotations

import bz2
import email
import hashlib
import inspect
import io
import json
import pickle
import struct
import sys
import urllib.request
import urllib.response
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from torchvision import datasets

from cvtune.data import Listing, read_source
from cvtune.data.cache import cache_folder
from cvtune.data.decode import load
from cvtune.data.fingerprint import fingerprint
from cvtune.data.torchvision import ROWS, Row, data_folder, find_row, require
from cvtune.errors import ConfigError, DataError
from cvtune.sections import Source
from cvtune.study import for_data

SHADE = 60  # the images of class k have the value k x SHADE everywhere, so that images tell their labels


@pytest.fixture(autouse=True)
def root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("CVTUNE_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


def listed(name: str, **settings: Any) -> Listing:
    return read_source(Source(source=f"torchvision:{name}", **settings))


def picture(path: Path, label: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (9, 8), (label * SHADE,) * 3).save(path)


def lines(path: Path, *text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in text))


def idx(array: np.ndarray[Any, Any]) -> bytes:
    return struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def fashion(root: Path, patch: pytest.MonkeyPatch) -> None:
    raw = root / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", 50), ("t10k", 20)):
        labels = (np.arange(count) % 10).astype(np.uint8)
        images = np.broadcast_to((labels % 4 * SHADE)[:, None, None], (count, 28, 28)).astype(np.uint8)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(idx(images))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(idx(labels))


def cifar(root: Path, patch: pytest.MonkeyPatch) -> None:
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name in ("data_batch_1", "test_batch"):
        labels = [0, 1, 2] * 4
        content = {"data": np.repeat(np.array(labels, np.uint8)[:, None] * SHADE, 3072, axis=1), "labels": labels}
        (folder / name).write_bytes(pickle.dumps(content))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": ["plane", "car", "bird"]}))
    patch.setattr(datasets.CIFAR10, "train_list", [["data_batch_1", md5(folder / "data_batch_1")]])
    patch.setattr(datasets.CIFAR10, "test_list", [["test_batch", md5(folder / "test_batch")]])
    patch.setattr(datasets.CIFAR10, "meta", {**datasets.CIFAR10.meta, "md5": md5(folder / "batches.meta")})


def svhn(root: Path, patch: pytest.MonkeyPatch) -> None:
    root.mkdir()
    table = {}
    for part in ("train", "test"):
        labels = np.array([10, 1, 2] * 4)  # the file says 10 for the digit 0
        images = np.broadcast_to(labels % 10 * SHADE, (32, 32, 3, 12)).astype(np.uint8)
        savemat(root / f"{part}_32x32.mat", {"X": images, "y": labels[:, None]})
        table[part] = ["", f"{part}_32x32.mat", md5(root / f"{part}_32x32.mat")]
    patch.setattr(datasets.SVHN, "split_list", table)


def stl10(root: Path, patch: pytest.MonkeyPatch) -> None:
    folder = root / "stl10_binary"
    folder.mkdir(parents=True)
    table: dict[str, list[list[str]]] = {}
    for part in ("train", "test"):
        labels = np.array([0, 1, 2] * 4, np.uint8)
        (folder / f"{part}_X.bin").write_bytes(np.repeat(labels * SHADE, 3 * 96 * 96).tobytes())
        (folder / f"{part}_y.bin").write_bytes((labels + 1).tobytes())
        table[part] = [[file, md5(folder / file)] for file in (f"{part}_X.bin", f"{part}_y.bin")]
    lines(folder / "class_names.txt", "airplane", "bird", "car")
    patch.setattr(datasets.STL10, "train_list", table["train"])
    patch.setattr(datasets.STL10, "test_list", table["test"])


def usps(root: Path, patch: pytest.MonkeyPatch) -> None:
    root.mkdir()
    for name in ("usps.bz2", "usps.t.bz2"):
        rows = (
            f"{label + 1} " + " ".join(f"{i + 1}:{label * SHADE / 127.5 - 1:.6f}" for i in range(256))
            for label in [0, 1, 2] * 4
        )
        (root / name).write_bytes(bz2.compress("\n".join(rows).encode()))


def gtsrb(root: Path, patch: pytest.MonkeyPatch) -> None:
    base = root / "gtsrb"
    for label in range(3):
        for i in range(4):
            picture(base / "GTSRB" / "Training" / f"{label:05d}" / f"{i}.ppm", label)
            picture(base / "GTSRB" / "Final_Test" / "Images" / f"{label}{i}.ppm", label)
    rows = [f"{label}{i}.ppm;{label}" for label in range(3) for i in range(4)]
    lines(base / "GT-final_test.csv", "Filename;ClassId", *rows)


def food(root: Path, patch: pytest.MonkeyPatch) -> None:
    for part in ("train", "test"):
        names = {kind: [f"{kind}/{part}{i}" for i in range(4)] for kind in ("apple_pie", "nachos", "waffles")}
        lines(root / "food-101" / "meta" / f"{part}.json", json.dumps(names))
        for label, files in enumerate(names.values()):
            for file in files:
                picture(root / "food-101" / "images" / f"{file}.jpg", label)


def flowers(root: Path, patch: pytest.MonkeyPatch) -> None:
    folder = root / "flowers-102"
    for number in range(36):
        picture(folder / "jpg" / f"image_{number + 1:05d}.jpg", number % 3)
    savemat(folder / "imagelabels.mat", {"labels": np.arange(36) % 3 + 1})
    parts = dict(zip(("trnid", "valid", "tstid"), np.split(np.arange(1, 37), 3), strict=True))
    savemat(folder / "setid.mat", parts)
    known = datasets.Flowers102._file_dict
    changed = {key: (known[key][0], md5(folder / known[key][0])) for key in ("label", "setid")}
    patch.setattr(datasets.Flowers102, "_file_dict", {**known, **changed})
    patch.setattr(datasets.Flowers102, "classes", datasets.Flowers102.classes[:3])


def pets(root: Path, patch: pytest.MonkeyPatch) -> None:
    base = root / "oxford-iiit-pet"
    for part in ("trainval", "test"):
        rows = [f"{name}_{part}{i} {k + 1} 1 1" for k, name in enumerate(("Bengal", "boxer", "pug")) for i in range(4)]
        lines(base / "annotations" / f"{part}.txt", *rows)
        for row in rows:
            picture(base / "images" / f"{row.split()[0]}.jpg", int(row.split()[1]) - 1)


def dtd(root: Path, patch: pytest.MonkeyPatch) -> None:
    for part in ("train", "val", "test"):
        rows = [f"{name}/{part}{i}.jpg" for name in ("banded", "dotted", "zigzagged") for i in range(4)]
        lines(root / "dtd" / "dtd" / "labels" / f"{part}1.txt", *rows)
        for i, row in enumerate(rows):
            picture(root / "dtd" / "dtd" / "images" / row, i // 4)


def aircraft(root: Path, patch: pytest.MonkeyPatch) -> None:
    base = root / "fgvc-aircraft-2013b" / "data"
    lines(base / "variants.txt", "707-320", "A300B4", "Tu-154")
    for part in ("train", "val", "test"):
        rows = [f"{part}{k}{i} {name}" for k, name in enumerate(("707-320", "A300B4", "Tu-154")) for i in range(4)]
        lines(base / f"images_variant_{part}.txt", *rows)
        for i, row in enumerate(rows):
            picture(base / "images" / f"{row.split()[0]}.jpg", i // 4)


def country(root: Path, patch: pytest.MonkeyPatch) -> None:
    for part in ("train", "valid", "test"):
        for label, name in enumerate(("AD", "BE", "CH")):
            for i in range(4):
                picture(root / "country211" / part / name / f"{i}.jpg", label)


def eurosat(root: Path, patch: pytest.MonkeyPatch) -> None:
    for label, name in enumerate(("Forest", "Highway", "River")):
        for i in range(12):
            picture(root / "eurosat" / "2750" / name / f"{name}_{i}.jpg", label)


def sun(root: Path, patch: pytest.MonkeyPatch) -> None:
    names = ("a/abbey", "b/bar/indoor", "y/yard")
    lines(root / "SUN397" / "ClassName.txt", *(f"/{name}" for name in names))
    for label, name in enumerate(names):
        for i in range(12):
            picture(root / "SUN397" / name / f"sun_{i}.jpg", label)


def caltech101(root: Path, patch: pytest.MonkeyPatch) -> None:
    for label, name in enumerate(("Faces", "ant", "wrench", "BACKGROUND_Google")):
        for i in range(12):
            picture(root / "caltech101" / "101_ObjectCategories" / name / f"image_{i + 1:04d}.jpg", label)


def caltech256(root: Path, patch: pytest.MonkeyPatch) -> None:
    for label, name in enumerate(("001.ak47", "002.american-flag", "003.backpack")):
        for i in range(12):
            file = f"{label + 1:03d}_{i + 1:04d}.jpg"
            picture(root / "caltech256" / "256_ObjectCategories" / name / file, label)


Make = Callable[[Path, pytest.MonkeyPatch], None]
LAYOUTS: dict[str, tuple[Make, tuple[int, int, int]]] = {  # how it is made; train, val and test with equal shares
    "FashionMNIST": (fashion, (40, 10, 20)),
    "USPS": (usps, (9, 3, 12)),
    "CIFAR10": (cifar, (9, 3, 12)),
    "SVHN": (svhn, (9, 3, 12)),
    "STL10": (stl10, (9, 3, 12)),
    "GTSRB": (gtsrb, (9, 3, 12)),
    "Flowers102": (flowers, (12, 12, 12)),
    "OxfordIIITPet": (pets, (9, 3, 12)),
    "Food101": (food, (9, 3, 12)),
    "DTD": (dtd, (12, 12, 12)),
    "FGVCAircraft": (aircraft, (12, 12, 12)),
    "Country211": (country, (12, 12, 12)),
    "EuroSAT": (eurosat, (24, 6, 6)),
    "SUN397": (sun, (24, 6, 6)),
    "Caltech101": (caltech101, (24, 6, 6)),
    "Caltech256": (caltech256, (24, 6, 6)),
}
SAME_AS = {"MNIST": "FashionMNIST", "KMNIST": "FashionMNIST", "CIFAR100": "CIFAR10"}


def test_every_row_is_read_somewhere_here() -> None:
    assert {row.name for row in ROWS} == LAYOUTS.keys() | SAME_AS.keys()
    assert issubclass(datasets.FashionMNIST, datasets.MNIST) and issubclass(datasets.KMNIST, datasets.MNIST)
    assert issubclass(datasets.CIFAR100, datasets.CIFAR10)


@pytest.mark.parametrize("name", LAYOUTS)
def test_official_parts_and_the_right_label_for_each_image(
    name: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, sizes = LAYOUTS[name]
    make(root, monkeypatch)
    listing = listed(name, val_share=0.25 if len(find_row(f"torchvision:{name}").parts) > 1 else 0.2, test_share=0.2)
    assert tuple(len(listing.parts[part].labels) for part in ("train", "val", "test")) == sizes
    assert len(listing.classes) == (10 if name == "FashionMNIST" else 3) and all(listing.classes)
    for item, label in zip(listing.items(), listing.labels(), strict=True):
        assert abs(float(load(item).mean()) - label % 4 * SHADE) < 3
    assert len(set(listing.names())) == sum(sizes) and not any(str(root) in file for file in listing.names())


def test_fingerprint_depends_on_the_content_and_not_on_the_place(
    root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def digest() -> str:
        return fingerprint(listed("EuroSAT"), cache_folder(tmp_path / "cache"), 1)

    eurosat(root, monkeypatch)
    before = digest()
    root.rename(tmp_path / "elsewhere")
    monkeypatch.setenv("CVTUNE_DATA", str(tmp_path / "elsewhere"))
    assert digest() == before
    picture(tmp_path / "elsewhere" / "eurosat" / "2750" / "River" / "River_0.jpg", 0)
    assert digest() != before


def test_an_absent_set_names_folder_and_remedy(root: Path) -> None:
    with pytest.raises(DataError, match=r"'torchvision:CIFAR10': cifar-10-batches-py is not in .*cvtune fetch") as told:
        listed("CIFAR10")
    assert str(root) in str(told.value)
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte, .* are not in"):
        require("torchvision:FashionMNIST")


@pytest.mark.parametrize(("name", "meant"), [("CIFAR", "CIFAR10"), ("cifar10", "CIFAR10"), ("FashonMNIST", "Fashion")])
def test_a_wrong_name_hears_the_nearest_and_all(name: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=f"'torchvision:{name}'.*Did you mean 'torchvision:{meant}") as told:
        listed(name)
    assert all(f"torchvision:{row.name}" in str(told.value) for row in ROWS)


def test_a_torn_set_is_told_apart_from_an_absent_one(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cifar(root, monkeypatch)
    (root / "cifar-10-batches-py" / "test_batch").write_bytes(b"half")
    with pytest.raises(DataError, match=r"cifar-10-batches-py in .* cannot be read .*corrupted.*move it away"):
        listed("CIFAR10")


def test_default_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CVTUNE_DATA")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data_folder() == tmp_path / ".cache" / "cvtune" / "data"


def test_the_built_in_study_suits_the_set() -> None:
    study = for_data("torchvision:SVHN")
    assert (study.name, study.recipe.augment.flip, study.recipe.data.image_size) == ("SVHN", "none", 32)
    photos = for_data("torchvision:Food101").recipe
    assert photos == for_data("some/folder").recipe


# --- what the table says of torchvision


class AnyAnswer(urllib.request.BaseHandler):
    """The network: every address answers, with one byte that is no data set."""

    handler_order = 1  # before the one that would ask the real network

    def answer(self, request: urllib.request.Request) -> Any:
        response: Any = urllib.response.addinfourl(
            io.BytesIO(b"x"), email.message_from_string(""), request.full_url, 200
        )
        response.msg, response.length = "OK", 1
        return response

    http_open = https_open = answer


@pytest.fixture
def any_answer() -> Iterator[None]:
    urllib.request.install_opener(urllib.request.build_opener(AnyAnswer()))
    yield
    urllib.request.install_opener(None)  # type: ignore[arg-type]


each_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)


@each_row
def test_row_fits_the_installed_torchvision(row: Row) -> None:
    known = getattr(datasets, row.name)
    arguments = set(inspect.signature(known).parameters)
    assert {"root", "download"} | {name for one in row.parts.values() for name in one} <= arguments
    assert {"train"} <= set(row.parts) <= {"train", "val", "test"}


@each_row
@pytest.mark.usefixtures("any_answer")
def test_archives_are_the_files_that_torchvision_downloads(row: Row, root: Path) -> None:
    """Who cannot download puts them there by hand, so the error has to name them as torchvision does."""
    root.mkdir()
    for part in row.parts:
        with pytest.raises(Exception, match=r"."):
            row.open(root, part, download=True)
    written = {str(file.relative_to(root)) for file in root.rglob("*") if file.is_file()}
    assert written and written <= set(row.archives)


def test_the_table_loads_neither_torch_nor_torchvision() -> None:
    import subprocess

    code = "import sys, cvtune.data.torchvision as t; t.find_row('torchvision:DTD').missing(t.data_folder()); "
    code += "print([m for m in ('torch', 'torchvision') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
