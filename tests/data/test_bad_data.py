"""Files as strangers leave them. One row of a table is one fault: how the file is made, and what is said or read.

All files of a table lie in one data set beside sound ones, so each row shows as well that the others go on.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image, ImageCms
from typer.testing import CliRunner

from cvtune.cli import app
from cvtune.data import Dataset, open_dataset, read_source
from cvtune.data.decode import decode, load_pair, mask_values
from cvtune.data.inspect import Facts, inspect
from cvtune.data.listing import Listing
from cvtune.errors import CvtuneError, DataError
from cvtune.printable import csv_cell, printable
from cvtune.recipe import Data
from cvtune.sections import Source

RAMP = np.tile(np.arange(0, 256, 8, dtype=np.uint8), (16, 1))
COLORS = np.stack([RAMP, RAMP[:, ::-1], np.full_like(RAMP, 99)], axis=2)  # (16, 32, 3), turned it is another
PHOTO = Image.fromarray(COLORS)

Make = Callable[[Path], object]


def photo(**options: Any) -> Make:
    return lambda path: PHOTO.save(path, **options)


def content(made: bytes | Callable[[], bytes]) -> Make:
    return lambda path: path.write_bytes(made if isinstance(made, bytes) else made())


def encoded(form: str, image: Image.Image = PHOTO, **options: Any) -> bytes:
    with io.BytesIO() as file:
        image.save(file, form, **options)
        return file.getvalue()


def jpeg_with(old: bytes, new: bytes) -> Callable[[], bytes]:
    return lambda: encoded("JPEG").replace(old, new, 1)


def precision(bits: int) -> bytes:
    """A JPEG whose header states other than 8 bits."""
    made = bytearray(encoded("JPEG"))
    made[made.index(b"\xff\xc0") + 4] = bits
    return bytes(made)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_of(width: int, height: int, bits: int, body: bytes, *more: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    chunks = [chunk(b"IHDR", header), *more, chunk(b"IDAT", zlib.compress(body, 9)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def bomb(kind: bytes, head: bytes) -> bytes:
    """A small PNG with a chunk that unpacks to 30 MB."""
    return png_of(1, 1, 8, b"\0\0", chunk(kind, head + zlib.compress(bytes(30_000_000), 9)))


def animated(path: Path) -> None:
    others = [Image.new("RGB", PHOTO.size)] * 3
    PHOTO.save(path, save_all=True, append_images=others, **({"lossless": True} if path.suffix == ".webp" else {}))


def oriented(number: int) -> Make:
    exif = Image.Exif()
    exif[0x0112] = number
    return photo(exif=exif, quality=100, subsampling=0)


def pages(path: Path, mode: str, count: int) -> None:
    page = Image.new(mode, (5, 5), 7)
    page.save(path, save_all=True, append_images=[page] * (count - 1))


def circle(path: Path) -> None:
    """A TIFF whose only directory names itself as the next one."""
    made = bytearray(encoded("TIFF"))
    first = int.from_bytes(made[4:8], "little")
    after = first + 2 + 12 * int.from_bytes(made[first : first + 2], "little")
    made[after : after + 4] = made[4:8]
    path.write_bytes(made)


def npy_of(*shape: int) -> bytes:
    """The header of an array, and nothing behind it."""
    with io.BytesIO() as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        return file.getvalue()


def gif_of(width: int, height: int) -> bytes:
    head = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6)
    return head + b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x4c\x01\x00;"


SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
BMP = b"BM" + struct.pack("<IIIIiiHHIIiiII", 100, 0, 54, 40, 2**30, -(2**30), 1, 24, 0, 0, 0, 0, 0, 0)
SCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(ran) (w) file closefile\nshowpage\n%%EOF\n"

# --- images that are refused: name, how it is made, what is said of it

REFUSED: dict[str, tuple[Make, str]] = {
    "empty.jpg": (content(b""), "no image of a format"),
    "zeros.jpg": (content(bytes(5000)), "no image of a format"),
    "text.jpg": (content(b"hello"), "no image of a format"),
    "page.jpg": (content(b"<!DOCTYPE html><html>404 Not Found</html>"), "no image of a format"),
    "drawing.png": (content(b'<svg xmlns="http://www.w3.org/2000/svg"/>'), "no image of a format"),
    "script.jpg": (content(SCRIPT), "no image of a format"),  # Pillow would start Ghostscript
    "targa.png": (content(lambda: encoded("TGA")), "no image of a format"),
    "cut.jpg": (content(lambda: encoded("JPEG")[:-40]), "[Tt]runcated"),
    "cut.png": (content(lambda: encoded("PNG")[:-30]), "truncated|broken"),
    "cut.webp": (content(lambda: encoded("WEBP")[:-40]), "."),
    "cut.gif": (content(lambda: encoded("GIF")[:-60]), "."),
    "cut.tif": (content(lambda: encoded("TIFF")[:300]), "."),
    "12 bits.jpg": (content(lambda: precision(12)), "no image of a format"),
    "lossless.jpg": (content(jpeg_with(b"\xff\xc0", b"\xff\xc3")), "broken"),
    "checksum.png": (content(lambda: encoded("PNG").replace(b"IDAT", b"IDAT\1", 1)), "broken"),
    "text bomb.png": (content(lambda: bomb(b"zTXt", b"Comment\0\0")), "too large"),
    "other bomb.png": (content(lambda: bomb(b"iTXt", b"Comment\0\1\0\0\0")), "too large"),
    "profile bomb.png": (content(lambda: bomb(b"iCCP", b"x\0\0")), "too large"),
    "one bit.png": (
        content(lambda: png_of(20_000, 20_000, 1, bytes(2501 * 20_000))),
        "400000000 pixels.*160 mega",
    ),
    "claims.png": (content(lambda: png_of(12_700, 12_700, 8, b"")), "161 megapixels, at most 160 are read"),
    "canvas.gif": (content(gif_of(65_535, 65_535)), "4294836225 pixels.*160 megapixels"),
    "huge.bmp": (content(BMP), "pixels.*160 megapixels"),
    "huge.ppm": (content(b"P6\n99999 99999\n255\n"), "9999800001 pixels.*160 megapixels"),
    "huge.npy": (content(lambda: npy_of(20_000, 20_000)), "400 megapixels, at most 160 are read"),
    "little.ppm": (content(b"P6\n12000 12000\n255\nabc"), "truncated|not enough"),
    "pages.tif": (lambda path: pages(path, "I;16", 600), "does not tell which axis"),
    "pipe.png": (os.mkfifo, "a pipe or a device"),
    "endless.png": (lambda path: path.symlink_to("/dev/zero"), "a pipe or a device"),
    "nowhere.png": (lambda path: path.symlink_to("missing"), "No such file"),
    "round.png": (lambda path: path.symlink_to(path.name), "symbolic links"),
    "16 bits.png": (lambda path: Image.fromarray(RAMP.astype(np.uint16) * 257).save(path), "is uint16 with 1 channel"),
}

# --- images that are read: name, how it is made, the pixels, and by how much they may differ


class Read(NamedTuple):
    make: Make
    pixels: np.ndarray
    within: int = 0  # levels, on average


def gray(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., None], 3, axis=2)


INDEXED = PHOTO.quantize(16)
CLEAR = np.where(RAMP < 128, 0, 255).astype(np.uint8)
TURNED = [
    COLORS,
    COLORS[:, ::-1],
    COLORS[::-1, ::-1],
    COLORS[::-1],
    COLORS.transpose(1, 0, 2),
    np.rot90(COLORS, -1),
    np.rot90(COLORS, 2).transpose(1, 0, 2),
    np.rot90(COLORS),
]
NAMES = {  # a file's name as it lies there -> as it is shown
    "a b.png": "a b.png",
    'it\'s "quoted".png': 'it\'s "quoted".png',
    "two\nlines\r.png": r"two\nlines\r.png",
    "\x1b[31mred.png": r"\x1b[31mred.png",
    os.fsdecode(b"caf\xe9.png"): r"caf\xe9.png",
    "\u202egnp.exe.png": r"\u202egnp.exe.png",
    "$(touch ran) `touch ran`;touch ran.png": "$(touch ran) `touch ran`;touch ran.png",
    "<script>document.title='ran'<script>.png": "<script>document.title='ran'<script>.png",
    "[bold]x[<y>].png": "[bold]x[<y>].png",
    "=cmd|' C'!A0.png": "=cmd|' C'!A0.png",
    "-rf.png": "-rf.png",
    "a\\b%2e.png": "a\\b%2e.png",
    "日本語 猫.png": "日本語 猫.png",
}
READ: dict[str, Read] = {
    **{f"turned {n + 1}.jpg": Read(oriented(n + 1), TURNED[n], 4) for n in range(8)},
    "turned 9.jpg": Read(oriented(9), COLORS, 4),  # there is no such orientation
    "exif.jpg": Read(photo(exif=b"Exif\0\0II*\0\xff\xff\xff\xff", quality=100, subsampling=0), COLORS, 4),
    "cmyk.jpg": Read(content(lambda: encoded("JPEG", PHOTO.convert("CMYK"), quality=100, subsampling=0)), COLORS, 4),
    "palette.png": Read(lambda path: INDEXED.save(path), np.asarray(INDEXED.convert("RGB"))),
    "gray.png": Read(lambda path: Image.fromarray(RAMP).save(path), gray(RAMP)),
    "black and white.png": Read(lambda path: Image.fromarray(RAMP > 99).save(path), gray((RAMP > 99) * np.uint8(255))),
    "alpha.png": Read(
        lambda path: Image.fromarray(np.dstack([COLORS, CLEAR])).save(path),
        np.where(CLEAR[..., None] == 0, np.uint8(255), COLORS),
    ),
    "animated.png": Read(animated, COLORS),
    "animated.webp": Read(animated, COLORS),
    "animated.gif": Read(animated, COLORS, 24),  # 256 colors
    "profile.png": Read(photo(icc_profile=SRGB), COLORS),
    "no profile.png": Read(photo(icc_profile=b"nonsense"), COLORS),
    "one pixel.png": Read(lambda path: Image.new("RGB", (1, 1), (1, 2, 3)).save(path), np.array([[[1, 2, 3]]])),
    "thin.png": Read(lambda path: Image.new("L", (1, 3000), 9).save(path), np.full((3000, 1, 3), 9)),
    "more behind.jpg": Read(content(lambda: encoded("JPEG", quality=100, subsampling=0) + b"?" * 9999), COLORS, 4),
    "no end.png": Read(content(lambda: encoded("PNG")[:-12]), COLORS),
    "photos.tif": Read(lambda path: pages(path, "L", 600), np.full((5, 5, 3), 7)),
    "circle.tif": Read(circle, COLORS),
    "webp inside.jpg": Read(content(lambda: encoded("WEBP", lossless=True)), COLORS),
    **{name: Read(photo(), COLORS) for name in NAMES},
}


class Spoiled(NamedTuple):
    """A data set of every row, and what became of it."""

    folder: Path
    facts: Facts
    data: Dataset


def sound(folder: Path, seed: int, count: int = 12) -> None:
    """Photos that nothing is wrong with."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)).save(folder / f"sound {i}.png")


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory: pytest.TempPathFactory) -> Spoiled:
    folder = tmp_path_factory.mktemp("spoiled") / "photos"
    for seed, name in enumerate(("train/sound", "train/spoiled", "val/sound", "val/spoiled")):
        sound(folder / name, seed)
    place = folder / "train" / "spoiled"
    for name, (make, _) in REFUSED.items():
        make(place / name)
    for name, row in READ.items():
        row.make(place / name)
    source = Source(source=str(folder), max_corrupt=0.5)
    cache = tmp_path_factory.mktemp("cache")
    facts = inspect(read_source(source), str(folder), 2)
    return Spoiled(folder, facts, open_dataset(source, Data(image_size=8), cache, None, 2))


