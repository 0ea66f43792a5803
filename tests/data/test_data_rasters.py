"""Files that are no photos: what stands in them comes out, and what cannot be used is said."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pydicom
import pytest
import tifffile
from PIL import Image, ImageOps

from cvtune.data.decode import decode, load
from cvtune.data.packed import Packed, Packing
from cvtune.errors import DataError

RNG = np.random.default_rng(0)
DEEP = RNG.integers(0, 65536, (24, 30), dtype=np.uint16)  # every value may occur, none is a multiple of 257
MANY = RNG.integers(0, 65536, (24, 30, 4), dtype=np.uint16)
FLOATS = RNG.normal(0, 1e4, (24, 30, 7)).astype(np.float32)
FEW = RNG.integers(0, 256, (24, 30, 3), dtype=np.uint8)

Write = Callable[[Path, np.ndarray], None]


def tiff(**options: Any) -> Write:
    return lambda path, array: tifffile.imwrite(
        path, array, photometric=options.pop("photometric", "minisblack"), **options
    )


def by_opencv(path: Path, array: np.ndarray) -> None:
    order = array if array.ndim == 2 else array[..., [2, 1, 0, 3][: array.shape[2]]]
    assert cv2.imwrite(str(path), order)


def by_pillow(path: Path, array: np.ndarray) -> None:
    Image.fromarray(array).save(path)


def first(write: Write) -> Write:
    """With the channels in front."""
    return lambda path, array: write(path, np.moveaxis(array, -1, 0))


@pytest.mark.parametrize(
    ("name", "write", "array"),
    [
        ("a.npy", np.save, DEEP),
        ("a.npy", np.save, MANY),
        ("a.npy", np.save, FLOATS),
        ("a.npy", np.save, FLOATS[..., :1]),
        ("a.npy", first(np.save), FLOATS),
        ("a.npy", first(np.save), MANY),
        ("a.npy", lambda path, array: np.save(path, np.asfortranarray(array.astype(">f4"))), FLOATS),
        ("a.npy", np.save, FEW),
        ("a.npy", np.save, np.dstack([FEW, FEW[..., :1]])),  # four channels of 8 bits: nothing says that one is alpha
        ("a.png", by_opencv, DEEP),
        ("a.png", by_opencv, MANY[..., :3]),
        ("a.png", by_opencv, MANY),
        ("a.png", by_pillow, DEEP),
        ("a.pgm", by_opencv, DEEP),
        ("a.ppm", by_opencv, MANY[..., :3]),
        ("a.tif", by_pillow, DEEP),
        ("a.tif", by_pillow, FLOATS[..., 0]),
        ("a.tif", tiff(), DEEP),
        ("a.tif", tiff(photometric="rgb"), MANY),
        ("a.tif", tiff(photometric="rgb"), MANY[..., :3]),
        ("a.tiff", first(tiff()), MANY),
        ("a.tiff", first(tiff(metadata=None)), MANY),
        ("a.tif", first(tiff(planarconfig="separate")), MANY),
        ("a.tif", first(tiff(metadata={"axes": "CYX"}, ome=True)), FLOATS),
        ("a.tif", first(tiff(imagej=True)), MANY),
        ("a.tif", first(tiff(compression="zlib", predictor=True)), MANY),
        ("a.tif", tiff(), FLOATS),  # rows by rows, as tifffile takes such an array
        ("a.tif", first(tiff(bigtiff=True)), FLOATS),
        ("a.tif", first(tiff()), np.dstack([FEW, FEW])),
    ],
)
def test_every_number_comes_out(tmp_path: Path, name: str, write: Write, array: np.ndarray) -> None:
    write(tmp_path / name, array)
    result = decode(tmp_path / name)
    expected = array if array.ndim == 3 else array[..., None]
    assert result.dtype == array.dtype and result.dtype.isnative and result.flags.c_contiguous
    np.testing.assert_array_equal(result, expected)
    content = (tmp_path / name).read_bytes()  # the same in an archive, where no ending tells anything
    packed = Packed(tmp_path / name, "0", 0, len(content), len(content), 0, Packing.PLAIN)
    np.testing.assert_array_equal(decode(packed), expected)


def test_a_pgm_of_twelve_bits_is_not_stretched(tmp_path: Path) -> None:
    values = np.array([[0, 1, 2], [1000, 4000, 4095]], np.uint16)
    (tmp_path / "a.pgm").write_bytes(b"P5\n3 2\n4095\n" + values.astype(">u2").tobytes())
    np.testing.assert_array_equal(decode(tmp_path / "a.pgm")[..., 0], values)


@pytest.mark.parametrize("mode", ["L", "P", "1", "LA", "RGB", "RGBA", "CMYK"])
def test_tiffs_of_photos_are_photos(tmp_path: Path, mode: str) -> None:
    Image.fromarray(FEW).convert(mode).save(tmp_path / "a.tif")
    result = decode(tmp_path / "a.tif")
    assert (result.dtype, result.shape) == (np.uint8, (24, 30, 3))
    Image.fromarray(FEW).convert(mode).save(
        tmp_path / "b.tif", save_all=True, append_images=[Image.new(mode, (30, 24))]
    )
    np.testing.assert_array_equal(decode(tmp_path / "b.tif"), result)  # of several pages the first


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.float16, np.float64, np.int32, np.bool_])
def test_other_numbers_become_float32(dtype: Any) -> None:
    values = np.array([[0, 1], [0, 1]]) if dtype == np.bool_ else np.array([[-100, 3], [17, 99]])
    result = load(values.astype(dtype))
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result[..., 0], values)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(FEW).save(tmp_path / "photo.png", exif=exif)
    Image.fromarray(DEEP).save(tmp_path / "deep.png", exif=exif)
    tifffile.imwrite(tmp_path / "deep.tif", DEEP, extratags=[(274, "H", 1, orientation, True)])
    numbers = Image.fromarray(np.arange(720, dtype=np.int32).reshape(24, 30))
    numbers.getexif()[0x0112] = orientation
    where = np.asarray(ImageOps.exif_transpose(numbers))  # which pixel comes where, told by Pillow
    for name in ("deep.png", "deep.tif"):
        np.testing.assert_array_equal(decode(tmp_path / name)[..., 0], DEEP.reshape(-1)[where])
    np.testing.assert_array_equal(decode(tmp_path / "photo.png"), FEW.reshape(-1, 3)[where])


def dicom(path: Path, array: np.ndarray, **tags: Any) -> Path:
    """A small CT-like file."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
    meta.TransferSyntaxUID = tags.pop("syntax", ExplicitVRLittleEndian)
    data = Dataset()
    data.file_meta = meta
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    data.Rows, data.Columns, data.SamplesPerPixel = array.shape[0], array.shape[1], 1
    data.PhotometricInterpretation = "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 8 * array.itemsize
    data.HighBit, data.PixelRepresentation = data.BitsStored - 1, int(array.dtype.kind == "i")
    data.PixelData = array.tobytes()
    for name, value in tags.items():
        setattr(data, name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data.save_as(path, enforce_file_format=True)
    return path


STORED = RNG.integers(0, 4096, (24, 30), dtype=np.uint16)


def test_dicom_keeps_its_numbers(tmp_path: Path) -> None:
    np.testing.assert_array_equal(decode(dicom(tmp_path / "a.dcm", STORED))[..., 0], STORED)
    hounsfield = decode(dicom(tmp_path / "ct.dcm", STORED, RescaleSlope=1, RescaleIntercept=-1024))
    assert hounsfield.dtype == np.float32
    np.testing.assert_array_equal(hounsfield[..., 0], STORED.astype(int) - 1024)
    signed = decode(dicom(tmp_path / "signed.dcm", STORED.astype(np.int16) - 2000))
    np.testing.assert_array_equal(signed[..., 0], STORED.astype(int) - 2000)
    gray = decode(dicom(tmp_path / "gray.dcm", FEW[..., 0]))
    np.testing.assert_array_equal(gray, np.dstack([FEW[..., 0]] * 3))  # 8 bits of gray are a photo


def test_dicom_with_dark_large_values_is_turned_around(tmp_path: Path) -> None:
    tags = {"PhotometricInterpretation": "MONOCHROME1", "BitsStored": 12, "HighBit": 11}
    np.testing.assert_array_equal(decode(dicom(tmp_path / "a.dcm", STORED, **tags))[..., 0], 4095 - STORED)
    scaled = decode(dicom(tmp_path / "b.dcm", STORED, **tags, RescaleSlope=2, RescaleIntercept=-7))
    np.testing.assert_array_equal(scaled[..., 0], (4095 - STORED.astype(int)) * 2 - 7)


def test_what_is_wrong_with_a_dicom_is_said(tmp_path: Path) -> None:
    from pydicom.uid import JPEGLSLossless

    path = dicom(tmp_path / "a.dcm", STORED)
    (tmp_path / "torn.dcm").write_bytes(path.read_bytes()[:-400])
    (tmp_path / "head.dcm").write_bytes(path.read_bytes()[:140])
    dicom(tmp_path / "stack.dcm", STORED, NumberOfFrames=12)
    packed = pydicom.encaps.encapsulate([b"\xff\xd8\xff\xd9"])
    dicom(tmp_path / "packed.dcm", STORED, syntax=JPEGLSLossless, PixelData=packed)
    dicom(tmp_path / "huge.dcm", STORED, Rows=20000, Columns=20000)
    said = {
        "torn.dcm": "bytes|length",
        "head.dcm": "without an image",
        "stack.dcm": "12 frames: save one image per file",
        "packed.dcm": "JPEG-LS.*pip install",
        "huge.dcm": "400 megapixels, at most 160",
    }
    for name, message in said.items():
        with pytest.raises(DataError, match=f"{name}: cannot be decoded.*({message})"):
            decode(tmp_path / name)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((7, 64, 7), np.float32), r"shape \(7, 64, 7\) does not tell which axis holds the channels"),
        (np.zeros((2, 3, 4, 5), np.float32), "does not tell"),
        (np.zeros(9, np.float32), "does not tell"),
        (np.zeros((0, 5), np.float32), r"shape \(0, 5, 1\)"),
        (np.full((4, 4), np.nan, np.float32), "16 of 16 values are NaN or infinite"),
        (np.array([[1.0, np.inf]], np.float32), "1 of 2 values are NaN"),
        (np.array([[1.0, 1e300]]), "1 of 2 values are NaN or infinite"),
        (np.array([[2**24 + 1]], np.int64), r"beyond 2\^24"),
        (np.array([[1j]]), "complex128"),
        (np.array([["a"]]), "an image is of numbers"),
    ],
)
def test_arrays_that_cannot_be_kept(tmp_path: Path, array: np.ndarray, message: str) -> None:
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(DataError, match=f"a.npy: cannot be decoded.*{message}"):
        decode(tmp_path / "a.npy")


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    class Armed:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "went off",)

    np.save(tmp_path / "objects.npy", np.array([[Armed()]]), allow_pickle=True)
    (tmp_path / "plain.npy").write_bytes(pickle.dumps(Armed()))
    for name in ("objects.npy", "plain.npy"):
        with pytest.raises(DataError, match=r"Python objects|no image"):
            decode(tmp_path / name)
    assert not (tmp_path / "went off").exists()


