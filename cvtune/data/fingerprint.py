"""The fingerprint of a Listing: equal for equal images, labels and parts, wherever they lie."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np

from cvtune.data.cache import remember
from cvtune.data.listing import PARTS, Item, Listing
from cvtune.data.packed import Packed

SETTLED_NS = 2 * 10**9  # a file changed again within a tick of its clock would look unchanged
_AT_ONCE, _RUN = 4096, 64  # images that are read and not yet counted in; images of one task


def fingerprint(listing: Listing, cache: Path, workers: int) -> str:
    """A hex digest over class names and each image's part, label, name and bytes.

    Image files are read once: while no file's size or time of change differs, the digest found in `cache` holds.
    """
    seen = _Seen()
    key = _hash(listing, map(seen.fact, listing.items()))
    known = cache / f"{key}.fingerprint" if seen.files else None
    if known and known.is_file():
        return known.read_text()
    digest = _hash(listing, _digests(listing.items(), workers))
    if known and seen.newest < time.time_ns() - SETTLED_NS:
        remember(known, digest.encode())
    return digest


class _Seen:
    """What the file system tells of files and archives, each of which is asked once."""

    def __init__(self) -> None:
        self.files = True  # so far, no image was an array
        self.newest = 0  # time of the last change, ns
        self._archives: dict[Path, tuple[int, int]] = {}

    def fact(self, item: Item) -> bytes:
        """Where an image lies, and size and time of change of its file or archive."""
        if isinstance(item, np.ndarray):
            self.files = False
            return b""
        if isinstance(item, Packed):
            if item.archive not in self._archives:
                self._archives[item.archive] = _stat(item.archive)
            size, changed = self._archives[item.archive]
            place = f"{item}\0{item.offset}"
        else:
            size, changed = _stat(item)
            place = str(item)
        self.newest = max(self.newest, changed)
        return os.fsencode(f"{place}\0{size}\0{changed}")


def _digests(items: Iterator[Item], workers: int) -> Iterator[bytes]:
    """Digests of the images' bytes, in order, by threads that take a run of images at a time."""
    with ThreadPoolExecutor(max(1, workers)) as pool:
        while some := list(islice(items, _AT_ONCE)):
            runs = [some[start : start + _RUN] for start in range(0, len(some), _RUN)]
            for digests in pool.map(lambda run: [_digest(item) for item in run], runs):
                yield from digests


def _stat(file: Path) -> tuple[int, int]:
    """Size and time of change (ns); of a file that cannot be read, neither."""
    try:
        stat = file.stat()
    except OSError:
        return 0, 0
    return stat.st_size, stat.st_mtime_ns


def _digest(item: Item) -> bytes:
    if isinstance(item, np.ndarray):
        return hashlib.blake2b(f"{item.shape}".encode() + item.tobytes(), digest_size=16).digest()
    try:
        content = item.read() if isinstance(item, Packed) else item.read_bytes()
        return hashlib.blake2b(content, digest_size=16).digest()
    except OSError:
        return b"unreadable"  # decoding will tell


def _hash(listing: Listing, facts: Iterable[bytes]) -> str:
    parts = [part for part in PARTS for _ in listing.parts[part].labels]
    total = hashlib.blake2b(json.dumps(listing.classes).encode(), digest_size=16)
    for part, name, label, fact in zip(parts, listing.names(), listing.labels(), facts, strict=True):
        total.update(os.fsencode(f"\0{part}\0{name}\0{label}\0") + fact)
    return total.hexdigest()
