"""Decodes every image of a listing once: into a store where there is room, else only to learn which are corrupt."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np

from cvtune.data import kept, store
from cvtune.data.cache import remember, sweep
from cvtune.data.decode import IN_MEMORY, REMEDY, Fit, check_kind, load_pair
from cvtune.data.fingerprint import Fingerprint, leaks
from cvtune.data.listing import PARTS, Item, Labelled, Listing, join, without_images
from cvtune.errors import DataError
from cvtune.kinds import PHOTO, Kind, Sketch, Stats, from_json, usual
from cvtune.printable import printable

_AT_ONCE = 1024  # images that may be decoded and not yet written
_ASKED = 9  # of the first images that can be decoded, what most of them are all must be
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
    kind: Kind = PHOTO
    stats: Stats | None = None  # see `store.Index`


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
        images = _Stream(plan, workers)
        written = store.write_pixels(file, images, limit)
        corrupt = _named(plan.listing, written.corrupt)
        scan = Scan(written.bytes, corrupt, written.bytes <= limit, images.kind, images.sketch.stats())
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


class _Stream:
    """Every image of a plan in order, and what is learned of them on the way: their kind, and the numbers of train."""

    def __init__(self, plan: Plan, workers: int) -> None:
        self._plan, self._workers = plan, workers
        self.kind, self.sketch = PHOTO, Sketch(self._trained)

    @property
    def _trained(self) -> int:
        return len(self._plan.listing.parts["train"].labels)

    def __iter__(self) -> Iterator[store.Pair | DataError]:
        decoded = _decoded(self._plan, self._workers)
        first: list[store.Pair | DataError] = []
        while sum(isinstance(one, store.Pair) for one in first) < _ASKED and (some := next(decoded, None)) is not None:
            first.append(some)
        self.kind = usual(one.image for one in first if isinstance(one, store.Pair))
        items = self._plan.listing.items()
        for position, (item, one) in enumerate(zip(items, chain(first, decoded), strict=True)):
            one = self._checked(item, one)
            if self.kind != PHOTO and position < self._trained and isinstance(one, store.Pair):
                self.sketch.add(one.image)
            yield one

    def _checked(self, item: Item, one: store.Pair | DataError) -> store.Pair | DataError:
        if isinstance(one, store.Pair):
            try:
                check_kind(one.image, self.kind, item)
            except DataError as error:
                return error
        return one


def _decoded(plan: Plan, workers: int) -> Iterator[store.Pair | DataError]:
    """Every image in order, of whatever kind. Threads suffice: decoding and resizing release the interpreter lock."""
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
    root = printable(f"{listing.root}/")
    texts = {i: str(error).removeprefix(root).removesuffix(f".{REMEDY}") for i, error in errors.items()}
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
        kind=scan.kind,
        stats=scan.stats,
    )


def _read_scan(record: Path) -> Scan | None:
    try:
        raw = json.loads(record.read_bytes())
        corrupt = {int(i): str(text) for i, text in raw["corrupt"].items()}
        return Scan(int(raw["bytes"]), corrupt, bool(raw["full"]), *from_json(raw))
    except (OSError, ValueError, LookupError, TypeError, AttributeError):  # missing or torn: scan again
        return None


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """A name for a file that must not stay behind (of a killed process, `sweep` removes it)."""
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)
