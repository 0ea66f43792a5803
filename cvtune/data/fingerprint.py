"""The fingerprint of a Listing: equal for equal images, labels and parts, wherever they lie."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from cvtune.data.cache import remember
from cvtune.data.listing import PARTS, Item, Listing

SETTLED_NS = 2 * 10**9  # a file changed again within a tick of its clock would look unchanged


def fingerprint(listing: Listing, cache: Path, workers: int) -> str:
    """A hex digest over class names and each image's part, label, name and bytes.

    Image files are read once: while no file's size or time of change differs, the digest found in `cache` holds.
    """
    items = list(listing.items())
    files = [item for item in items if isinstance(item, Path)]
    stats = [_stat(file) for file in files]
    known: Path | None = None
    if files and len(files) == len(items):
        facts = (os.fsencode(f"{file}\0{size}\0{changed}") for file, (size, changed) in zip(files, stats, strict=True))
        known = cache / f"{_hash(listing, facts)}.fingerprint"
        if known.is_file():
            return known.read_text()
    with ThreadPoolExecutor(max(1, workers)) as pool:
        digest = _hash(listing, pool.map(_digest, items))
    if known and max(changed for _, changed in stats) < time.time_ns() - SETTLED_NS:
        remember(known, digest.encode())
    return digest


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
        return hashlib.blake2b(item.read_bytes(), digest_size=16).digest()
    except OSError:
        return b"unreadable"  # decoding will tell


def _hash(listing: Listing, facts: Iterable[bytes]) -> str:
    parts = [part for part in PARTS for _ in listing.parts[part].labels]
    total = hashlib.blake2b(json.dumps(listing.classes).encode(), digest_size=16)
    for part, name, label, fact in zip(parts, listing.names(), listing.labels(), facts, strict=True):
        total.update(os.fsencode(f"\0{part}\0{name}\0{label}\0") + fact)
    return total.hexdigest()
