"""Images in the rows of Parquet files: which column holds them, and their bytes, read a group of rows at a time."""

from __future__ import annotations

import functools
import os
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

KEEP_BYTES = 256 * 10**6  # of groups of rows, in each process; always at least one group
_USUAL = ("image", "img", "jpg", "jpeg", "png", "webp", "bytes")  # names of the column, the first one present counts
_MASKS = ("mask", "masks", "annotation", "segmentation_mask", "label")  # the same of masks: 'label' if it holds files


def image_column(schema: Any) -> str | None:
    """The path of the column of a pyarrow schema that holds image files: 'image.bytes' of a struct as Hugging Face's
    `datasets` writes it, or 'image' of plain bytes. The only such column, or the one with a usual name; else None.
    """
    found = _of_bytes(schema)
    usual = [name for name in _USUAL if name in found]
    only = list(found) if len(found) == 1 else []
    return found[(usual or only)[0]] if usual or only else None


def mask_column(schema: Any) -> str | None:
    """The same of the column of masks, which has one of a few usual names; None if there is none."""
    found, images = _of_bytes(schema), image_column(schema)
    return next((found[name] for name in _MASKS if name in found and found[name] != images), None)


def _of_bytes(schema: Any) -> dict[str, str]:
    """The columns that hold files: name -> path of the bytes."""
    from pyarrow import types

    def is_bytes(kind: Any) -> bool:
        return bool(types.is_binary(kind) or types.is_large_binary(kind))

    found: dict[str, str] = {}
    for column in schema:
        if is_bytes(column.type):
            found[column.name] = column.name
        elif types.is_struct(column.type) and any(f.name == "bytes" and is_bytes(f.type) for f in column.type):
            found[column.name] = f"{column.name}.bytes"
    return found


def read_row(path: Path, row: int, *, masks: bool = False) -> bytes:
    """The bytes of the image in a row, or of its mask. Rows in sequence are cheap: their group is read once.

    Raises:
        OSError: the file is gone or torn, has no such row, or no bytes in it.
    """
    return _groups.read(path, row, masks)


def forget() -> None:
    """Lets go of all files and rows that this process holds."""
    global _groups
    _groups = _Groups()
    _opened.cache_clear()


class _Table:
    """A Parquet file of which groups of rows are read."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        try:
            self.file = parquet.ParquetFile(path)
        except pa.ArrowException as error:
            raise OSError(str(error)) from error
        schema = self.file.schema_arrow
        self.columns = {False: image_column(schema), True: mask_column(schema)}  # by whether masks are asked for
        rows = [self.file.metadata.row_group(g).num_rows for g in range(self.file.num_row_groups)]
        self.stops = np.cumsum(rows)

    def group(self, number: int, masks: bool) -> Any:
        """The images or masks of a group, a pyarrow array of bytes."""
        import pyarrow as pa

        try:
            read = self.file.read_row_group(number, columns=[self.columns[masks]], use_threads=False)
        except (pa.ArrowException, OSError) as error:
            raise OSError(f"its group of rows is not readable: {error}") from error
        array = read.column(0).combine_chunks()
        return array.field("bytes") if pa.types.is_struct(array.type) else array


_opened = functools.lru_cache(maxsize=64)(_Table)


class _Groups:
    """The groups of rows that were read last. One thread reads at a time; others wait, often for the same group."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._groups: OrderedDict[tuple[Path, int, bool], Any] = OrderedDict()
        self._bytes = 0

    def read(self, path: Path, row: int, masks: bool) -> bytes:
        """See `read_row`."""
        with self._lock:
            table = _opened(path)
            number = int(np.searchsorted(table.stops, row, side="right"))
            if table.columns[masks] is None or number == len(table.stops):
                raise OSError("the file has no such row any more")
            key = (path, number, masks)
            group = self._groups.get(key)
            if group is None:
                group = self._groups[key] = table.group(number, masks)
                self._bytes += group.nbytes
            self._groups.move_to_end(key)
            while len(self._groups) > 1 and self._bytes > KEEP_BYTES:
                self._bytes -= self._groups.popitem(last=False)[1].nbytes
        start = int(table.stops[number - 1]) if number else 0
        content: bytes | None = group[row - start].as_py()
        if content is None:
            raise OSError(f"the row has no bytes of {'a mask' if masks else 'an image'}")
        return content


_groups = _Groups()
os.register_at_fork(after_in_child=forget)  # a thread of the parent may have held the lock