def said_of(name: str, lines: tuple[str, ...]) -> list[str]:
    return [line for line in lines if line.startswith(f"train/spoiled/{printable(name)}: ")]


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_used_is_named_in_one_line_and_the_rest_goes_on(spoiled: Spoiled, name: str) -> None:
    rule = REFUSED[name][1]
    (line,) = said_of(name, spoiled.data.corrupt)
    assert re.search(rule, line) and line.isprintable(), line
    if name != "16 bits.png":  # sound by itself: `check` says that the images are of two kinds
        (line,) = said_of(name, spoiled.facts.broken)
        assert re.search(rule, line) and line.isprintable(), line
        with pytest.raises(DataError, match=rule):
            decode(spoiled.folder / "train" / "spoiled" / name)


@pytest.mark.parametrize("name", READ)
def test_what_is_read_has_the_right_pixels(spoiled: Spoiled, name: str) -> None:
    row = READ[name]
    image = decode(spoiled.folder / "train" / "spoiled" / name)
    assert image.shape == row.pixels.shape
    assert np.abs(image.astype(int) - row.pixels).mean() <= row.within
    assert not said_of(name, spoiled.facts.broken) and not said_of(name, spoiled.data.corrupt)


def test_nothing_else_was_lost(spoiled: Spoiled) -> None:
    assert len(spoiled.data.corrupt) == len(REFUSED) and len(spoiled.facts.broken) == len(REFUSED) - 1
    assert len(spoiled.data.train.labels) == 24 + len(READ)
    assert len(spoiled.facts.kinds) == 2  # the one of 16 bits
    listing = read_source(Source(source=str(spoiled.folder)))
    shown = {name.removeprefix("train/spoiled/") for name in listing.names()}
    assert set(NAMES.values()) <= shown and all(name.isprintable() for name in shown)


