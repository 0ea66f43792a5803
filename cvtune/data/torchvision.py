"""Published data sets as torchvision stores them: 'torchvision:CIFAR10' and others, one row of a table each.

Nothing is downloaded here. `cvtune fetch` brings a set into the folder where `read` looks for it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cvtune.data.arrays import listing_of
from cvtune.data.listing import Listing
from cvtune.errors import ConfigError, DataError, did_you_mean
from cvtune.sections import TORCHVISION, Source

DEFAULT_FOLDER = "~/.cache/cvtune/data"  # where $CVTUNE_DATA names no other

Reader = Callable[[Any], tuple[Any, Any]]  # data set of torchvision -> its images (arrays or paths) and labels


@dataclass(frozen=True)
class Row:
    """One data set.

    Attributes:
        name: of its class in `torchvision.datasets`.
        parts: train, val, test -> arguments that select the part. Only train: the source's shares are split off.
        there: what lies in the data folder once the set is there, relative to it.
        archives: the files that are downloaded, relative to it; who has them already puts them there.
        read: gives images and labels of a part.
        paths: whether images are files, decoded when they are needed.
    """

    name: str
    parts: Mapping[str, Mapping[str, Any]]
    there: tuple[str, ...]
    archives: tuple[str, ...]
    read: Reader
    paths: bool = True

    def missing(self, folder: Path) -> list[str]:
        """What of the set is not in `folder`; imports and opens nothing."""
        return [name for name in self.there if not (folder / name).exists()]

    def open(self, folder: Path, part: str, download: bool = False) -> Any:
        """torchvision's own object of a part. It raises whatever torchvision does."""
        from torchvision import datasets  # late: needs torch, which takes seconds

        return getattr(datasets, self.name)(str(folder), download=download, **self.parts[part])


def _arrays(labels: str, channels_first: bool = False) -> Reader:
    def read(opened: Any) -> tuple[Any, Any]:
        images = np.asarray(opened.data)
        return images.transpose(0, 2, 3, 1) if channels_first else images, getattr(opened, labels)

    return read


def _files(images: str = "_image_files", labels: str = "_labels") -> Reader:
    return lambda opened: _sorted(zip(getattr(opened, images), getattr(opened, labels), strict=True))


def _pairs(name: str) -> Reader:
    return lambda opened: _sorted(getattr(opened, name))


def _numbered(folder: str, pattern: str) -> Reader:
    """Caltech's files, which are counted per class: `pattern` is formatted with the class from 1 and the number."""

    def read(opened: Any) -> tuple[Any, Any]:
        root = Path(opened.root, folder)
        names = (pattern.format(label + 1, number) for label, number in zip(opened.y, opened.index, strict=True))
        return [root / opened.categories[label] / name for label, name in zip(opened.y, names, strict=True)], opened.y

    return read


def _sorted(pairs: Any) -> tuple[list[Path], list[int]]:
    """By path: some sets are listed in the order that the disk gives, and every machine must see the same."""
    ordered = sorted((Path(path), int(label)) for path, label in pairs)
    return [path for path, _ in ordered], [label for _, label in ordered]


def _mnist(name: str) -> Row:
    raw = tuple(
        f"{name}/raw/{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
    )
    return Row(name, TRAIN_FLAG, raw, tuple(f"{file}.gz" for file in raw), _arrays("targets"), paths=False)


TRAIN_FLAG = {"train": {"train": True}, "test": {"train": False}}
SPLIT = {"train": {"split": "train"}, "test": {"split": "test"}}
SPLIT_VAL = {**SPLIT, "val": {"split": "val"}}
WHOLE: dict[str, dict[str, Any]] = {"train": {}}

