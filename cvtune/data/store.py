"""The store: all decoded images of a data set in one file that every process maps and none copies.

The file is the pixels of one image after the other, then an index, then a footer with the index's length and
digest. It gets its name only when it is complete, so what has the name is whole; the footer guards against the rest.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import io
import json
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cvtune.data.listing import Labels, Pixels
from cvtune.errors import DataError

MAGIC = b"cvtune01"  # changes with the layout, and with how images are decoded or resized
_FOOTER = struct.Struct("<8sQ16s")  # magic, bytes of the index, BLAKE2b of the index
Shapes = npt.NDArray[np.int64]
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class Index:
    """What a store knows of its images: those of train, then val, then test."""

    classes: tuple[str, ...]
    fingerprint: str
    corrupt: tuple[str, ...]  # 'name: reason'
    notices: tuple[str, ...]
    sizes: tuple[int, ...]  # images of train, val and test
    labels: Labels  # int64 (N,)
    shapes: Shapes  # height and width, int64 (N, 2)

    def offsets(self) -> npt.NDArray[np.int64]:
        """Where each image begins and the last one ends, bytes, int64 (N + 1,)."""
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(self.shapes.prod(axis=1) * 3)])


@dataclass(frozen=True)
class Written:
    """What became of a stream of images."""

    shapes: Shapes  # of those that could be decoded, int64 (N, 2)
    corrupt: dict[int, DataError]  # position in the stream: what is wrong
    bytes: int  # of all decoded images, written or not
    complete: bool  # all decoded images are in the file


def write_pixels(file: io.FileIO, images: Iterable[Pixels | DataError], limit: int) -> Written:
    """Appends images until they exceed `limit` bytes or fill the disk; then empties the file and only counts on."""
    shapes: list[tuple[int, int]] = []
    corrupt: dict[int, DataError] = {}
    total = 0
    complete = True
    for position, image in enumerate(images):
        if isinstance(image, DataError):
            corrupt[position] = image
            continue
        shapes.append((image.shape[0], image.shape[1]))
        total += image.nbytes
        if complete and not (total <= limit and _append(file, image.data)):
            complete = False
            file.truncate(0)
    return Written(np.array(shapes, np.int64).reshape(-1, 2), corrupt, total, complete)


def commit(file: io.FileIO, path: Path, index: Index) -> bool:
    """Appends the index to the pixels in `file` and gives the file its name `path`. False: the disk is full."""
    meta = {f.name: getattr(index, f.name) for f in dataclasses.fields(Index) if f.name not in ("labels", "shapes")}
    buffer = io.BytesIO()
    np.savez(buffer, meta=np.array(json.dumps(meta)), labels=index.labels, shapes=index.shapes)
    content = buffer.getvalue()
    footer = _FOOTER.pack(MAGIC, len(content), _digest(content))
    if not _append(file, memoryview(content + footer)):
        return False
    os.fsync(file.fileno())
    Path(str(file.name)).replace(path)
    return True


def read_index(path: Path) -> Index | None:
    """The index of the store at `path`; None if there is no store or it is not whole."""
    try:
        with path.open("rb") as file:
            end = file.seek(-_FOOTER.size, os.SEEK_END)
            magic, length, digest = _FOOTER.unpack(file.read())
            if magic != MAGIC or length > end:
                return None
            file.seek(end - length)
            content = file.read(length)
    except OSError:  # missing, or shorter than a footer
        return None
    if _digest(content) != digest:
        return None
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        meta: dict[str, Any] = json.loads(str(arrays["meta"]))
        for key, value in meta.items():
            meta[key] = tuple(value) if isinstance(value, list) else value
        index = Index(**meta, labels=arrays["labels"], shapes=arrays["shapes"])
    return index if index.offsets()[-1] + length == end else None


class StoreImages:
    """Images `start` to `stop` of a store: read-only views uint8 (h, w, 3) of the mapped file.

    The file is opened at the first access. Pickles as its path, so that each process maps the file itself.
    """

    def __init__(self, path: Path, start: int, stop: int) -> None:
        self._path, self._start, self._stop = path, start, stop
        self._opened: tuple[Pixels, npt.NDArray[np.int64], npt.NDArray[np.int64]] | None = None

    def __len__(self) -> int:
        return self._stop - self._start

    def __getitem__(self, i: int) -> Pixels:
        if not 0 <= i < len(self):
            raise IndexError(f"image {i} of {len(self)}")
        pixels, offsets, shapes = self._opened or self._open()
        row = self._start + i
        height, width = shapes[row]
        return pixels[offsets[row] : offsets[row + 1]].reshape(height, width, 3)

    def __reduce__(self) -> tuple[Any, ...]:
        return StoreImages, (self._path, self._start, self._stop)

    def _open(self) -> tuple[Pixels, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        index = read_index(self._path)
        if index is None:
            raise DataError(f"{self._path}: the decoded images are gone. Start again, and they are decoded again.")
        pixels = np.asarray(np.memmap(self._path, np.uint8, "r"))  # a plain array: memmap's own views cost more
        self._opened = (pixels, index.offsets(), index.shapes)
        return self._opened


def _append(file: io.FileIO, content: memoryview) -> bool:
    """Writes all of `content`; False when the disk, the quota or the largest file size is exhausted."""
    rest = content.cast("B")
    try:
        while rest:
            rest = rest[os.write(file.fileno(), rest) :]
    except OSError as error:
        if error.errno in _FULL:
            return False
        raise
    return True


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()
