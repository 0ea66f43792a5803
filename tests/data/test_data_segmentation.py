"""Images with masks: folders, what masks are, how they are kept, and what is said of masks that cannot be used."""

from __future__ import annotations

import os
import pickle
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cvtune.data import Dataset, cache_folder, decode, open_dataset, read_source
from cvtune.data.listing import IGNORE
from cvtune.errors import ConfigError, DataError
from cvtune.recipe import Data
from cvtune.sections import Source

NUCLEI = Path(__file__).resolve().parents[3] / "shared" / "data" / "dsb2018_nuclei"
SHOWN = [0, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2]  # the class, beside 0, that each image shows


def mask_of(kind: int, height: int = 12, width: int = 16) -> np.ndarray:
    """Class 1 fills the left half; class 2 two rows of it."""
    mask = np.zeros((height, width), np.uint8)
    if kind:
        mask[:, : width // 2] = 1
    if kind == 2:
        mask[2:4, : width // 2] = 2
    return mask


def make_masks(root: Path, shown: list[int] = SHOWN, masks: str = "masks", below: str = "") -> Path:
    """Images whose red is 100 x the class, and gray PNG masks."""
    for folder in ("images", masks):
        (root / folder / below).mkdir(parents=True, exist_ok=True)
    for i, kind in enumerate(shown):
        mask = mask_of(kind)
        image = np.stack([mask * 100, np.full_like(mask, i), np.zeros_like(mask)], axis=2)
        Image.fromarray(image).save(root / "images" / below / f"{i:02d}.png")
        Image.fromarray(mask).save(root / masks / below / f"{i:02d}.png")
    return root


def opened(root: Path, cache: Path, limit: int | None = None, size: int = 8, **settings: Any) -> Dataset:
    return open_dataset(Source(source=str(root), **settings), Data(image_size=size), cache_folder(cache), limit, 2)


def every(dataset: Dataset) -> list[tuple[np.ndarray, np.ndarray]]:
    pairs = []
    for part in (dataset.train, dataset.val, dataset.test):
        assert part.masks is not None
        pairs += list(zip(part.images, part.masks, strict=True))
    return pairs


def test_masks_are_kept_beside_their_images(tmp_path: Path) -> None:
    root = make_masks(tmp_path / "d")
    stored = opened(root, tmp_path / "cache")
    slow = opened(root, tmp_path / "other", limit=10)
    assert (stored.task, stored.classes) == ("segment", ("0", "1", "2"))
    assert stored.store is not None and slow.store is None and slow.task == "segment"
    assert stored.fingerprint == slow.fingerprint
    again = pickle.loads(pickle.dumps(stored))
    for (image, mask), (other, theirs), (_, third) in zip(every(stored), every(slow), every(again), strict=True):
        assert mask.dtype == np.uint8 and not mask.flags.writeable and not theirs.flags.writeable
        np.testing.assert_array_equal(image[..., 0], mask * 100)
        for same in (theirs, third):
            np.testing.assert_array_equal(mask, same)
        np.testing.assert_array_equal(image, other)
    for part, other in ((stored.train, slow.train), (stored.val, slow.val)):
        np.testing.assert_array_equal(part.labels, other.labels)
        assert part.masks is not None
        rarest = [2 if (mask == 2).any() else int((mask == 1).any()) for mask in part.masks]
        assert part.labels.tolist() == rarest
        assert part.tags is None


def test_splits_give_every_part_every_class_and_are_the_same_again(tmp_path: Path) -> None:
    root = make_masks(tmp_path / "d")
    listing = read_source(Source(source=str(root)))
    assert [len(listing.parts[part].labels) for part in ("train", "val", "test")] == [8, 2, 2]
    for part in ("val", "test"):
        assert set(listing.parts[part].labels) == {1, 2}
    assert list(listing.names()) == list(read_source(Source(source=str(root))).names())
    for item, mask in zip(listing.items(), listing.masks(), strict=True):
        assert isinstance(item, Path) and isinstance(mask, Path) and item.stem == mask.stem


def test_lists_of_names_are_the_parts(tmp_path: Path) -> None:
    root = make_masks(tmp_path / "d")
    (root / "train.txt").write_text("01\n02.png\nimages/07.png\n\n08\n")
    (root / "val.txt").write_text("03\n09\n")
    listing = read_source(Source(source=str(root)))
    assert list(listing.names()) == [f"images/{name}.png" for name in ("01", "02", "07", "08", "03", "09")]
    assert len(listing.parts["test"].labels) == 0
    assert "6 images stand in no list and are ignored." in listing.notices


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ({"train": "01 02 99", "val": "03"}, r"train.txt: names '99', and there is no such image"),
        ({"train": "01 02", "val": "02 03"}, r"val.txt: '02' is in train.txt, too"),
        ({"val": "01"}, "has val.txt but no train.txt"),
        ({"train": "01 02 07 08", "val": "03 04"}, "class 'band' has no images in val"),
        ({"train": "01 02", "val": "03 07"}, "class 'band' has no images in train, but val has some"),
    ],
)
def test_bad_lists(tmp_path: Path, lists: dict[str, str], message: str) -> None:
    root = make_masks(tmp_path / "d")
    (root / "classes.txt").write_text("ground\nbody\nband\n")
    for part, names in lists.items():
        (root / f"{part}.txt").write_text("\n".join(names.split()))
    with pytest.raises(DataError, match=message):
        opened(root, tmp_path / "cache")


