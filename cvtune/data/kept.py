"""Images kept compressed on the node's own disk where decoded ones do not fit: slow storage is read once per node.

An image is kept as the bytes of its file, or as lossless WebP of what training uses of it (see `resize_keep`) where
that is smaller: so the pixels are the same in any case. Measured: of a JPEG of 2560 x 1708 pixels at side 336, 0.24 MB
are kept instead of 0.77, and decoded in 3 ms instead of 62; lossless PNG takes a quarter more. JPEGs of 128 pixels
are kept as they are, since losslessly they would take three times as much. So are all files that are no photos.
"""

from __future__ import annotations

import io
import logging
import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from cvtune.data import store
from cvtune.data.cache import remember
from cvtune.data.compact import Compact, Rows, pick
from cvtune.data.decode import Fit, decode_bytes, resize_keep
from cvtune.data.guard import regular
from cvtune.data.listing import PARTS, Item, Labelled
from cvtune.data.packed import Packed, Packing, forget_open_archives
from cvtune.errors import DataError
from cvtune.kinds import PHOTO, Kind

_AT_ONCE = 256  # images that may be compressed and not yet written
_LOSSLESS = 4  # lossless images have at least a fourth of the decoded bytes: below it nothing is tried
_WEBP_SIDE = 16383  # pixels, the most that the format can say
_log = logging.getLogger(__name__)


class Kept(NamedTuple):
    """What is kept of a data set."""

    parts: dict[str, Labelled]  # the same items; those that are kept are read from there
    images: int  # that are kept, masks included
    total: int  # images and masks
    bytes: int


@dataclass(frozen=True, eq=False)
class KeptItems(Compact[Item]):
    """Items of which some are kept in one file."""

    items: Sequence[Item]
    file: Path
    starts: Rows  # int64 (N,), where each begins in the file
    sizes: Rows  # int64 (N,), bytes; 0: it is not kept
    encoded: npt.NDArray[np.bool_]  # (N,), whether it is WebP instead of the bytes of the item

    def __len__(self) -> int:
        return len(self.items)

    def at(self, i: int) -> Item:
        """Item `i`: where it is kept, else where it comes from."""
        item = self.items[i]
        size = int(self.sizes[i])
        if isinstance(item, np.ndarray) or not size or not self.file.exists():  # a cache may be emptied at any time
            return item
        name = f"{item.name}.webp" if self.encoded[i] else item.name
        return Packed(self.file, name, int(self.starts[i]), size, size, 0, Packing.PLAIN)

    def take(self, rows: Rows) -> KeptItems:
        """The items at `rows`."""
        return KeptItems(pick(self.items, rows), self.file, self.starts[rows], self.sizes[rows], self.encoded[rows])


def keep(
    path: Path, parts: Mapping[str, Labelled], side: int, fit: Fit, limit: int, workers: int, kind: Kind = PHOTO
) -> Kept:
    """Keeps the items of parts in the file `path`, up to `limit` bytes, or finds them kept by an earlier run.

    Train comes first, then val, test and the masks; what does not fit is left out. Arrays are in memory already. What
    is kept is made anew only if not all did fit and the limit has doubled since. One process at a time may call it.
    """
    columns = [parts[part].items for part in PARTS] + [parts[part].masks or () for part in PARTS]
    total = sum(map(len, columns))
    index = _read(path, total)
    if index is None or (not index.sizes.all() and limit >= 2 * index.limit):
        smaller = side if kind == PHOTO else None
        index = _write(path, columns, smaller, fit, limit, workers)
    starts = np.cumsum(index.sizes) - index.sizes
    made: list[KeptItems] = []
    for column, stop in zip(columns, np.cumsum([len(column) for column in columns]), strict=True):
        rows = slice(int(stop) - len(column), int(stop))
        made.append(KeptItems(column, path, starts[rows], index.sizes[rows], index.encoded[rows]))
    kept = {
        part: parts[part]._replace(items=images, masks=None if parts[part].masks is None else masks)
        for part, images, masks in zip(PARTS, made[:3], made[3:], strict=True)
    }
    images = int(np.count_nonzero(index.sizes))
    return Kept(kept if images else dict(parts), images, total, int(index.sizes.sum()))


