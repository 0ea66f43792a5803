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
from cvtune.data.listing import COLUMNS, PARTS, Item, Listing, join

SETTLED_NS = 2 * 10**9  # a file changed again within a tick of its clock would look unchanged
_UNREADABLE = b"unreadable"


@dataclass(frozen=True)
class Fingerprint:
    """What the contents of all images say."""

    digest: str  # hex, over classes and each image's part, label, name, bytes, and what else is known of it
    copies: Mapping[int, int]  # position of an image in val or test -> of one in train with the same bytes


def fingerprint(listing: Listing, cache: Path, workers: int) -> Fingerprint:
    """The fingerprint of all images, masks, and what is known of them.

    Files are read once: while no file's size or time of change differs, what is found in `cache` holds.
    """
    items = list(listing.items())
    masks = list(listing.masks())
    stamped = stamps([*items, *(mask for mask in masks if mask is not None)])
    known: Path | None = None
    if stamped:
        facts = [*stamped.facts, *itertools.repeat(b"", len(items))][: 2 * len(items)]
        known = cache / f"{_hash(listing, facts[: len(items)], facts[len(items) :])}.fingerprint"
        with contextlib.suppress(
            OSError, ValueError, LookupError, TypeError, AttributeError
        ):  # missing or torn: read again
            found = json.loads(known.read_bytes())
            return Fingerprint(str(found["digest"]), {int(i): int(j) for i, j in found["copies"].items()})
    with ThreadPoolExecutor(max(1, workers)) as pool:
        digests = list(pool.map(_digest, items))
        result = Fingerprint(
            _hash(listing, digests, pool.map(_digest, masks)), _copies(digests, len(listing.parts["train"].labels))
        )
    if known and stamped and stamped.settled:
        remember(known, json.dumps(asdict(result)).encode())
    return result


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
    files = [item for item in items if isinstance(item, Path)]
    if not files or len(files) < len(items):
        return None
    stats = [_stat(file) for file in files]
    facts = [os.fsencode(f"{file}\0{size}\0{at}") for file, (size, at) in zip(files, stats, strict=True)]
    return Stamps(facts, max(at for _, at in stats) < time.time_ns() - SETTLED_NS)


def _stat(file: Path) -> tuple[int, int]:
    """Size and time of change (ns); of a file that cannot be read, neither."""
    try:
        stat = file.stat()
    except OSError:
        return 0, 0
    return stat.st_size, stat.st_mtime_ns


def _digest(item: Item | None) -> bytes:
    if item is None:
        return b""
    if isinstance(item, np.ndarray):
        return hashlib.blake2b(f"{item.shape}".encode() + item.tobytes(), digest_size=16).digest()
    try:
        return hashlib.blake2b(item.read_bytes(), digest_size=16).digest()
    except OSError:
        return _UNREADABLE  # decoding will tell


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
    first = {digest: i for i, digest in reversed(list(enumerate(digests[:trained])))}
    first.pop(_UNREADABLE, None)
    return {i: first[digests[i]] for i in range(trained, len(digests)) if digests[i] in first}