def test_the_command_says_it_without_a_traceback(spoiled: Spoiled) -> None:
    """Its exit code is that of data; names are in one line, brackets are no markup, and no program was started."""
    done = CliRunner().invoke(app, ["check", str(spoiled.folder)])
    assert isinstance(done.exception, DataError) and "not in order: files, kinds" in str(done.exception)
    assert f"{len(REFUSED) - 1} cannot be used" in done.output and "\x1b[31m" not in done.output
    (files,) = [line for line in done.output.splitlines() if line.startswith("red     files")]
    assert files.count(": ") >= 3
    with pytest.raises(DataError, match=rf"{len(REFUSED)} of \d+ images.*data\.max_corrupt allows 1\.0%"):
        open_dataset(Source(source=str(spoiled.folder)), Data(image_size=8), spoiled.folder.parent, None, 1)
    assert not [path for path in (Path("ran"), spoiled.folder / "ran") if path.exists()]


def test_what_claims_much_takes_little_memory(spoiled: Spoiled) -> None:
    """Every file of the tables, decoded in a process that may take 500 MB more than its libraries."""
    code = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from cvtune.data.decode import decode, mask_values\n"
        "from cvtune.errors import DataError\n"
        "def now(): return int(next(l for l in open('/proc/self/status') if l.startswith('VmSize')).split()[1]) << 10\n"
        "resource.setrlimit(resource.RLIMIT_AS, (now() + 500 * 2**20,) * 2)\n"
        "before, refused = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0\n"
        "for path in sorted(Path(sys.argv[1]).iterdir()):\n"
        "    for read in (decode, mask_values):\n"
        "        try: read(path)\n"
        "        except DataError as error: refused += 'memory' not in str(error).lower()\n"
        "print(refused, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    call = [sys.executable, "-c", code, str(spoiled.folder / "train" / "spoiled")]
    done = subprocess.run(call, capture_output=True, text=True, check=True)
    refused, grown = map(int, done.stdout.split())
    assert refused >= 2 * (len(REFUSED) - 3) and grown < 400_000  # KiB; of `little.ppm`, whose header is honest
    assert not done.stderr


