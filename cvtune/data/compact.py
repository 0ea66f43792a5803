"""Sequences of millions of items in a few arrays: a Path or a Packed is made only when it is asked for.

A list of Paths takes about 500 bytes for each, and every process that holds it counts them anew.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Generic, Self, TypeVar, overload

import numpy as np
import numpy.typing as npt

from cvtune.data.packed import Packed, Packing

T = TypeVar("T")
Rows = npt.NDArray[np.int64]


class Compact(Sequence[T], Generic[T]):
    """A Sequence that makes each element anew. A slice, or what is taken, shares the memory of the whole."""

    @abstractmethod
    def at(self, i: int) -> T:
        """Element `i`, 0 <= i < len(self)."""

    @abstractmethod
    def take(self, rows: Rows) -> Self:
        """The elements at `rows`, int64 (M,)."""

    @overload
    def __getitem__(self, i: int) -> T: ...

    @overload
    def __getitem__(self, i: slice) -> Self: ...

    def __getitem__(self, i: int | slice) -> T | Self:
        if isinstance(i, slice):
            return self.take(np.arange(*i.indices(len(self))))
        if not -len(self) <= i < len(self):
            raise IndexError(f"item {i} of {len(self)}")
        return self.at(int(i) % len(self))


def pick(items: Sequence[T], rows: Rows) -> Sequence[T]:
    """The items at `rows`, int64 (M,): compact if `items` are, else as a list."""
    return items.take(rows) if isinstance(items, Compact) else [items[i] for i in rows]


@dataclass(frozen=True, eq=False)
class Texts(Compact[str]):
    """N strings in one run of bytes, about 20 bytes each beside their letters."""

    joined: bytes
    starts: Rows  # int64 (N,)
    stops: Rows

    @classmethod
    def of(cls, texts: Iterable[str]) -> Texts:
        """The strings; names of files that are no text keep their bytes."""
        encoded = [os.fsencode(text) for text in texts]
        stops = np.fromiter(accumulate(map(len, encoded)), np.int64, len(encoded))
        return cls(b"".join(encoded), np.concatenate([np.zeros(1, np.int64), stops])[:-1], stops)

    def __len__(self) -> int:
        return len(self.starts)

    def at(self, i: int) -> str:
        """String `i`."""
        return os.fsdecode(self.joined[self.starts[i] : self.stops[i]])

    def take(self, rows: Rows) -> Texts:
        """The strings at `rows`."""
        return Texts(self.joined, self.starts[rows], self.stops[rows])


@dataclass(frozen=True, eq=False)
class FileItems(Compact[Path]):
    """N files by their names below one folder."""

    root: Path
    names: Texts

    def __len__(self) -> int:
        return len(self.names)

    def at(self, i: int) -> Path:
        """File `i`."""
        return self.root / self.names.at(i)

    def take(self, rows: Rows) -> FileItems:
        """The files at `rows`."""
        return FileItems(self.root, self.names.take(rows))


@dataclass(frozen=True, eq=False)
class PackedItems(Compact[Packed]):
    """N images in archives. `places`, int64 (N, 6): number of the archive, then the numbers of `Packed` in order."""

    archives: tuple[Path, ...]
    names: Texts
    places: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.places)

    def at(self, i: int) -> Packed:
        """Image `i`."""
        archive, offset, size, unpacked, crc, packing = self.places[i].tolist()
        return Packed(self.archives[archive], self.names.at(i), offset, size, unpacked, crc, Packing(packing))

    def take(self, rows: Rows) -> PackedItems:
        """The images at `rows`."""
        return PackedItems(self.archives, self.names.take(rows), self.places[rows])


def place(archive: int, *, offset: int, size: int = 0, unpacked: int = 0, crc: int = 0, packing: Packing) -> list[int]:
    """One row of `PackedItems.places`."""
    return [archive, offset, size, unpacked, crc, int(packing)]
