"""The fingerprint of a Listing: equal for equal images, labels and parts, wherever they lie."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cvtune.data.cache import remember
from cvtune.data.guard import regular
from cvtune.data.listing import COLUMNS, PARTS, Item, Listing, join
from cvtune.data.packed import Packed
from cvtune.errors import DataError

SETTLED_NS = 2 * 10**9  # a file changed again within a tick of its clock would look unchanged
UNREADABLE = b"unreadable"
_AT_ONCE, _RUN = 4096, 64  # items that are read and not yet counted in; items of one task


@dataclass(frozen=True)
class Fingerprint:
    """What the contents of all images say."""

    digest: str  # hex, over classes and each image's part, label, name, bytes, and what else is known of it
    copies: Mapping[int, int]  # position of an image in val or test -> of one in train with the same bytes
    distinct: int  # contents that differ, among all images; each that cannot be read counts as one


def fingerprint(listing: Listing, cache: Path, workers: int) -> Fingerprint:
    """The fingerprint of all images, masks, and what is known of them.

    Files are read once: while no file's size or time of change differs, what is found in `cache` holds.
    """
    seen = _Seen()
    key = _hash(listing, map(seen.fact, listing.items()), map(seen.fact, listing.masks()))
    known = cache / f"{key}.fingerprint" if seen.files else None
    if known:
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError, AttributeError):  # missing or torn
            found = json.loads(known.read_bytes())
            copies = {int(i): int(j) for i, j in found["copies"].items()}
            return Fingerprint(str(found["digest"]), copies, int(found["distinct"]))
    digests = list(_digests(listing.items(), workers))
    digest = _hash(listing, digests, _digests(listing.masks(), workers))
    distinct = len(set(digests) - {UNREADABLE}) + digests.count(UNREADABLE)
    result = Fingerprint(digest, _copies(digests, len(listing.parts["train"].labels)), distinct)
    if known and seen.settled():
        remember(known, json.dumps(asdict(result)).encode())
    return result


def refuse_equal(listing: Listing, found: Fingerprint) -> None:
    """Raises DataError if all images have the same bytes."""
    total = len(listing.labels())
    if found.distinct == 1 < total:
        first, second, *_ = listing.names()
        raise DataError(
            f"all {total} images have the same bytes (such as {first} = {second}), so there is nothing to learn. Look "
            "at how the files were written."
        )


def leaks(listing: Listing, copies: Mapping[int, int], corrupt: Collection[int]) -> Iterator[str]:
    """A notice for val and for test if images in them, which are not `corrupt`, are in train, too."""
    names = list(listing.names()) if copies else []
    start = len(listing.parts["train"].labels)
    for part in ("val", "test"):
        stop = start + len(listing.parts[part].labels)
        found = [i for i in range(start, stop) if i in copies and i not in corrupt]
        if found:
            yield (
                f"{len(found)} images of {part} are in train, too (the same bytes), for example {names[found[0]]} = "
                f"{names[copies[found[0]]]}: scores on {part} are too good. Remove the copies."
            )
        start = stop


class Stamps(NamedTuple):
    """What changes with the content of files, without reading them."""

    facts: list[bytes]  # of each file: path, size and time of change
    settled: bool  # all were changed so long ago that a later change shows


def stamps(items: Sequence[Item]) -> Stamps | None:
    """The stamps of files; None if an item is none, or there are no items."""
    seen = _Seen()
    facts = [seen.fact(item) for item in items]
    return Stamps(facts, seen.settled()) if facts and seen.files else None


class _Seen:
    """What the file system tells of files and archives, each of which is asked once."""

    def __init__(self) -> None:
        self.files = True  # so far, no item was an array
        self._newest = 0  # time of the last change, ns
        self._archives: dict[Path, tuple[int, int]] = {}

    def fact(self, item: Item | None) -> bytes:
        """Where an image lies, and size and time of change of its file or archive; nothing of what is no file."""
        if item is None:
            return b""
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
        self._newest = max(self._newest, changed)
        return os.fsencode(f"{place}\0{size}\0{changed}")

    def settled(self) -> bool:
        """Whether all were changed so long ago that a later change shows."""
        return self._newest < time.time_ns() - SETTLED_NS


def _digests(items: Iterator[Item | None], workers: int) -> Iterator[bytes]:
    """Digests of the items' bytes, in order, by threads that take a run of items at a time."""
    with ThreadPoolExecutor(max(1, workers)) as pool:
        while some := list(itertools.islice(items, _AT_ONCE)):
            runs = [some[start : start + _RUN] for start in range(0, len(some), _RUN)]
            for digests in pool.map(lambda run: [digest(item) for item in run], runs):
                yield from digests


def _stat(file: Path) -> tuple[int, int]:
    """Size and time of change (ns); of a file that cannot be read, neither."""
    try:
        stat = file.stat()
    except OSError:
        return 0, 0
    return stat.st_size, stat.st_mtime_ns


def digest(item: Item | None) -> bytes:
    """16 bytes that tell an image or mask by its content: the bytes of its file, or the numbers of an array."""
    if item is None:
        return b""
    if isinstance(item, np.ndarray):
        kind = "" if item.dtype == np.uint8 else item.dtype.str
        return hashlib.blake2b(f"{item.shape}{kind}".encode() + item.tobytes(), digest_size=16).digest()
    try:
        content = item.read() if isinstance(item, Packed) else regular(item).read_bytes()
        return hashlib.blake2b(content, digest_size=16).digest()
    except OSError:
        return UNREADABLE  # decoding will tell


def _hash(listing: Listing, images: Iterable[bytes], masks: Iterable[bytes]) -> str:
    parts = [part for part in PARTS for _ in listing.parts[part].labels]
    total = hashlib.blake2b(json.dumps(listing.classes).encode(), digest_size=16)
    if listing.task != "classify":
        total.update(f"\0{listing.task}\0{listing.lookup}".encode())
    rows = zip(parts, listing.names(), listing.labels(), images, masks, strict=True)
    for part, name, label, image, mask in rows:
        total.update(os.fsencode(f"\0{part}\0{name}\0{label}\0") + image + mask)
    for column in COLUMNS:
        values = join(listing.parts, column)
        if values is not None and column != "labels":
            total.update(f"\0{column}\0".encode() + values.tobytes())
    return total.hexdigest()


def _copies(digests: list[bytes], trained: int) -> dict[int, int]:
    others = {digests[i] for i in range(trained, len(digests))} - {UNREADABLE}
    first: dict[bytes, int] = {}
    for i in range(trained):
        if digests[i] in others:
            first.setdefault(digests[i], i)
    return {i: first[digests[i]] for i in range(trained, len(digests)) if digests[i] in first}