def remove(path: Path) -> None:
    """Removes what `keep` has written."""
    path.unlink(missing_ok=True)
    _index_of(path).unlink(missing_ok=True)


class _Index(NamedTuple):
    sizes: Rows  # int64 (N,)
    encoded: npt.NDArray[np.bool_]  # (N,)
    limit: int  # bytes that were allowed


def _index_of(path: Path) -> Path:
    return path.with_suffix(".kept-index")


def _read(path: Path, total: int) -> _Index | None:
    """The index of what is kept; None if there is none, or it does not fit the file."""
    try:
        with np.load(_index_of(path), allow_pickle=False) as arrays:
            index = _Index(arrays["sizes"], arrays["encoded"], int(arrays["limit"]))
        whole = path.stat().st_size == index.sizes.sum() and len(index.sizes) == total
    except (OSError, ValueError, LookupError, EOFError, zipfile.BadZipFile):
        return None
    return index if whole else None


def _write(
    path: Path, columns: Sequence[Sequence[Item]], side: int | None, fit: Fit, limit: int, workers: int
) -> _Index:
    """Writes file and index; `side` None: of all the bytes of their files.

    Where the disk is full before the limit, half of what fits is kept, and half left free.
    """
    remove(path)
    forget_open_archives()
    images = sum(map(len, columns[:3]))
    total = sum(map(len, columns))
    sizes, encoded = np.zeros(total, np.int64), np.zeros(total, np.bool_)
    _log.info("Keeping up to %d images compressed in %s, %.3g GB at most.", images, path.parent, limit / 1e9)
    temporary = path.with_suffix(".part")
    try:
        with temporary.open("wb", buffering=0) as file:
            used = 0
            for i, content in enumerate(_contents(columns, images, side, fit, workers)):
                if used + len(content.bytes) > limit:
                    break
                if not store.append(file, memoryview(content.bytes)):
                    sizes[np.cumsum(sizes) > used // 2] = 0
                    break
                used += len(content.bytes)
                sizes[i], encoded[i] = len(content.bytes), content.is_encoded
            file.truncate(int(sizes.sum()))
            os.fsync(file.fileno())
        if sizes.any():
            temporary.replace(path)
            buffer = io.BytesIO()
            np.savez(buffer, sizes=sizes, encoded=encoded, limit=np.array(limit))
            remember(_index_of(path), buffer.getvalue())
    finally:
        temporary.unlink(missing_ok=True)
    return _Index(sizes, encoded, limit)


class _Content(NamedTuple):
    bytes: bytes  # none where it is not kept
    is_encoded: bool = False


def _contents(
    columns: Sequence[Sequence[Item]], images: int, side: int | None, fit: Fit, workers: int
) -> Iterator[_Content]:
    """What is to be kept of every item, in order. Threads suffice: Pillow releases the interpreter lock."""

    def one(numbered: tuple[int, Item]) -> _Content:
        number, item = numbered
        try:
            return _content(item, side if number < images else None, fit)
        except (OSError, DataError):
            return _Content(b"")  # it could be read before: try again when it is needed

    items = enumerate(chain.from_iterable(columns))
    with ThreadPoolExecutor(max(1, workers)) as pool:
        while some := list(islice(items, _AT_ONCE)):
            yield from pool.map(one, some)


def _content(item: Item, side: int | None, fit: Fit) -> _Content:
    """The smaller of an item's own bytes and its lossless image; `side` None: its own bytes, as of a mask."""
    if isinstance(item, np.ndarray):
        return _Content(b"")
    own = regular(item).read_bytes() if isinstance(item, Path) else item.read()
    if side is None or _LOSSLESS * len(own) <= 3 * side * side:
        return _Content(own)
    image = resize_keep(decode_bytes(own, str(item)), side, fit)
    if max(image.shape) > _WEBP_SIDE or _LOSSLESS * len(own) <= image.nbytes:
        return _Content(own)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "WEBP", lossless=True, quality=20, method=0)
    return _Content(buffer.getvalue(), True) if buffer.tell() < len(own) else _Content(own)
