"""The store: all decoded images of a data set in one file that every process maps and none copies.

The file is the pixels of one image after the other, each followed by its mask if it has one, then an index, then a
footer with the index's length and digest. It gets its name only when it is complete, so what has the name is whole; the
footer guards against the rest.
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
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cvtune.data.listing import COLUMNS, Labels, Pixels, Tags, Task
from cvtune.errors import DataError
from cvtune.kinds import PHOTO, Kind, Stats, from_json, to_json

MAGIC = b"cvtune03"  # changes with the layout, and with how images are decoded or resized
_FOOTER = struct.Struct("<8sQ16s")  # magic, bytes of the index, BLAKE2b of the index
_ARRAYS = (*COLUMNS, "shapes")  # of an Index; the rest of it is JSON
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
    task: Task
    labels: Labels  # int64 (N,)
    tags: Tags | None  # float32 (N, K)
    groups: Labels | None  # int64 (N,)
    weights: Tags | None  # float32 (N,)
    shapes: Shapes  # height and width, int64 (N, 2)
    kind: Kind = PHOTO
    stats: Stats | None = None  # of the training images; None: photos

    @property
    def has_masks(self) -> bool:
        """Whether each image is followed by its mask."""
        return self.task == "segment"

    def offsets(self) -> npt.NDArray[np.int64]:
        """Where each image begins and the last one ends, bytes, int64 (N + 1,)."""
        pixels = self.shapes.prod(axis=1)
        sizes = pixels * (self.kind.bytes + self.has_masks) + (_gap(pixels, self.kind) if self.has_masks else 0)
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])


def _gap(pixels: Any, kind: Kind) -> Any:
    """Bytes left free behind a mask, so that the numbers of the next image lie where the processor reads them best."""
    return -pixels % np.dtype(kind.dtype).itemsize


class Pair(NamedTuple):
    """A decoded image, (h, w, C), and its mask, uint8 (h, w), if the task has masks."""

    image: Pixels
    mask: Pixels | None


@dataclass(frozen=True)
class Written:
    """What became of a stream of images."""

    shapes: Shapes  # of those that could be decoded, int64 (N, 2)
    corrupt: dict[int, DataError]  # position in the stream: what is wrong
    bytes: int  # of all decoded images and masks, written or not
    complete: bool  # all decoded images are in the file


def write_pixels(file: io.FileIO, pairs: Iterable[Pair | DataError], limit: int) -> Written:
    """Appends images and masks until they exceed `limit` bytes or fill the disk; then empties it and counts on."""
    shapes: list[tuple[int, int]] = []
    corrupt: dict[int, DataError] = {}
    total = 0
    complete = True
    for position, pair in enumerate(pairs):
        if isinstance(pair, DataError):
            corrupt[position] = pair
            continue
        shapes.append((pair.image.shape[0], pair.image.shape[1]))
        planes = [plane.data.cast("B") for plane in pair if plane is not None]
        if pair.mask is not None and (gap := -pair.mask.size % pair.image.itemsize):
            planes.append(memoryview(bytes(gap)))
        total += sum(plane.nbytes for plane in planes)
        if complete and not (total <= limit and all(append(file, plane) for plane in planes)):
            complete = False
            file.truncate(0)
    return Written(np.array(shapes, np.int64).reshape(-1, 2), corrupt, total, complete)


def commit(file: io.FileIO, path: Path, index: Index) -> bool:
    """Appends the index to the pixels in `file` and gives the file its name `path`. False: the disk is full."""
    fields = {f.name: getattr(index, f.name) for f in dataclasses.fields(Index)}
    meta = {name: value for name, value in fields.items() if name not in _ARRAYS}
    meta |= to_json(index.kind, index.stats)
    arrays = {name: value for name, value in fields.items() if name in _ARRAYS and value is not None}
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, meta=np.array(json.dumps(meta)), **arrays)
    content = buffer.getvalue()
    footer = _FOOTER.pack(MAGIC, len(content), _digest(content))
    if not append(file, memoryview(content + footer)):
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
        meta["kind"], meta["stats"] = from_json(meta)
        index = Index(**meta | {name: arrays.get(name) for name in _ARRAYS})
    return index if index.offsets()[-1] + length == end else None


class StoreImages:
    """Images `start` to `stop` of a store: read-only views (h, w, C) of the mapped file; or masks, uint8 (h, w).

    Pickles as its path, so that each process maps the file itself: at the first access, unless it is given `opened`.
    """

    def __init__(self, path: Path, start: int, stop: int, masks: bool = False, opened: Opened | None = None) -> None:
        self._path, self._start, self._stop, self._masks, self._opened = path, start, stop, masks, opened

    def __len__(self) -> int:
        return self._stop - self._start

    def __getitem__(self, i: int) -> Pixels:
        if not 0 <= i < len(self):
            raise IndexError(f"image {i} of {len(self)}")
        pixels, offsets, shapes, kind, dtype = self._opened or self._open()
        row = self._start + i
        height, width = shapes[row]
        middle = offsets[row] + height * width * kind.bytes
        if self._masks:
            return pixels[middle : middle + height * width].reshape(height, width)
        return pixels[offsets[row] : middle].view(dtype).reshape(height, width, kind.channels)

    def __reduce__(self) -> tuple[Any, ...]:
        return StoreImages, (self._path, self._start, self._stop, self._masks)

    def _open(self) -> Opened:
        index = read_index(self._path)
        self._opened = mapped(self._path, index) if index else None
        if self._opened is None:
            raise DataError(f"{self._path}: the decoded images are gone. Start again, and they are decoded again.")
        return self._opened


def mapped(path: Path, index: Index) -> Opened | None:
    """The file of a store, mapped: what is read stays there even if the file is deleted. None: it is gone already."""
    try:
        pixels = np.asarray(np.memmap(path, np.uint8, "r"))  # a plain array: memmap's own views cost more
    except FileNotFoundError:
        return None
    return Opened(pixels, index.offsets(), index.shapes, index.kind, np.dtype(index.kind.dtype))


class Opened(NamedTuple):
    """A mapped store."""

    pixels: npt.NDArray[np.uint8]
    offsets: npt.NDArray[np.int64]
    shapes: Shapes
    kind: Kind
    dtype: np.dtype[Any]


def append(file: io.FileIO, content: memoryview) -> bool:
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
