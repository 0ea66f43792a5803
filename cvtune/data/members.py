"""Which files a zip or a tar holds and where their bytes lie, from its headers alone."""

from __future__ import annotations

import os
import struct
import tarfile
import zipfile
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from cvtune.data.compact import PackedItems, Texts, place
from cvtune.data.listing import Labels, Tags
from cvtune.data.packed import MOST_BYTES, Packing
from cvtune.errors import DataError
from cvtune.printable import first_line

_Found = tuple[str, list[int]]  # name as the archive has it, and its row of `PackedItems.places`
_BLOCK = tarfile.BLOCKSIZE
_DAMAGED = (  # what torn and hostile archives make the libraries raise
    *(OSError, zipfile.BadZipFile, tarfile.TarError, struct.error, ValueError, NotImplementedError),
    *(LookupError, EOFError, OverflowError),
)
_PACKINGS = {zipfile.ZIP_STORED: Packing.STORED, zipfile.ZIP_DEFLATED: Packing.DEFLATED}
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")  # gzip, bzip2, xz, zstd


class Found(NamedTuple):
    """The labelled images of some archives."""

    items: PackedItems
    labels: Labels  # int64 (N,); 0 where `tags` or `masks` say what the images show
    classes: tuple[str, ...] | None  # what the labels are positions in; None: they are the classes' own numbers
    parts: Labels | None = None  # positions in PARTS, int64 (N,), where the archives tell train from val and test
    ignored: Sequence[str] = ()  # names of files that are no image of a class
    inside: str = ""  # folder of the archive that all of it lies in
    notices: tuple[str, ...] = ()
    tags: Tags | None = None  # float32 (N, K) where images have several labels
    masks: PackedItems | None = None  # of each image, where the archives hold masks


@dataclass(frozen=True)
class Members:
    """The visible files of an archive, in its own order."""

    archive: Path
    names: list[str]  # '/' between folders
    places: npt.NDArray[np.int64]  # (N, 6), see `PackedItems`; the archive is number 0


def list_members(archive: Path) -> Members:
    """The files in a zip or tar (by its suffix), without hidden ones, those of macOS (__MACOSX), folders and links.

    Raises:
        DataError: the archive is missing, torn, encrypted, or compressed so that it can only be read from its
            beginning; or a name leaves it ('../x'), appears twice, or states more than `MOST_BYTES`.
    """
    names: list[str] = []
    numbers = array("q")
    try:
        for name, row in (_zip if archive.suffix.lower() == ".zip" else _tar)(archive):
            inside = _checked_name(archive, name)
            if not inside or inside.startswith((".", "__MACOSX/")) or "/." in inside:
                continue
            names.append(inside)
            numbers.extend(row)
    except _DAMAGED as error:
        kind = archive.suffix[1:].lower()
        told = f"{archive}: not readable as a {kind} ({first_line(error)}). Copy it again, or pack it anew."
        raise DataError(told) from error
    places = np.frombuffer(numbers, np.int64).reshape(-1, 6) if numbers else np.zeros((0, 6), np.int64)
    _check(archive, names, places)
    return Members(archive, names, places)