# --- what may not be read, and links


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """As one who may not read everything: root may."""
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65_534)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that others may enter, which pytest's own are not."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        folder.chmod(0o755)
        for seed, name in enumerate("ab"):
            sound(folder / "photos" / name, seed)
        yield folder


def test_files_and_folders_that_may_not_be_read(public: Path) -> None:
    root = public / "photos"
    (root / "a" / "sound 3.png").chmod(0)
    source = Source(source=str(root), max_corrupt=0.1)
    with as_nobody():
        facts = inspect(read_source(source), str(root), 1)
    assert facts.broken == ("a/sound 3.png: cannot be decoded (Permission denied)",)
    (root / "b").chmod(0)
    with as_nobody(), pytest.raises(DataError, match=r"/b: cannot be listed \(Permission denied\).*Make it readable"):
        read_source(source)
    (root / "b").chmod(0o755)


def test_links(public: Path) -> None:
    """To images they are followed, wherever these lie; below a class, to folders, they are not, and this is said."""
    root, outside = public / "photos", public / "outside"
    sound(outside, 7, 3)
    (root / "a" / "linked.png").symlink_to(outside / "sound 0.png")
    (root / "c").symlink_to(outside)
    (root / "a" / "round").symlink_to(root)
    (root / "b" / "self").symlink_to(".")
    listing = read_source(Source(source=str(root)))
    assert listing.classes == ("a", "b", "c")
    assert np.bincount(listing.labels()).tolist() == [13, 12, 3]
    assert listing.notices == ("2 links to folders were not followed, for example a/round: link the images in them.",)


