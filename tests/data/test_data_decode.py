"""Every kind of image becomes the same kind of array."""

from __future__ import annotations

import struct
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cvtune.data import decode as decode_module
from cvtune.data import guard
from cvtune.data.decode import decode, load, mask_values, resize_keep
from cvtune.data.guard import MAX_PIXELS
from cvtune.errors import DataError

RAMP = np.tile(np.arange(0, 256, 8, dtype=np.uint8), (16, 1))  # (16, 32), rises from left to right
COLORS = np.stack([RAMP, RAMP[:, ::-1], np.full_like(RAMP, 99)], axis=2)


def saved(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "ppm", "webp"])
def test_lossless_color(tmp_path: Path, suffix: str) -> None:
    options = {"lossless": True} if suffix == "webp" else {}
    result = decode(saved(Image.fromarray(COLORS), tmp_path / f"a.{suffix}", **options))
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, COLORS)


def test_jpeg(tmp_path: Path) -> None:
    result = decode(saved(Image.fromarray(COLORS), tmp_path / "a.jpg", quality=98, subsampling=0))
    assert np.abs(result.astype(int) - COLORS).mean() < 2


def test_gray_and_bilevel(tmp_path: Path) -> None:
    np.testing.assert_array_equal(decode(saved(Image.fromarray(RAMP), tmp_path / "l.png")), np.dstack([RAMP] * 3))
    black_white = decode(saved(Image.fromarray(RAMP > 100), tmp_path / "1.png"))
    np.testing.assert_array_equal(black_white, np.dstack([(RAMP > 100) * np.uint8(255)] * 3))


def test_transparency_shows_white(tmp_path: Path) -> None:
    alpha = np.where(RAMP < 128, 0, 255).astype(np.uint8)
    result = decode(saved(Image.fromarray(np.dstack([COLORS, alpha])), tmp_path / "rgba.png"))
    np.testing.assert_array_equal(result, np.where(alpha[..., None] == 0, 255, COLORS))
    gray = decode(saved(Image.fromarray(np.dstack([RAMP, alpha])), tmp_path / "la.png"))
    assert gray[0, 0].tolist() == [255, 255, 255]
    assert gray[0, -1].tolist() == [248, 248, 248]


def test_palette_with_a_transparent_entry(tmp_path: Path) -> None:
    palette = Image.new("P", (4, 3), 1)
    palette.putpalette([0, 0, 0, 200, 10, 20])
    palette.putpixel((0, 0), 0)
    result = decode(saved(palette, tmp_path / "p.png", transparency=0))
    assert result[0, 0].tolist() == [255, 255, 255]
    assert result[1, 1].tolist() == [200, 10, 20]


def test_cmyk(tmp_path: Path) -> None:
    result = decode(saved(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), tmp_path / "c.tif"))
    assert result[4, 4].tolist() == [255, 0, 0]


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise
    result = decode(saved(Image.fromarray(RAMP), tmp_path / "turned.png", exif=exif))
    np.testing.assert_array_equal(result[..., 0], np.rot90(RAMP, -1))


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (6, 5), color) for color in ((255, 0, 0), (0, 255, 0))]
    result = decode(saved(frames[0], tmp_path / "a.gif", save_all=True, append_images=frames[1:]))
    assert result.shape == (5, 6, 3)
    assert result[0, 0].tolist() == [255, 0, 0]


def test_broken_files_are_named(tmp_path: Path) -> None:
    whole = saved(Image.fromarray(COLORS), tmp_path / "a.jpg").read_bytes()
    (tmp_path / "truncated.jpg").write_bytes(whole[: len(whole) * 2 // 3])
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty.png").write_bytes(b"")
    for name in ("truncated.jpg", "text.png", "empty.png", "missing.png"):
        with pytest.raises(DataError, match=rf"{name}: cannot be decoded \(.+\)\. Replace or remove"):
            decode(tmp_path / name)


def test_arrays_become_rgb() -> None:
    for array in (RAMP, RAMP[..., None]):
        np.testing.assert_array_equal(load(array), np.dstack([RAMP] * 3))


@pytest.mark.parametrize(
    ("shape", "side", "fit", "expected"),
    [
        ((120, 160), 60, "crop", (60, 80)),
        ((160, 120), 60, "crop", (80, 60)),
        ((40, 50), 60, "crop", (40, 50)),  # never enlarged
        ((10, 1000), 60, "crop", (10, 40)),  # at most 4:1
        ((1000, 100), 50, "crop", (200, 50)),
        ((120, 160), 60, "squash", (60, 60)),
        ((40, 160), 60, "squash", (40, 60)),
        ((1, 1), 60, "crop", (1, 1)),
    ],
)
def test_kept_sizes(shape: tuple[int, int], side: int, fit: str, expected: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    result = resize_keep(image, side, fit)  # type: ignore[arg-type]
    assert result.shape == (*expected, 3)
    assert result.flags.c_contiguous


def test_an_elongated_image_keeps_its_center() -> None:
    image = np.zeros((10, 100, 3), np.uint8)
    image[:, 30:70] = 255
    assert (resize_keep(image, 10, "crop") == 255).all()


def header_only(path: Path, width: int, height: int) -> Path:
    """A PNG that claims to be large and holds next to nothing."""
    content = bytearray(saved(Image.new("L", (1, 1)), path).read_bytes())
    content[16:24] = struct.pack(">II", width, height)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("size", [(20_000, 20_000), (12_700, 12_700)])  # beyond Pillow's own limit, and below it
@pytest.mark.parametrize("read", [decode, mask_values])
def test_images_of_too_many_pixels_are_refused_by_their_header(
    tmp_path: Path, size: tuple[int, int], read: Callable[[Path], object]
) -> None:
    assert size[0] * size[1] > MAX_PIXELS
    with pytest.raises(DataError, match=r"large.png: cannot be decoded.*at most 160 (are|megapixels are) read"):
        read(header_only(tmp_path / "large.png", *size))


def test_large_images_are_decoded_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(Image.fromarray(COLORS), tmp_path / "a.png")
    at_once, most = 0, 0
    real = decode_module._rgb

    def rgb(image: Image.Image) -> np.ndarray:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        time.sleep(0.02)
        at_once -= 1
        return real(image)

    monkeypatch.setattr(decode_module, "_rgb", rgb)
    for limit, expected in ((10**9, 4), (10, 1)):
        monkeypatch.setattr(guard, "_LARGE", limit)
        most = 0
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(decode, [tmp_path / "a.png"] * 4))
        assert (most == 1) == (expected == 1)


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_gray_levels_of_a_mask_may_be_written_as_colors(tmp_path: Path, mode: str) -> None:
    levels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    Image.fromarray(levels).convert(mode).save(tmp_path / "mask.png")
    np.testing.assert_array_equal(mask_values(tmp_path / "mask.png"), levels)
