"""Decodes every image of a listing once: into a store where there is room, else only to learn which are corrupt."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from cvtune.data import kept, store
from cvtune.data.cache import remember, sweep
from cvtune.data.decode import IN_MEMORY, REMEDY, Fit, load_pair
from cvtune.data.fingerprint import Fingerprint, leaks
from cvtune.data.listing import PARTS, Item, Labelled, Listing, join, without_images
from cvtune.errors import DataError

_AT_ONCE = 1024  # images that may be decoded and not yet written
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """What a store is to hold and where."""

    listing: Listing
    contents: Fingerprint
    path: Path
    side: int
    fit: Fit
    max_corrupt: float


@dataclass(frozen=True)
class Scan:
    """What decoding has told where no store was made."""

    bytes: int  # of the decoded images and masks
    corrupt: dict[int, str]  # position in the listing: 'name: reason'
    full: bool  # the disk was full before the limit was reached


def build(plan: Plan, limit: int, workers: int) -> Scan | None:
    """Writes the store and returns None, or a Scan if it would exceed `limit` bytes. One process at a time may call it.

    Raises:
        DataError: too many images are corrupt, or all images of a class in train or val are.
    """
    record = plan.path.with_suffix(".scan")
    scan = _read_scan(record)
    if store.read_index(plan.path) or (scan and (scan.bytes > limit or scan.full)):
        return scan
    sweep(plan.path.parent)
    _log.info("Decoding %d images (once per node) into %s.", len(plan.listing.labels()), plan.path.parent)
    with _temporary(plan.path.with_suffix(".part")) as temporary, temporary.open("wb", buffering=0) as file:
        written = store.write_pixels(file, _decoded(plan, workers), limit)
        scan = Scan(written.bytes, _named(plan.listing, written.corrupt), full=written.bytes <= limit)
        parts = without(plan.listing, scan.corrupt)
        check_corrupt(tuple(scan.corrupt.values()), len(plan.listing.labels()), plan.max_corrupt)
        _check_classes(plan.listing, parts)
        if written.complete and store.commit(file, plan.path, _index(plan, parts, scan, written.shapes)):
            record.unlink(missing_ok=True)
            kept.remove(plan.path.with_suffix(".kept"))
            return None
    remember(record, json.dumps(dataclasses.asdict(scan)).encode())
    return scan


def told(plan: Plan, scan: Scan) -> tuple[str, ...]:
    """The notices of the listing and of what the files hold, but for the corrupt ones."""
    return (*plan.listing.notices, *leaks(plan.listing, plan.contents.copies, scan.corrupt))


def without(listing: Listing, corrupt: Collection[int]) -> dict[str, Labelled]:
    """The parts of a listing without the images at the positions `corrupt` (train first, then val, then test)."""
    good = ~np.isin(np.arange(len(listing.labels())), list(corrupt))
    parts: dict[str, Labelled] = {}
    start = 0
    for part in PARTS:
        stop = start + len(listing.parts[part].labels)
        parts[part] = listing.parts[part].take(np.flatnonzero(good[start:stop]))
        start = stop
    return parts


def check_corrupt(corrupt: tuple[str, ...], total: int, max_corrupt: float) -> None:
    """Raises DataError if more than the share `max_corrupt` of `total` images is corrupt."""
    if len(corrupt) <= max_corrupt * total:
        return
    more = f" and {len(corrupt) - 10} more" if len(corrupt) > 10 else ""
    raise DataError(
        f"{len(corrupt)} of {total} images ({len(corrupt) / total:.1%}) cannot be used, and data.max_corrupt allows "
        f"{max_corrupt:.1%}: {'; '.join(corrupt[:10])}{more}. Mend or remove them, or raise data.max_corrupt."
    )


def _check_classes(listing: Listing, parts: dict[str, Labelled]) -> None:
    """Raises DataError if a class has lost all its images. Where images show several, a label names one only."""
    if listing.task != "classify":
        return
    for part in ("train", "val"):
        before = without_images(listing.classes, listing.parts[part].labels)
        for name in without_images(listing.classes, parts[part].labels):
            if name not in before:
                raise DataError(
                    f"class {name!r} has only images in {part} that cannot be decoded. "
                    "Mend or replace them, or remove the class."
                )


def _decoded(plan: Plan, workers: int) -> Iterator[store.Pair | DataError]:
    """Every image in order. Threads suffice: decoding and resizing release the interpreter lock."""
    listing = plan.listing

    def one(both: tuple[Item, Item | None]) -> store.Pair | DataError:
        try:
            return store.Pair(*load_pair(*both, listing.lookup, plan.side, plan.fit))
        except DataError as error:
            return error

    pairs = zip(listing.items(), listing.masks(), strict=True)
    with ThreadPoolExecutor(max(1, workers)) as pool:
        while some := list(islice(pairs, _AT_ONCE)):
            yield from pool.map(one, some)


def _named(listing: Listing, errors: dict[int, DataError]) -> dict[int, str]:
    """The errors as 'name: reason', the name relative to the folder of the images."""
    names = list(listing.names()) if errors else []
    texts = {i: str(error).removeprefix(f"{listing.root}/").removesuffix(f".{REMEDY}") for i, error in errors.items()}
    return {
        i: names[i] + text.removeprefix(IN_MEMORY) if text.startswith(f"{IN_MEMORY}:") else text
        for i, text in texts.items()
    }


def _index(plan: Plan, parts: dict[str, Labelled], scan: Scan, shapes: store.Shapes) -> store.Index:
    return store.Index(
        classes=plan.listing.classes,
        fingerprint=plan.contents.digest,
        corrupt=tuple(scan.corrupt.values()),
        notices=told(plan, scan),
        sizes=tuple(len(parts[part].labels) for part in PARTS),
        task=plan.listing.task,
        labels=join(parts, "labels"),
        tags=join(parts, "tags"),
        groups=join(parts, "groups"),
        weights=join(parts, "weights"),
        shapes=shapes,
    )


def _read_scan(record: Path) -> Scan | None:
    try:
        raw = json.loads(record.read_bytes())
        return Scan(int(raw["bytes"]), {int(i): str(text) for i, text in raw["corrupt"].items()}, bool(raw["full"]))
    except (OSError, ValueError, LookupError, TypeError, AttributeError):  # missing or torn: scan again
        return None


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """A name for a file that must not stay behind (of a killed process, `sweep` removes it)."""
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)
