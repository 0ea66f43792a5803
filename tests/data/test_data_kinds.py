"""Data sets of images that are no photos: what the store keeps and measures, and images of another kind among them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from cvtune.data import Dataset, open_dataset, open_store
from cvtune.data.loader import evaluation_batch
from cvtune.data.store import read_index
from cvtune.errors import DataError
from cvtune.kinds import LEVELS, PHOTO, PHOTOS, Kind, Stats, shown, values_of
from cvtune.recipe import Data
from cvtune.sections import Source

RNG = np.random.default_rng(0)
Arrays = dict[str, np.ndarray]  # name of the file: image


def arrays_of(kind: Kind, count: int = 24, side: tuple[int, int] = (21, 27)) -> Arrays:
    """Half of them of class a, half of b, which is brighter; channel k is 10 ** k times as bright as the first."""
    most = 60000 if kind.dtype == "uint16" else 255 if kind.dtype == "uint8" else 1.0
    made = {}
    for i in range(count):
        name = "ab"[i % 2]
        noise = RNG.random((*side, kind.channels)) * (0.3 + 0.7 * (name == "b")) * most
        scale = 10.0 ** -np.arange(kind.channels) if kind.dtype == "float32" else 1.0
        made[f"{name}/{i}.npy"] = (noise * scale).astype(kind.dtype)
    return made


def written(root: Path, arrays: Arrays) -> Path:
    for name, array in arrays.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(root / name, array)
    return root


def opened(root: Path, cache: Path, limit: int | None = None, size: int = 32, **settings: Any) -> Dataset:
    return open_dataset(Source(source=str(root), **settings), Data(image_size=size), cache, limit, 2)


def images(dataset: Dataset) -> list[np.ndarray]:
    return [part.images[i] for part in (dataset.train, dataset.val, dataset.test) for i in range(len(part.images))]


KINDS = [Kind("uint16", 1), Kind("uint16", 4), Kind("float32", 1), Kind("float32", 7), Kind("uint8", 2)]


@pytest.mark.parametrize("limit", [None, 5000])  # with a store, and with files that are decoded at each access
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_every_number_of_every_image_is_kept(tmp_path: Path, kind: Kind, limit: int | None) -> None:
    arrays = arrays_of(kind)
    dataset = opened(written(tmp_path / "d", arrays), tmp_path / "cache", limit)
    assert dataset.kind == kind and (dataset.store is None) == (limit is not None) and not dataset.corrupt
    left = {array.tobytes() for array in arrays.values()}
    for image in images(dataset):
        assert image.dtype == kind.dtype and image.flags.aligned and not image.flags.writeable
        left.remove(np.ascontiguousarray(image).tobytes())
    assert not left
    again = pickle.loads(pickle.dumps(dataset))
    np.testing.assert_array_equal(images(again)[3], images(dataset)[3])
    assert again.stats == dataset.stats


def test_a_ramp_of_all_sixteen_bits_comes_back(tmp_path: Path) -> None:
    """Nothing is quantized: each of the 65536 values is found where it was, in a file, the store, and a batch."""
    ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    root = written(tmp_path / "d", {f"{c}/{i}.npy": np.rot90(ramp, i) for i in range(4) for c in "ab"})
    dataset = opened(root, tmp_path / "cache", size=256, val_share=0.25, test_share=0)
    for image in images(dataset):
        assert np.array_equal(np.unique(image), np.arange(65536))
    batch = evaluation_batch(dataset.train.images, range(len(dataset.train.images)), 256, "crop")
    assert batch.dtype == np.uint16
    for square in batch:
        assert any(np.array_equal(square[..., 0], np.rot90(ramp, k)) for k in range(4))


def test_what_is_measured_of_the_training_images(tmp_path: Path) -> None:
    dataset = opened(written(tmp_path / "d", arrays_of(Kind("float32", 3))), tmp_path / "cache")
    train = np.concatenate([image.reshape(-1, 3) for image in dataset.train.images]).astype(np.float64)
    stats = dataset.stats
    assert stats is not None and dataset.store is not None
    np.testing.assert_allclose(stats.mean, train.mean(0), rtol=1e-9)
    np.testing.assert_allclose(stats.std, train.std(0), rtol=1e-9)
    np.testing.assert_allclose(
        np.array(stats.quantiles) / train.max(0)[:, None],
        np.quantile(train, LEVELS, axis=0).T / train.max(0)[:, None],
        atol=0.04,
    )
    index = read_index(dataset.store)
    assert index is not None and index.stats == stats == getattr(open_store(dataset.store), "stats", None)
    low, high = 0.1, 0.5
    clipped = train[:, 0].clip(low, high)
    mean, std = stats.clipped(low, high)
    assert abs(mean[0] - clipped.mean()) < 0.01 and abs(std[0] - clipped.std()) < 0.01
    assert stats.clipped(None, None) == (stats.mean, stats.std)


def test_an_offset_does_not_hide_the_spread(tmp_path: Path) -> None:
    arrays = {name: array + np.float32(20000) for name, array in arrays_of(Kind("float32", 1)).items()}
    dataset = opened(written(tmp_path / "d", arrays), tmp_path / "cache")
    train = np.concatenate([image.reshape(-1) for image in dataset.train.images]).astype(np.float64)
    assert dataset.stats is not None
    np.testing.assert_allclose(dataset.stats.std[0], train.std(), rtol=1e-6)


@pytest.mark.parametrize("kind", [Kind("uint16", 1), Kind("uint16", 6), Kind("float32", 5)], ids=str)
@pytest.mark.parametrize("fit", ["crop", "squash"])
def test_large_images_are_averaged_in_their_own_type(tmp_path: Path, kind: Kind, fit: Any) -> None:
    """Blocks of 4 x 4 pixels become their mean, up to the largest value: nothing wraps around, no channel is lost."""
    arrays = arrays_of(kind, 8, (48, 48))
    if kind.dtype == "uint16":
        arrays["a/0.npy"][:] = 65535
    data = Data(image_size=8, store_size=12, fit=fit)
    source = Source(source=str(written(tmp_path / "d", arrays)), val_share=0.25, test_share=0)
    dataset = open_dataset(source, data, tmp_path / "cache", None, 1)
    blocks = [a.reshape(12, 4, 12, 4, -1).mean((1, 3), dtype=np.float64) for a in arrays.values()]
    near = 0.51 if kind.dtype == "uint16" else 1e-6
    for image in images(dataset):
        assert any(np.abs(image - block).max() <= near for block in blocks)


MULTI = Kind("uint16", 4)


def spoiled(root: Path) -> Path:
    """Among 200 images with 4 channels one each that is something else."""
    written(root, arrays_of(MULTI, 200, (9, 9)))
    odd = {"two channels": RNG.integers(0, 9, (9, 9, 2), dtype=np.uint16), "floats": np.ones((9, 9, 4), np.float32)}
    for name, array in odd.items():
        np.save(root / "a" / f"{name}.npy", array)
    Image.fromarray(RNG.integers(0, 255, (9, 9, 3), dtype=np.uint8)).save(root / "a" / "photo.png")
    np.save(root / "a" / "nothing.npy", np.full((9, 9, 4), np.nan, np.float32))
    return root


def test_images_of_another_kind_are_skipped_and_counted(tmp_path: Path) -> None:
    dataset = opened(spoiled(tmp_path / "d"), tmp_path / "cache", max_corrupt=0.05)
    assert dataset.kind == MULTI and len(images(dataset)) == 200
    said = " ".join(dataset.corrupt)
    assert (
        "a/two channels.npy: is uint16 with 2 channels, the images of this data set are uint16 with 4 channels" in said
    )
    assert "a/floats.npy: is float32 with 4 channels" in said and "a/photo.png: is uint8 with 3 channels" in said
    assert "a/nothing.npy: cannot be decoded (324 of 324 values are NaN" in said
    assert dataset.stats is not None and len(dataset.stats.mean) == 4
    with pytest.raises(DataError, match=r"4 of 204 images \(2.0%\) cannot be used"):
        opened(tmp_path / "d", tmp_path / "cache")


def test_sixteen_bits_among_photos_are_skipped_and_not_squeezed(tmp_path: Path, photo_folder: Path) -> None:
    root = tmp_path / "d"
    root.mkdir()
    for folder in photo_folder.iterdir():
        (root / folder.name).mkdir()
        for path in folder.iterdir():
            (root / folder.name / path.name).write_bytes(path.read_bytes())
    Image.fromarray(np.full((40, 40), 5000, np.uint16)).save(root / "flower" / "deep.png")
    dataset = opened(root, tmp_path / "cache", max_corrupt=0.05)
    assert (dataset.kind, dataset.stats, len(images(dataset))) == (PHOTO, None, 60)
    assert dataset.corrupt == (
        "flower/deep.png: is uint16 with 1 channel, the images of this data set are uint8 with 3 channels",
    )


def test_gray_photos_stay_photos(tmp_path: Path) -> None:
    for i in range(12):
        (tmp_path / "d" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(RNG.integers(0, 255, (20, 20), dtype=np.uint8)).save(tmp_path / "d" / "ab"[i % 2] / f"{i}.png")
    assert opened(tmp_path / "d", tmp_path / "cache").kind == PHOTO


@pytest.mark.parametrize("limit", [None, 3000])
def test_masks_beside_images_of_many_channels(tmp_path: Path, limit: int | None) -> None:
    """21 x 27 pixels: an odd number, after which the next image must still lie at an even place."""
    root = written(tmp_path, {f"images/{i}.npy": a for i, a in enumerate(arrays_of(MULTI).values())})
    (root / "masks").mkdir()
    for i in range(24):
        tifffile.imwrite(root / "masks" / f"{i}.tif", (RNG.random((21, 27)) > 0.5).astype(np.uint8))
    dataset = opened(root, tmp_path / "cache", limit)
    assert (dataset.task, dataset.kind) == ("segment", MULTI)
    stored = {np.load(path).tobytes(): path.stem for path in root.glob("images/*.npy")}
    for part in (dataset.train, dataset.val, dataset.test):
        assert part.masks is not None
        for i in range(len(part.images)):
            assert part.images[i].flags.aligned
            name = stored[np.ascontiguousarray(part.images[i]).tobytes()]
            np.testing.assert_array_equal(part.masks[i], tifffile.imread(root / "masks" / f"{name}.tif"))


def test_an_npz_and_a_manifest_of_floats(tmp_path: Path) -> None:
    arrays = arrays_of(Kind("float32", 7))
    labels = np.array([name[0] == "b" for name in arrays], np.int64)
    np.savez(tmp_path / "d.npz", x=np.stack(list(arrays.values())), y=labels)
    first = opened(tmp_path / "d.npz", tmp_path / "cache")
    assert first.kind == Kind("float32", 7) and images(first)[0].dtype == np.float32
    np.savez(tmp_path / "e.npz", x=np.stack(list(arrays.values())).view(np.int32) % 9, y=labels)
    assert opened(tmp_path / "e.npz", tmp_path / "cache").fingerprint != first.fingerprint
    written(tmp_path, arrays)
    rows = "".join(f"{name},{name[0]},{float(name[0] == 'b')}\n" for name in arrays)
    (tmp_path / "list.csv").write_text(f"path,labels,note\n{rows}")
    listed = opened(tmp_path / "list.csv", tmp_path / "cache")
    assert (listed.task, listed.kind) == ("multilabel", Kind("float32", 7))


STATS = Stats((1.0, 2.0), (1.0, 1.0), (tuple(np.linspace(-100, 300, len(LEVELS))), (5.0,) * len(LEVELS)))


def test_what_is_dark_and_bright() -> None:
    assert values_of(PHOTO, None) == PHOTOS
    values = values_of(Kind("float32", 2), STATS)
    assert values.low[0] == pytest.approx(-100, abs=5) and values.high[0] == pytest.approx(300, abs=5)
    assert (values.low[1], values.high[1]) == (5.0, 6.0)  # nothing is ever divided by zero
    set_by_hand = values_of(Kind("float32", 2), STATS, -50.0, 150.0)
    assert set_by_hand.low == (-50.0, -50.0) and set_by_hand.high == (150.0, 150.0)
    assert values_of(PHOTO, None, 20.0, 220.0).low == (20.0, 20.0, 20.0)


def test_how_images_are_shown() -> None:
    photo = RNG.integers(0, 256, (5, 6, 3), dtype=np.uint8)
    assert shown(photo, PHOTOS) is photo
    values = values_of(Kind("float32", 2), STATS, 0.0, 100.0)
    two = np.array([[[-9.0, 1.0], [50.0, 1.0], [1e9, 1.0]]], np.float32)
    assert shown(two, values).tolist() == [[[0] * 3, [128] * 3, [255] * 3]]  # the first channel, as gray
    many = Stats((0.0,) * 5, (1.0,) * 5, tuple(tuple(np.linspace(0, k + 1, len(LEVELS))) for k in range(5)))
    values = values_of(Kind("float32", 5), many)
    made = shown(np.array([[[0.5, 1.0, 1.5, 9, 9]]], np.float32), values)
    assert made.shape == (1, 1, 3) and np.ptp(made) <= 1  # each channel by its own span