@pytest.mark.parametrize("names", [("new\nline", r"new\nline"), ("a", "b" * 201)])
def test_classes_that_cannot_be_told_apart_or_shown(tmp_path: Path, names: tuple[str, str]) -> None:
    for seed, name in enumerate(names):
        sound(tmp_path / "photos" / name, seed, 3)
    with pytest.raises(DataError, match=r"both be shown as|201 letters, at most 200"):
        read_source(Source(source=str(tmp_path / "photos")))


def test_classes_are_called_as_they_are_shown(tmp_path: Path) -> None:
    for seed, name in enumerate(("new\nline", os.fsdecode(b"caf\xe9"), "plain")):
        sound(tmp_path / "photos" / name, seed, 4)
    source = Source(source=str(tmp_path / "photos"))
    assert set(read_source(source).classes) == {r"new\nline", r"caf\xe9", "plain"}
    renamed = Source(source=source.source, classes={r"caf\xe9": "cafe"})
    assert "cafe" in read_source(renamed).classes


@pytest.mark.parametrize(
    ("text", "shown", "cell"),
    [
        ("cat", "cat", "cat"),
        ("=1+1", "=1+1", "'=1+1"),
        ("@SUM(1)", "@SUM(1)", "'@SUM(1)"),
        ("\t=1", r"\t=1", "'\t=1"),
        ("-1.5e3", "-1.5e3", "-1.5e3"),
        ("-rm", "-rm", "'-rm"),
        ("\ud800", r"\ud800", "\ud800"),
        ("猫 e\u0301 \u200d", "猫 e\u0301 \u200d", "猫 e\u0301 \u200d"),
    ],
)
def test_texts_that_are_shown(text: str, shown: str, cell: str) -> None:
    assert (printable(text), csv_cell(text)) == (shown, cell)


# --- masks: how one is made, what is said of it


def mask(values: np.ndarray, name: str = "mask.png") -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / name
        np.save(path, values) if name.endswith(".npy") else Image.fromarray(values).save(path)
        return path

    return make


LABELS = np.zeros((16, 32), np.uint8)
MASKS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "too small": (mask(LABELS[:, :31]), r"its mask mask\.png has 31 x 16 pixels, the upright image 32 x 16"),
    "turned": (mask(LABELS.T.copy()), r"has 16 x 32 pixels"),
    "colors": (mask(COLORS), r"a mask has one channel"),
    "a value too many": (mask(LABELS + 2), r"value 2; the classes are 0\.\.1, and 255 is none"),
    "16 bits": (mask(LABELS.astype(np.uint16) + 300), r"must be whole numbers 0\.\.255"),
    "floats": (mask(LABELS.astype(np.float32), "m.npy"), r"float32: the values must be whole"),
    "negative": (mask(LABELS.astype(np.int16) - 1, "m.npy"), r"must be whole numbers"),
    "three axes": (mask(np.zeros((2, 16, 32, 5), np.uint8), "m.npy"), r"one channel|shape"),
    "empty": (
        lambda folder: (content(b"")(folder / "m.png") and folder / "m.png") or folder / "m.png",
        "no image of a",
    ),
    "missing": (lambda folder: folder / "m.png", "No such file"),
}


@pytest.mark.parametrize("case", MASKS)
def test_masks_that_cannot_be_used(tmp_path: Path, case: str) -> None:
    make, rule = MASKS[case]
    PHOTO.save(tmp_path / "image.png")
    with pytest.raises(DataError, match=rule):
        load_pair(tmp_path / "image.png", make(tmp_path), (0, 1), 64, "crop")


def test_a_mask_of_a_turned_photo_is_compared_upright(tmp_path: Path) -> None:
    oriented(6)(tmp_path / "image.jpg")
    upright = mask(LABELS.T.copy())(tmp_path)
    _, classes = load_pair(tmp_path / "image.jpg", upright, (0, 1), 64, "crop")
    assert classes is not None and classes.shape == (32, 16)
    assert mask_values(upright).shape == (32, 16)