def test_what_is_too_large_is_refused_by_its_header(tmp_path: Path) -> None:
    np.lib.format.open_memmap(tmp_path / "a.npy", "w+", np.float32, (8000, 8000, 7)).flush()  # a hole in the file
    tifffile.imwrite(tmp_path / "a.tif", shape=(20000, 20000), dtype=np.uint16)
    with pytest.raises(DataError, match="64 megapixels of 28 bytes are 597 of a photo, at most 160"):
        decode(tmp_path / "a.npy")
    with pytest.raises(DataError, match="400 megapixels, at most 160"):
        decode(tmp_path / "a.tif")


def test_torn_files(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", FLOATS)
    tifffile.imwrite(tmp_path / "a.tif", MANY, photometric="rgb")
    by_opencv(tmp_path / "a.png", DEEP)
    for name in ("a.npy", "a.tif", "a.png"):
        content = (tmp_path / name).read_bytes()
        for kept in (len(content) // 2, 30):
            (tmp_path / name).write_bytes(content[:kept])
            with pytest.raises(DataError, match=f"{name}: cannot be decoded"):
                decode(tmp_path / name)


def test_stacks_and_missing_decoders_are_said(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "z.tif", np.zeros((5, 24, 30), np.uint16), metadata={"axes": "ZYX"}, imagej=True)
    with pytest.raises(DataError, match=r"axes ZYX.*one image"):
        decode(tmp_path / "z.tif")
    try:
        import imagecodecs  # noqa: F401
    except ImportError:
        Image.fromarray(DEEP).save(tmp_path / "lzw.tif", compression="tiff_lzw")
        with pytest.raises(DataError, match=r"imagecodecs.*pip install 'cvtune\[tiff\]'"):
            decode(tmp_path / "lzw.tif")


def test_a_tiff_without_a_page_is_told_once_by_us(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.tif").write_bytes(b"II*\0broken")
    with pytest.raises(DataError, match=r"a\.tif: cannot be decoded \(no image found in it"):
        load(tmp_path / "a.tif")
    assert not caplog.records