def _checked_name(archive: Path, name: str) -> str:
    """The name without './' before it. Nothing is ever written under it, but who means well has no '..' in it."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts:
        raise DataError(
            f"{archive}: holds {name!r}, which leads out of the archive. Pack it anew, from inside its folder."
        )
    return "/".join(parts)


def _check(archive: Path, names: list[str], places: npt.NDArray[np.int64]) -> None:
    largest = int(places[:, 3].argmax()) if len(places) else 0
    if len(places) and places[largest, 3] > MOST_BYTES:
        raise DataError(
            f"{archive}: {names[largest]!r} states {places[largest, 3] / 2**30:.3g} GiB, and a file in an archive may "
            f"have {MOST_BYTES / 2**30:.0f} GiB. Remove it from the archive."
        )
    if places[:, 2].sum() > (size := archive.stat().st_size):
        raise DataError(
            f"{archive}: its files state {places[:, 2].sum()} bytes, more than the {size} of the archive itself: they "
            "overlap. Pack it anew."
        )
    if len(set(names)) < len(names):
        once: set[str] = set()
        twice = next(name for name in names if name in once or once.add(name))  # type: ignore[func-returns-value]
        raise DataError(f"{archive}: holds {twice!r} twice. Pack it anew, so that it is clear which one counts.")


def _zip(archive: Path) -> Iterator[_Found]:
    size = archive.stat().st_size
    with zipfile.ZipFile(archive) as opened:
        for info in opened.infolist():
            if info.is_dir() or info.external_attr >> 28 == 0xA:  # a folder, or a symbolic link
                continue
            if info.flag_bits & 1:
                raise DataError(f"{archive}: {info.filename!r} is encrypted. Pack it anew without a password.")
            if info.compress_type not in _PACKINGS:
                raise DataError(
                    f"{archive}: {info.filename!r} is compressed by method {info.compress_type}. Zips are read stored "
                    "or deflated: pack it anew, best without compression (zip -0), since images hardly get smaller."
                )
            if not 0 <= info.header_offset <= size - info.compress_size:
                raise zipfile.BadZipFile(f"{info.filename!r} lies beyond its end")
            yield (
                info.filename.replace("\\", "/"),  # some packers of Windows write these
                place(
                    0,
                    offset=info.header_offset,
                    size=info.compress_size,
                    unpacked=info.file_size,
                    crc=info.CRC,
                    packing=_PACKINGS[info.compress_type],
                ),
            )


def _tar(archive: Path) -> Iterator[_Found]:
    with archive.open("rb") as file:
        if file.read(6).startswith(_COMPRESSED):
            raise DataError(
                f"{archive}: is a compressed tar, which can only be read from its beginning. Decompress it (gunzip, "
                "bunzip2, unxz, unzstd): images hardly get smaller by it."
            )
        total = file.seek(0, os.SEEK_END)
        for name, offset, size in _tar_files(file):
            if offset + size > total:
                raise tarfile.ReadError(f"it ends within {name!r}")
            yield name, place(0, offset=offset, size=size, unpacked=size, packing=Packing.PLAIN)


def _tar_files(file: BinaryIO) -> Iterator[tuple[str, int, int]]:
    """Name, offset and size of each regular file, up to the blocks of zeros that end a tar.

    Plain headers are read here, all others by `tarfile`, which takes ten times as long, and which takes a damaged
    header for the end.
    """
    offset = 0
    file.seek(0)
    with tarfile.open(fileobj=file, mode="r:") as tar:
        while True:
            header = os.pread(file.fileno(), _BLOCK, offset)
            if len(header) < _BLOCK:
                raise tarfile.ReadError("it ends without the blocks that end a tar")
            if not header[0] and not any(header):
                return
            if plain := _plain(header):
                yield plain[0], offset + _BLOCK, plain[1]
                offset = _after(offset + _BLOCK, plain[1])
            elif header[156:157] == b"x" and (size := _harmless(file, header, offset)) is not None:
                offset = _after(offset + _BLOCK, size)
            else:
                tar.offset = offset
                file.seek(offset)
                info = tarfile.TarInfo.fromtarfile(tar)
                if info.isreg() and not info.issparse():
                    yield info.name, info.offset_data, info.size
                offset = tar.offset


def _after(start: int, size: int) -> int:
    return start + -(-size // _BLOCK) * _BLOCK


def _plain(header: bytes) -> tuple[str, int] | None:
    """Name and size by the header of a regular file; None if it is of another kind, or `tarfile` has to judge it."""
    if header[156] not in b"0\0" or header[257:262] != b"ustar" or header[124] & 0x80:
        return None
    if _octal(header[148:156]) != sum(header) - sum(header[148:156]) + 8 * 32:  # the field itself counts as spaces
        return None
    name = header[:100].partition(b"\0")[0]
    prefix = header[345:500].partition(b"\0")[0] if header[257:263] == b"ustar\0" else b""
    size = _octal(header[124:136])
    if size is None or name.endswith(b"/"):
        return None
    return os.fsdecode(prefix + b"/" + name if prefix else name), size


def _harmless(file: BinaryIO, header: bytes, offset: int) -> int | None:
    """The size of an extended header that says nothing of name, size or sparseness (WebDataset's: a time)."""
    size = _octal(header[124:136])
    if size is None or size > 2**16:
        return None
    content = os.pread(file.fileno(), size, offset + _BLOCK)
    return None if any(key in content for key in (b" path=", b" size=", b"GNU.sparse")) else size


def _octal(field: bytes) -> int | None:
    try:
        return int(field.strip(b" \0") or b"0", 8)
    except ValueError:
        return None


def items_of(members: Sequence[Members], chosen: npt.NDArray[np.int64]) -> PackedItems:
    """The items of the members `chosen`, int64 (N, 2): number of the archive, number of the member in it."""
    names = Texts.of(members[archive].names[i] for archive, i in chosen.tolist())
    places = np.zeros((len(chosen), 6), np.int64)
    for archive in np.unique(chosen[:, 0]).tolist():
        rows = np.flatnonzero(chosen[:, 0] == archive)
        places[rows] = members[archive].places[chosen[rows, 1]]
        places[rows, 0] = archive
    return PackedItems(tuple(each.archive for each in members), names, places)
