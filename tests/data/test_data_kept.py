"""Where decoded images do not fit, compressed ones are kept: the same pixels, and the source is read no more."""

from __future__ import annotations

import errno
import pickle
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from cvtune.data import Dataset, cache_folder, kept, open_dataset, rows, store
from cvtune.data.dataset import Part
from cvtune.data.kept import KeptItems
from cvtune.data.packed import Packed
from cvtune.errors import DataError
from cvtune.recipe import Data
from cvtune.sections import Source

SIDE = 48


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return cache_folder(tmp_path / "cache")


@pytest.fixture
def large(photos: Sequence[np.ndarray], tmp_path: Path) -> Path:
    """24 photos in two classes, larger than training needs: PNG, BMP, JPEG, and one far longer than high."""
    root = tmp_path / "large"
    for i, photo in enumerate(photos):
        suffix = ("png", "bmp", "jpg")[i % 3]
        path = root / "ab"[i % 2] / f"{i:02d}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        shape = (900, 70) if i == 4 else (photo.shape[1] * 3, photo.shape[0] * 3)
        Image.fromarray(cv2.resize(photo, shape, interpolation=cv2.INTER_CUBIC)).save(path, quality=90)
    return root


def opened(root: Path, cache: Path, limit: int | None, fit: str = "crop", **settings: Any) -> Dataset:
    data = Data.model_validate({"image_size": 32, "store_size": SIDE, "fit": fit})
    return open_dataset(Source(source=str(root), **settings), data, cache, limit, 2)


def parts(dataset: Dataset) -> tuple[Part, Part, Part]:
    return dataset.train, dataset.val, dataset.test


def same(one: Dataset, other: Dataset) -> bool:
    pairs = [(a.images, b.images) for a, b in zip(parts(one), parts(other), strict=True)]
    pairs += [(a.masks, b.masks) for a, b in zip(parts(one), parts(other), strict=True) if a.masks and b.masks]
    return all(np.array_equal(x, y) for a, b in pairs for x, y in zip(a, b, strict=True))


def sources(dataset: Dataset) -> list[object]:
    return [item for part in parts(dataset) for item in part.images.items]  # type: ignore[attr-defined]


def size(dataset: Dataset) -> int:
    assert dataset.store is not None
    return dataset.store.stat().st_size


@pytest.mark.parametrize("fit", ["crop", "squash"])
def test_all_are_kept_with_the_pixels_of_the_store(large: Path, cache: Path, tmp_path: Path, fit: str) -> None:
    stored = opened(large, cache_folder(tmp_path / "roomy"), None, fit)
    limit = int(0.7 * size(stored))
    dataset = opened(large, cache, limit, fit)
    assert dataset.store is None
    assert same(dataset, stored)
    assert {str(item)[-5:] for item in sources(dataset)} == {".webp"}  # all that training needs of them is smaller
    (file,) = cache.glob("*.kept")
    assert file.stat().st_size < 0.7 * limit
    (notice,) = dataset.notices
    assert "GB are allowed" in notice
    assert notice.endswith("GB), so that the source is read no more.")
    shutil.rmtree(large)
    assert same(dataset, stored)
    assert same(pickle.loads(pickle.dumps(dataset)), stored)


def test_small_files_are_kept_as_they_are(photo_folder: Path, cache: Path, tmp_path: Path) -> None:
    dataset = opened(photo_folder, cache, 200_000)
    assert same(dataset, opened(photo_folder, cache_folder(tmp_path / "roomy"), None))
    items = sources(dataset)
    assert all(isinstance(item, Packed) for item in items)
    contents = {path.read_bytes() for path in photo_folder.glob("*/*")}
    assert {item.read() for item in items if isinstance(item, Packed)} == contents


def test_what_does_not_fit_is_read_from_the_source(large: Path, cache: Path, tmp_path: Path) -> None:
    stored = opened(large, cache_folder(tmp_path / "roomy"), None)
    dataset = opened(large, cache, 40_000)
    assert same(dataset, stored)
    (file,) = cache.glob("*.kept")
    assert 30_000 < file.stat().st_size <= 40_000
    count = sum(isinstance(item, Packed) for item in sources(dataset))
    assert 4 < count < 20
    assert f" {count} of 24 files are kept here compressed" in dataset.notices[-1]
    assert all(isinstance(item, Packed) for item in sources(dataset)[:count])  # train first
    file.unlink()  # by whoever empties caches
    assert same(dataset, stored)