def test_folders_are_the_parts(tmp_path: Path) -> None:
    for part in ("train", "valid"):
        make_masks(tmp_path / "d", below=part)
    listing = read_source(Source(source=str(tmp_path / "d")))
    assert [len(listing.parts[part].labels) for part in ("train", "val", "test")] == [12, 12, 0]
    assert "images/valid/00.png" in list(listing.names())


def test_which_masks_and_what_they_are_called(tmp_path: Path) -> None:
    root = make_masks(make_masks(tmp_path / "d"), [min(kind, 1) for kind in SHOWN], masks="coarse")
    (root / "classes.txt").write_text("ground\nbody\nband\n")
    assert read_source(Source(source=str(root))).classes == ("ground", "body", "band")
    (root / "classes.txt").unlink()
    assert read_source(Source(source=str(root), masks="coarse")).classes == ("background", "foreground")
    with pytest.raises(DataError, match=r"data\.masks = 'coarze' is no folder there. Did you mean 'coarse'"):
        read_source(Source(source=str(root), masks="coarze"))
    with pytest.raises(ConfigError, match="not a path"):
        Source(masks="../masks")


def test_classes_are_merged_and_ignored(tmp_path: Path) -> None:
    root = make_masks(tmp_path / "d")
    whole = opened(root, tmp_path / "cache")
    merged = opened(root, tmp_path / "cache", classes={"2": "1", "0": "ground"})
    ignored = opened(root, tmp_path / "cache", classes={"1": None, "2": "band"})
    assert (merged.classes, ignored.classes) == (("ground", "1"), ("0", "band"))
    assert len({whole.fingerprint, merged.fingerprint, ignored.fingerprint}) == 3
    for data, table in ((merged, [0, 1, 1]), (ignored, [0, IGNORE, 1])):
        for image, mask in every(data):
            np.testing.assert_array_equal(mask, np.array(table)[image[..., 0] // 100])
    with pytest.raises(ConfigError, match=r"data.classes: 'bnad' is no class of .* Valid: 0, 1, 2"):
        opened(root, tmp_path / "cache", classes={"bnad": None})


def test_what_is_remembered_opens_no_mask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_masks(tmp_path / "d")
    for path in root.glob("*/*.png"):
        os.utime(path, (1e9, 1e9))
    first = opened(root, tmp_path / "cache")
    monkeypatch.setattr(decode, "_indices", lambda path: pytest.fail(f"{path} was opened"))
    assert opened(root, tmp_path / "cache").fingerprint == first.fingerprint
    for path in (tmp_path / "cache").glob("*.masks"):
        path.write_bytes(path.read_bytes()[:50])  # torn: looked at again
    with pytest.raises(BaseException, match="was opened"):
        opened(root, tmp_path / "cache")


def test_the_fingerprint_follows_the_masks(tmp_path: Path) -> None:
    root = make_masks(tmp_path / "d")
    first = opened(root, tmp_path / "cache")
    mask = mask_of(1)
    mask[0, 0] = 0
    Image.fromarray(mask).save(root / "masks" / "01.png")
    assert opened(root, tmp_path / "cache").fingerprint != first.fingerprint


@pytest.mark.parametrize(("size", "fit"), [(16, "crop"), (16, "squash"), (200, "crop")])
def test_masks_are_cut_and_shrunk_with_their_images(tmp_path: Path, size: int, fit: str) -> None:
    """The image is 255 where the mask is 1. After any resizing they agree wherever the image is not mixed."""
    rng = np.random.default_rng(0)
    images, masks = [], []
    for height, width in ((40, 60), (60, 40), (20, 130), (130, 20), (33, 47), (96, 96)):
        blocks = rng.integers(0, 2, (height // 8 + 1, width // 8 + 1), dtype=np.uint8)
        mask = np.kron(blocks, np.ones((8, 8), np.uint8))[:height, :width]
        images += [np.dstack([mask * 255] * 3)] * 3
        masks += [mask] * 3
    for image, mask in zip(images, masks, strict=True):
        kept, classes = decode.load_pair(image, mask, (0, 1), size, fit)  # type: ignore[arg-type]
        assert classes is not None
        assert classes.shape == kept.shape[:2]
        assert set(np.unique(classes)) <= {0, 1}
        pure = (kept[..., 0] < 5) | (kept[..., 0] > 250)
        assert pure.mean() > 0.15
        np.testing.assert_array_equal(classes[pure] * 255 > 127, kept[..., 0][pure] > 127)


def packed_png(path: Path, mask: np.ndarray, bits: int) -> None:
    """A gray PNG of 2 or 4 bits, which Pillow cannot write."""
    shifts = np.arange(8 - bits, -1, -bits)
    rows = (mask.reshape(len(mask), -1, len(shifts)) << shifts).sum(axis=2).astype(np.uint8)

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", mask.shape[1], mask.shape[0], bits, 0, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b""))


@pytest.mark.parametrize("kind", ["P.png", "L.tif", "P.bmp", "P.gif", "4.png", "2.png", "16.png", "int.npy", "1.png"])
def test_indices_stay_indices(tmp_path: Path, kind: str) -> None:
    mask = mask_of(2)
    path = tmp_path / kind
    if kind.endswith(".npy"):
        np.save(path, mask.astype(np.int64))
    elif kind[0] in "24":
        packed_png(path, mask, int(kind[0]))
    elif kind == "16.png":
        Image.fromarray(mask.astype(np.uint16)).save(path)
    elif kind == "1.png":
        mask = mask > 0
        Image.fromarray(mask).save(path)
    else:
        image = Image.fromarray(mask)
        if kind[0] == "P":
            image = image.convert("P")
            image.putdata(mask.reshape(-1).tolist())
            image.putpalette([200, 10, 10, 10, 200, 10, 10, 10, 200])
        image.save(path)
    np.testing.assert_array_equal(decode.mask_values(path), mask)


def test_what_is_no_mask(tmp_path: Path) -> None:
    Image.fromarray(np.dstack([mask_of(1), mask_of(2), mask_of(1)])).save(tmp_path / "colors.png")
    np.save(tmp_path / "floats.npy", mask_of(1) / 2)
    np.save(tmp_path / "objects.npy", np.array([None]), allow_pickle=True)
    np.save(tmp_path / "wide.npy", mask_of(1).astype(np.int32) * 300)
    (tmp_path / "text.png").write_text("no image")
    said = {
        "colors.png": "one channel",
        "floats.npy": "whole numbers 0..255",
        "wide.npy": "whole numbers 0..255",
        "objects.npy": "Python objects",
        "text.png": "no image",
        "missing.png": "No such file",
    }
    for name, reason in said.items():
        with pytest.raises(DataError, match=rf"{name}: cannot be decoded as a mask \(.*{reason}"):
            decode.mask_values(tmp_path / name)


def spoil(root: Path, kind: str) -> str:
    """Makes one mask of train unusable; returns what is said of it."""
    path = root / "masks" / "02.png"
    if kind == "size":
        Image.fromarray(mask_of(1, 12, 15)).save(path)
        return "images/02.png: its mask 02.png has 15 x 12 pixels, the upright image 16 x 12"
    if kind == "values":
        Image.fromarray(mask_of(1) * 7).save(path)
        return r"masks/02.png: cannot be used as a mask (value 7; the classes are 0..2, and 255 is none)"
    path.write_bytes(path.read_bytes()[:40])
    return "masks/02.png: cannot be decoded as a mask ("


@pytest.mark.parametrize("kind", ["size", "values", "torn"])
def test_masks_that_cannot_be_used_are_counted(tmp_path: Path, kind: str) -> None:
    root = make_masks(tmp_path / "d")
    (root / "classes.txt").write_text("ground\nbody\nband\n")
    (root / "train.txt").write_text("00\n01\n02\n07\n08\n")
    (root / "val.txt").write_text("03\n09\n")
    said = spoil(root, kind)
    for limit in (None, 10):
        data = opened(root, tmp_path / "cache", limit, max_corrupt=0.2)
        assert len(data.corrupt) == 1 and data.corrupt[0].startswith(said)
        assert [len(part.labels) for part in (data.train, data.val)] == [4, 2]
        assert [mask.max() for mask in data.train.masks or ()] == [0, 1, 2, 2]
        assert any("1 images cannot be used and are skipped" in notice for notice in data.notices)
        with pytest.raises(DataError, match=r"1 of 7 images .* cannot be used"):
            opened(root, tmp_path / "cache", limit)


def test_masks_in_memory_are_named_by_their_place(tmp_path: Path) -> None:
    masks = np.stack([mask_of(1)] * 12)
    masks[4, 0, 0] = 9
    names = ["ground", "body"]
    np.savez(tmp_path / "m.npz", x_train=masks, m_train=masks, x_val=masks[:3], m_val=masks[:3], class_names=names)
    data = opened(tmp_path / "m.npz", tmp_path / "cache", max_corrupt=0.1)
    assert data.corrupt == ("train[4]: cannot be used as a mask (value 9; the classes are 0..1, and 255 is none)",)
    np.savez(tmp_path / "n.npz", x_train=masks[:, 1:], m_train=masks, x_val=masks, m_val=masks, class_names=names)
    with pytest.raises(DataError, match=r"train\[0\]: its mask array has 16 x 12 pixels, the upright image 16 x 11"):
        opened(tmp_path / "n.npz", tmp_path / "cache")


def test_missing_and_left_over_masks(tmp_path: Path) -> None:
    root = make_masks(tmp_path / "d")
    (root / "masks" / "05.png").rename(root / "masks" / "5.png")
    with pytest.raises(DataError, match=r"1 of 12 images have no mask .* images/05.png; but there is masks/5"):
        read_source(Source(source=str(root)))
    listing = read_source(Source(source=str(root), max_corrupt=0.1))
    assert len(listing.labels()) == 11
    assert listing.notices[:2] == (
        "1 images have no mask and are skipped, for example images/05.png.",
        "1 masks have no image and are ignored, for example masks/5.png.",
    )


@pytest.mark.parametrize(
    ("shown", "message"),
    [
        ([0] * 12, r"only the class '0'.* see data\.mask_values"),
        ([1] * 11 + [2], "class '2' has 1 image, too few to split"),
    ],
)
def test_bad_classes(tmp_path: Path, shown: list[int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_source(Source(source=str(make_masks(tmp_path / "d", shown))))


def test_values_with_gaps_and_without_any(tmp_path: Path) -> None:
    root = make_masks(tmp_path / "d")
    for path in (root / "masks").iterdir():
        Image.fromarray(decode.mask_values(path) * 100).save(path)
    with pytest.raises(DataError, match=r"hold the values 0, 100, 200 \(.*07.png has 200\).*without gaps"):
        read_source(Source(source=str(root)))
    for path in (root / "masks").iterdir():
        Image.fromarray(np.full((12, 16), IGNORE, np.uint8)).save(path)
    with pytest.raises(DataError, match="no mask of train has a labelled pixel"):
        read_source(Source(source=str(root)))
    for path in (root / "masks").iterdir():
        path.write_text("no image")
    with pytest.raises(DataError, match="cannot be decoded as a mask"):
        read_source(Source(source=str(root)))


def repaint(root: Path, table: list[int], masks: str = "masks") -> None:
    """Writes the value table[class] in the place of each class."""
    for path in (root / masks).glob("*.png"):
        Image.fromarray(np.array(table, np.uint8)[decode.mask_values(path)]).save(path)


def test_black_and_white_masks_have_two_classes(tmp_path: Path) -> None:
    plain = make_masks(tmp_path / "plain", [min(kind, 1) for kind in SHOWN])
    drawn = make_masks(tmp_path / "drawn", [min(kind, 1) for kind in SHOWN])
    repaint(drawn, [0, 255])
    listing = read_source(Source(source=str(drawn)))
    assert listing.classes == ("background", "foreground")
    assert [n for n in listing.notices if "255 is the second class" in n]
    for (image, mask), (other, same) in zip(
        every(opened(plain, tmp_path / "cache")), every(opened(drawn, tmp_path / "cache")), strict=True
    ):
        np.testing.assert_array_equal(image, other)
        np.testing.assert_array_equal(mask, same)
    (drawn / "classes.txt").write_text("ground\nbody\n")
    assert read_source(Source(source=str(drawn))).classes == ("ground", "body")
    renamed = opened(drawn, tmp_path / "cache", classes={"body": "cell"})
    assert renamed.classes == ("ground", "cell")


def test_one_mask_with_another_class_makes_255_none_in_all(tmp_path: Path) -> None:
    """What 255 means is decided over all masks, never image by image: most of these hold 0 and 255 only."""
    root = make_masks(tmp_path / "d", [2] * 12)
    repaint(root, [0, 255, 255])
    for name in ("01", "05", "09"):
        Image.fromarray(mask_of(1)).save(root / "masks" / f"{name}.png")
    (root / "train.txt").write_text("00\n01\n02\n05\n")
    (root / "val.txt").write_text("08\n09\n")
    data = opened(root, tmp_path / "cache")
    assert data.classes == ("background", "foreground") and not [n for n in data.notices if "255" in n]
    assert [sorted(np.unique(mask).tolist()) for mask in data.train.masks or ()] == [[0, 255], [0, 1], [0, 255], [0, 1]]


def test_values_of_masks_are_named_by_hand(tmp_path: Path) -> None:
    root = make_masks(tmp_path / "d")
    repaint(root, [1, 2, 3])  # as the trimaps of Oxford-IIIT Pet are
    plain = opened(make_masks(tmp_path / "plain"), tmp_path / "cache")
    data = opened(root, tmp_path / "cache", mask_values=(1, 2, 3))
    assert data.classes == ("1", "2", "3")
    for (_, mask), (_, same) in zip(every(plain), every(data), strict=True):
        np.testing.assert_array_equal(mask, same)
    merged = opened(root, tmp_path / "cache", mask_values=(1, 2, 3), classes={"3": None})
    assert {int(value) for _, mask in every(merged) for value in np.unique(mask)} == {0, 1, IGNORE}
    with pytest.raises(DataError, match=r"value 3; the classes are 1, 2, and 255 is none"):
        opened(root, tmp_path / "cache", mask_values=(1, 2))
    (root / "classes.txt").write_text("ground\nbody\nband\n")
    with pytest.raises(DataError, match=r"3 classes have names, and data.mask_values = \[1, 2\] names 2"):
        read_source(Source(source=str(root), mask_values=(1, 2)))
    for wrong in ((1,), (1, 1), (0, 256), (-1, 0)):
        with pytest.raises(ConfigError, match="two or more different values of 0"):
            Source(mask_values=wrong)


def test_two_files_of_one_name(tmp_path: Path) -> None:
    root = make_masks(tmp_path / "d")
    Image.new("RGB", (16, 12)).save(root / "images" / "00.jpg")
    with pytest.raises(DataError, match="have the same name"):
        read_source(Source(source=str(root)))


@pytest.mark.skipif(not NUCLEI.is_dir(), reason="shared/data/dsb2018_nuclei is not there")
@pytest.mark.parametrize(("masks", "classes"), [("masks", ("background", "foreground")), ("masks3", ("0", "1", "2"))])
def test_the_nuclei(tmp_path: Path, masks: str, classes: tuple[str, ...]) -> None:
    data = opened(NUCLEI, tmp_path / "cache", size=64, masks=masks)
    assert (data.task, data.classes, data.corrupt, data.notices) == ("segment", classes, (), ())
    assert [len(part.labels) for part in (data.train, data.val, data.test)] == [464, 100, 100]
    assert all(image.shape[:2] == mask.shape for image, mask in every(data))
    assert set(np.unique(np.concatenate([np.unique(mask) for _, mask in every(data)]))) == set(range(len(classes)))
    share = np.mean([np.mean(mask > 0) for _, mask in every(data)])
    assert 0.12 < share < 0.16  # the README of the data says 14 %