# --- manifests: the bytes of the file, and what is said of it; where nothing is said, it is read

ROWS = [(f"{i}.png", "ab"[i % 2]) for i in range(12)]


def table(
    rows: list[tuple[str, ...]] = ROWS, head: str = "path,label", end: str = "\n", coding: str = "utf-8"
) -> bytes:
    return end.join([head, *(",".join(row) for row in rows), ""]).encode(coding)


def one_more(*cells: str) -> bytes:
    return table([*ROWS, cells])


MANIFESTS: dict[str, tuple[bytes, str]] = {
    "byte order mark": (b"\xef\xbb\xbf" + table(), ""),
    "line ends of Windows": (table(end="\r\n"), ""),
    "line ends of old": (table(end="\r"), ""),
    "empty lines": (table() + b"\n\n", ""),
    "no last line end": (table()[:-1], ""),
    "a zero byte in a label": (table().replace(b",b\n4", b",b\0\n4"), ""),
    "a zero byte in a path": (table().replace(b"3.png", b"3\0.png"), "row 4: path = .* has a zero byte"),
    "nothing": (b"", "not readable as csv .*Write a table"),
    "names only": (b"path,label\n", "has no rows"),
    "no path": (table(head="file,label"), "has no column 'path', only file, label"),
    "no label": (table(head="path,class"), "nothing that says what the images show"),
    "semicolons": (table().replace(b",", b";"), "no column 'path', only path;label.*with commas"),
    "a cell short": (table() + b"1.png\n", "Expected 2 columns, got 1"),
    "a cell more": (one_more("1.png", "a", "b"), "Expected 2 columns, got 3"),
    "an open quote": (table() + b'"1.png,a\n', "not readable as csv"),
    "Latin-1": (table([*ROWS, ("1.png", "\xe9")], coding="latin-1"), "not readable as csv.*UTF-8"),
    "UTF-16": (table(coding="utf-16"), "not readable as csv.*UTF-8"),
    "Latin-1 in a name": (b"path,label,\xe9\n1.png,a,b\n", "not readable as csv.*UTF-8"),
    "a picture": (encoded("PNG"), "not readable as csv.*UTF-8"),
    "a column twice": (table(head="path,path"), "two columns 'path'"),
    "an absolute path": (one_more("/etc/passwd", "a"), "row 13: path = '/etc/passwd' leaves"),
    "a path that leads out": (one_more("x/../../outside.png", "a"), "row 13: path = .* leaves"),
    "a link that leads out": (one_more("link.png", "a"), "row 13: path = 'link.png' leaves"),
    "an empty path": (one_more("", "a"), "row 13: path is empty"),
    "a label like a book": (one_more("1.png", "a" * 9999), "9999 letters, at most 200"),
    "a part that there is not": (
        table([(*row, "trian") for row in ROWS], "path,label,split"),
        "split = 'trian'. Write",
    ),
    "a weight of NaN": (table([(*row, "nan") for row in ROWS], "path,label,weight"), "row 1: weight = 'nan'"),
    "a weight of 400 digits": (table([(*row, "9" * 400) for row in ROWS], "path,label,weight"), r"'9{60,}\.\.\."),
}


def listed(folder: Path, made: bytes) -> Listing:
    folder.mkdir()
    for name, _ in ROWS:
        PHOTO.save(folder / name)
    PHOTO.save(folder.parent / "outside.png")
    (folder / "link.png").symlink_to("../outside.png")
    (folder / "list.csv").write_bytes(made)
    return read_source(Source(source=str(folder / "list.csv")))


@pytest.mark.parametrize("case", MANIFESTS)
def test_manifests(tmp_path: Path, case: str) -> None:
    made, rule = MANIFESTS[case]
    if not rule:
        assert listed(tmp_path / "d", made).classes == ("a", "b")
        return
    with pytest.raises(CvtuneError, match=rule) as told:
        listed(tmp_path / "d", made)
    assert str(told.value).isprintable() and len(str(told.value)) < 600


def test_rows_that_name_an_image_twice_are_counted(tmp_path: Path) -> None:
    listing = listed(tmp_path / "d", table([*ROWS, *ROWS[:5], ("x/../0.png", "b")]))
    assert listing.notices == (
        "6 rows name an image that an earlier row has named, for example 0.png: keep one of each.",
    )
