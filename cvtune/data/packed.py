"""Packed: an image inside a zip, a tar or a Parquet file, read at its place. No archive is ever unpacked to a disk."""

from __future__ import annotations

import functools
import os
import struct
import zlib
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from cvtune.data import rows

MOST_BYTES = 2**30  # of one image file: what states more is a mistake or an attack
_LOCAL = struct.Struct("<4s22xHH")  # of a zip's local header: its signature, and the lengths of name and extra field


class Packing(IntEnum):
    """How the bytes of a member lie in its archive."""

    PLAIN = 0  # as they are (tar)
    STORED = 1  # as they are, behind a local header (zip)
    DEFLATED = 2  # compressed, behind a local header (zip)
    ROW = 3  # in a row of a Parquet file
    MASK_ROW = 4  # in a row of a Parquet file, in its column of masks


@dataclass(frozen=True, slots=True)
class Packed:
    """An image file inside an archive. Picklable; each process opens the archive for itself, once.

    `str()` is a name for messages: 'photos/train.zip/cat/1.jpg'.
    """

    archive: Path
    name: str  # in the archive, '/' between folders
    offset: int  # where its bytes begin; zip: its local header; Parquet: its row
    size: int  # bytes in the archive; Parquet: 0
    unpacked: int  # bytes of the image file; Parquet: 0
    crc: int  # CRC-32 of the image file; 0 where the archive states none
    packing: Packing

    def __str__(self) -> str:
        return f"{self.archive}/{self.name}"

    @property
    def suffix(self) -> str:
        """The ending of its name, as of a Path."""
        return Path(self.name).suffix

    def read(self) -> bytes:
        """The bytes of the image file. Many threads may read at once, since none moves another's position.

        Raises:
            OSError: the archive is gone or was cut off, or these bytes are not those that were packed.
        """
        if self.packing in (Packing.ROW, Packing.MASK_ROW):
            return rows.read_row(self.archive, self.offset, masks=self.packing is Packing.MASK_ROW)
        if self.packing is Packing.PLAIN:
            return _read(self.archive, self.size, self.offset)
        header = _read(self.archive, _LOCAL.size, self.offset)
        signature, name_length, extra_length = _LOCAL.unpack(header)
        if signature != b"PK\3\4":
            raise OSError("the archive has something else at its place")
        content = _read(self.archive, self.size, self.offset + _LOCAL.size + name_length + extra_length)
        if self.packing is Packing.DEFLATED:
            content = _inflate(content, self.unpacked)
        if zlib.crc32(content) != self.crc:
            raise OSError("its bytes do not fit the checksum in the archive")
        return content


def forget_open_archives() -> None:
    """Lets go of the archives that this process has open: they may have been replaced since."""
    _opened.cache_clear()
    rows.forget()


class _Opened:
    """A descriptor that is closed when nobody reads through it any more, so that the cache may drop it at any time."""

    def __init__(self, path: Path) -> None:
        self.descriptor = -1  # also where opening fails
        self.descriptor = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)


_opened = functools.lru_cache(maxsize=128)(_Opened)  # well below the 1024 files that a process may open


def _read(archive: Path, size: int, offset: int) -> bytes:
    opened = _opened(archive)
    content = os.pread(opened.descriptor, size, offset)
    while len(content) < size:  # a read may be cut short, by a signal or at 2 GiB
        more = os.pread(opened.descriptor, size - len(content), offset + len(content))
        if not more:
            raise OSError("the archive ends before it does")
        content += more
    return content


def _inflate(content: bytes, size: int) -> bytes:
    """Unpacks to `size` bytes, and never to more however far the content would expand."""
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        unpacked = unpacker.decompress(content, size + 1)
    except zlib.error as error:
        raise OSError(f"its bytes do not unpack ({error})") from error
    if len(unpacked) != size or not unpacker.eof:
        raise OSError("it does not unpack to the size that the archive states")
    return unpacked