def test_it_is_made_once_and_again_when_twice_as_much_is_allowed(
    large: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    real = kept._write
    monkeypatch.setattr(kept, "_write", lambda *given: made.append(given[4]) or real(*given))
    for limit in (30_000, 30_000, 50_000, 20_000, 60_000, 60_000):
        opened(large, cache, limit)
    assert made == [30_000, 60_000]
    (file,) = cache.glob("*.kept")
    assert file.stat().st_size > 30_000


@pytest.mark.parametrize("tear", ["file", "index", "lost index"])
def test_what_is_torn_is_made_anew(large: Path, cache: Path, tmp_path: Path, tear: str) -> None:
    stored = opened(large, cache_folder(tmp_path / "roomy"), None)
    opened(large, cache, 40_000)
    (file,) = cache.glob("*.kept")
    (index,) = cache.glob("*.kept-index")
    whole = file.read_bytes()
    if tear == "lost index":
        index.unlink()
    else:
        torn = file if tear == "file" else index
        torn.write_bytes(torn.read_bytes()[:-100])
    assert same(opened(large, cache, 40_000), stored)
    assert file.read_bytes() == whole


def test_nothing_is_kept_where_nothing_is_allowed(large: Path, cache: Path) -> None:
    dataset = opened(large, cache, 0)
    assert all(isinstance(item, Path) for item in sources(dataset))
    assert not list(cache.glob("*.kept*"))
    assert "compressed" not in dataset.notices[-1]


@pytest.mark.parametrize("room", [0, 20_000])
def test_of_a_full_disk_half_is_left_free(
    large: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, room: int
) -> None:
    stored = opened(large, cache_folder(tmp_path / "roomy"), None)
    real = store.os.write
    left = room

    def full(descriptor: int, content: Any) -> int:
        nonlocal left
        if left < len(content):
            raise OSError(errno.ENOSPC, "No space left on device")
        left -= len(content)
        return real(descriptor, content)

    opened(large, cache, 100)  # which images are corrupt is known now
    monkeypatch.setattr("cvtune.data.store.os.write", full)
    dataset = opened(large, cache, int(0.7 * size(stored)))
    files = list(cache.glob("*.kept"))
    assert sum(file.stat().st_size for file in files) <= room // 2
    assert bool(files) == bool(room)
    assert not list(cache.glob("*.part"))
    assert same(dataset, stored)


def test_masks_are_kept_as_they_are(photos: Sequence[np.ndarray], cache: Path, tmp_path: Path) -> None:
    root = tmp_path / "cells"
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i, photo in enumerate(photos):
        Image.fromarray(photo).save(root / "images" / f"{i}.png")
        Image.fromarray(rng.integers(0, 3, photo.shape[:2], dtype=np.uint8)).save(root / "masks" / f"{i}.png")
    stored = opened(root, cache_folder(tmp_path / "roomy"), None)
    assert stored.task == "segment"
    dataset = opened(root, cache, size(stored) - 10_000)
    assert dataset.store is None
    assert same(dataset, stored)
    masks = dataset.train.masks
    assert masks is not None
    assert isinstance(masks.items, KeptItems)  # type: ignore[attr-defined]
    assert masks.items[0].read() in {path.read_bytes() for path in (root / "masks").iterdir()}  # type: ignore[attr-defined]


def test_a_parquet_file_is_read_in_order_once(
    photo_folder: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drawn at random, each image would cost a group of rows."""
    files = sorted(photo_folder.glob("*/*"))
    columns = {"image": [file.read_bytes() for file in files], "label": [file.parent.name for file in files]}
    parquet.write_table(pa.table(columns), tmp_path / "p.parquet", row_group_size=10)
    dataset = opened(tmp_path / "p.parquet", cache, 200_000)
    monkeypatch.setattr(rows, "read_row", lambda path, row: pytest.fail("the source was read again"))
    assert sum(len(list(part.images)) for part in parts(dataset)) == 60


def test_an_image_that_cannot_be_read_now_stays_with_its_source(
    large: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = opened(large, cache_folder(tmp_path / "roomy"), None)
    real = kept.decode_bytes

    def sometimes(content: bytes, name: str) -> np.ndarray:
        if name.endswith("00.png"):
            raise DataError(f"{name}: the network is away")
        return real(content, name)

    monkeypatch.setattr(kept, "decode_bytes", sometimes)
    dataset = opened(large, cache, int(0.7 * size(stored)))
    assert [Path(str(item)).name for item in sources(dataset) if isinstance(item, Path)] == ["00.png"]
    assert same(dataset, stored)