ROWS = (
    _mnist("MNIST"),
    _mnist("FashionMNIST"),
    _mnist("KMNIST"),
    Row("USPS", TRAIN_FLAG, ("usps.bz2", "usps.t.bz2"), ("usps.bz2", "usps.t.bz2"), _arrays("targets"), paths=False),
    Row("CIFAR10", TRAIN_FLAG, ("cifar-10-batches-py",), ("cifar-10-python.tar.gz",), _arrays("targets"), paths=False),
    Row("CIFAR100", TRAIN_FLAG, ("cifar-100-python",), ("cifar-100-python.tar.gz",), _arrays("targets"), paths=False),
    Row(
        "SVHN",
        SPLIT,
        ("train_32x32.mat", "test_32x32.mat"),
        ("train_32x32.mat", "test_32x32.mat"),
        _arrays("labels", channels_first=True),
        paths=False,
    ),
    Row("STL10", SPLIT, ("stl10_binary",), ("stl10_binary.tar.gz",), _arrays("labels", channels_first=True), False),
    Row(
        "GTSRB",
        SPLIT,
        ("gtsrb/GTSRB/Training", "gtsrb/GTSRB/Final_Test/Images", "gtsrb/GT-final_test.csv"),
        ("gtsrb/GTSRB-Training_fixed.zip", "gtsrb/GTSRB_Final_Test_Images.zip", "gtsrb/GTSRB_Final_Test_GT.zip"),
        _pairs("_samples"),
    ),
    Row(
        "Flowers102",
        SPLIT_VAL,
        ("flowers-102/jpg", "flowers-102/imagelabels.mat", "flowers-102/setid.mat"),
        ("flowers-102/102flowers.tgz", "flowers-102/imagelabels.mat", "flowers-102/setid.mat"),
        _files(),
    ),
    Row(
        "OxfordIIITPet",
        {"train": {"split": "trainval"}, "test": {"split": "test"}},
        ("oxford-iiit-pet/images", "oxford-iiit-pet/annotations"),
        ("oxford-iiit-pet/images.tar.gz", "oxford-iiit-pet/annotations.tar.gz"),
        _files("_images"),
    ),
    Row("Food101", SPLIT, ("food-101/meta", "food-101/images"), ("food-101.tar.gz",), _files()),
    Row("DTD", SPLIT_VAL, ("dtd/dtd",), ("dtd/dtd-r1.0.1.tar.gz",), _files()),
    Row("FGVCAircraft", SPLIT_VAL, ("fgvc-aircraft-2013b",), ("fgvc-aircraft-2013b.tar.gz",), _files()),
    Row("Country211", {**SPLIT, "val": {"split": "valid"}}, ("country211",), ("country211.tgz",), _pairs("samples")),
    Row("EuroSAT", WHOLE, ("eurosat/2750",), ("eurosat/EuroSAT.zip",), _pairs("samples")),
    Row("SUN397", WHOLE, ("SUN397",), ("SUN397.tar.gz",), _files()),
    Row(
        "Caltech101",
        WHOLE,
        ("caltech101/101_ObjectCategories",),
        ("caltech101/caltech-101.zip",),
        _numbered("101_ObjectCategories", "image_{1:04d}.jpg"),
    ),
    Row(
        "Caltech256",
        WHOLE,
        ("caltech256/256_ObjectCategories",),
        ("caltech256/256_ObjectCategories.tar",),
        _numbered("256_ObjectCategories", "{0:03d}_{1:04d}.jpg"),
    ),
)


def data_folder() -> Path:
    """The folder of all published data sets: $CVTUNE_DATA, else `DEFAULT_FOLDER`. It need not exist."""
    return Path(os.environ.get("CVTUNE_DATA") or DEFAULT_FOLDER).expanduser().absolute()


def find_row(source: str) -> Row:
    """The row of 'torchvision:NAME'.

    Raises:
        ConfigError: there is no such row.
    """
    rows = {TORCHVISION + row.name: row for row in ROWS}
    if source not in rows:
        spelled = {name.lower(): name for name in rows}.get(source.lower(), source)
        raise ConfigError(
            f"data.source = {source!r} is not a data set that cvtune reads. {did_you_mean(spelled, rows, len(rows))} "
            "Any other can be a folder of images, an .npz file or a 'python:module:function' that returns it."
        )
    return rows[source]


def require(source: str) -> None:
    """Check that the set is where `read` looks for it, without opening it.

    Raises:
        ConfigError: `source` names no set that there is.
        DataError: it is not there.
    """
    row, folder = find_row(source), data_folder()
    if missing := row.missing(folder):
        raise DataError(
            f"data.source = {source!r}: {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not in {folder} "
            f"($CVTUNE_DATA, else {DEFAULT_FOLDER}). A run downloads nothing: call `cvtune fetch TARGET` with this "
            "run's TARGET and --set on a machine with a network that shares this folder, or set CVTUNE_DATA to the "
            "folder that holds the set."
        )


def read(source: Source) -> Listing:
    """Lists the official parts. Without an official val, `val_share` of train; without any part, both shares.

    Raises:
        ConfigError: `source` names no set that there is.
        DataError: the set is not there, or not whole.
    """
    require(source.source)
    row, folder = find_row(source.source), data_folder()
    try:
        opened = {part: row.open(folder, part) for part in row.parts}
        raw = {part: row.read(one) for part, one in opened.items()}
    except Exception as error:  # torchvision raises whatever a torn file makes it
        raise DataError(
            f"{source.source}: {', '.join(row.there)} in {folder} cannot be read ({type(error).__name__}: {error}). "
            "It is probably not whole: move it away, then `cvtune fetch TARGET` brings it anew."
        ) from error
    named = next((found for name in ("classes", "categories") if (found := getattr(opened["train"], name, None))), None)
    return listing_of(source, raw, named, root=folder if row.paths else None)
