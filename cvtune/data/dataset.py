"""Dataset: the images of a study, decoded once per node and shared by all its trials."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from cvtune.data import store
from cvtune.data.build import Plan, Scan, build, check_corrupt, told, without
from cvtune.data.cache import allowance, cache_folder, locked
from cvtune.data.decode import Fit, check_kind, load, load_mask, resize_keep, resize_mask
from cvtune.data.fingerprint import fingerprint, refuse_equal
from cvtune.data.kept import Kept, keep
from cvtune.data.listing import PARTS, Item, Labelled, Labels, Pixels, Tags, Task
from cvtune.data.sources import read_source
from cvtune.kinds import PHOTO, Kind, Stats
from cvtune.recipe import Data
from cvtune.sections import Source


class Images(Protocol):
    """N images, each (h, w, C) of its own size, read-only; or masks, uint8 (h, w). Picklable."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int, /) -> Pixels: ...


@dataclass(frozen=True)
class Part:
    """Images and what is known of each, in the same order; see `listing.Labelled`."""

    images: Images
    labels: Labels  # int64 (N,)
    tags: Tags | None = None  # float32 (N, K)
    masks: Images | None = None  # each uint8 (h, w), of the size of its image
    groups: Labels | None = None  # int64 (N,)
    weights: Tags | None = None  # float32 (N,)


@dataclass(frozen=True)
class Dataset:
    """Labelled images. Pickles as the path of its store and the labels, so that it can be sent within a node."""

    classes: tuple[str, ...]
    train: Part
    val: Part
    test: Part  # for the report at the end; no search looks at it
    fingerprint: str  # of the content of all images and labels
    corrupt: tuple[str, ...]  # images that were skipped, or their masks: 'name: reason'
    notices: tuple[str, ...]  # for the user, one line each
    store: Path | None  # for `open_store` in other processes; None: images are decoded at each access
    task: Task = "classify"
    kind: Kind = PHOTO  # of all images
    stats: Stats | None = None  # of the training images; None: photos


@dataclass(frozen=True)
class DecodedImages:
    """Images that are decoded at each access, with the pixels that a store would hold."""

    items: Sequence[Item]
    side: int
    fit: Fit
    kind: Kind = PHOTO

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int, /) -> Pixels:
        item = self.items[i]
        image = resize_keep(check_kind(load(item), self.kind, item), self.side, self.fit)
        image.flags.writeable = False  # as in the store
        return image


@dataclass(frozen=True)
class DecodedMasks:
    """The masks of `DecodedImages`, in the same way."""

    items: Sequence[Item]
    lookup: tuple[int, ...]
    side: int
    fit: Fit

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int, /) -> Pixels:
        mask = resize_mask(load_mask(self.items[i], self.lookup), self.side, self.fit)
        mask.flags.writeable = False
        return mask


def open_dataset(source: Source, data: Data, cache: Path | None, limit_bytes: int | None, workers: int) -> Dataset:
    """The images of a source, decoded with `workers` threads unless an earlier run on this node has done so.

    `cache` is the folder that keeps them (None: see `cache_folder`), `limit_bytes` the most they may take there (None:
    half of what is free). If they need more, images are kept there compressed instead, as many as fit (see `kept`),
    each access decodes its image anew, and a notice says so. Processes that open the same data at once decode it once.

    Raises:
        DataError: the source cannot be used, or more than `max_corrupt` of its images cannot be decoded.
        ConfigError: the source names user code that cannot be imported, or the cache folder cannot be used.
    """
    cache = cache_folder(cache)
    listing = read_source(source, cache, workers)
    side = kept_side(data)
    contents = fingerprint(listing, cache, workers)
    refuse_equal(listing, contents)
    key = hashlib.blake2b(f"{contents.digest} {side} {data.fit} {store.MAGIC!r}".encode(), digest_size=16).hexdigest()
    plan = Plan(listing, contents, cache / f"{key}.store", side, data.fit, source.max_corrupt)
    dataset = open_store(plan.path)
    if dataset is None:
        with locked(plan.path.with_suffix(".lock")):
            limit = allowance(cache, limit_bytes)
            scan = build(plan, limit, workers)
            dataset = _on_the_fly(plan, scan, limit, workers) if scan else open_store(plan.path)
    assert dataset is not None
    total = len(dataset.corrupt) + sum(len(part.labels) for part in (dataset.train, dataset.val, dataset.test))
    check_corrupt(dataset.corrupt, total, source.max_corrupt)
    return dataset


def kept_side(data: Data) -> int:
    """The shorter side, in px, at which images are kept for a recipe; `data` is that of its largest image size."""
    return data.store_size or round(1.5 * data.image_size)


def open_store(path: Path) -> Dataset | None:
    """The Dataset of a finished store, in milliseconds however many images it holds; None if it is missing or torn."""
    index = store.read_index(path)
    # Mapped now, and once for all parts: a cache that is deleted in mid-epoch takes nothing from who trains already.
    opened = store.mapped(path, index) if index else None
    if index is None or opened is None:
        return None
    stops = np.cumsum(index.sizes).tolist()
    train, val, test = (
        _stored(path, index, opened, stop - size, stop) for size, stop in zip(index.sizes, stops, strict=True)
    )
    notices = (*index.notices, *_skipped(index.corrupt))
    learned = (index.task, index.kind, index.stats)
    return Dataset(index.classes, train, val, test, index.fingerprint, index.corrupt, notices, path, *learned)


def _stored(path: Path, index: store.Index, opened: store.Opened, start: int, stop: int) -> Part:
    return Part(
        store.StoreImages(path, start, stop, opened=opened),
        index.labels[start:stop],
        None if index.tags is None else index.tags[start:stop],
        store.StoreImages(path, start, stop, masks=True, opened=opened) if index.has_masks else None,
        None if index.groups is None else index.groups[start:stop],
        None if index.weights is None else index.weights[start:stop],
    )


def _on_the_fly(plan: Plan, scan: Scan, limit: int, workers: int) -> Dataset:
    good = without(plan.listing, scan.corrupt)
    kept = keep(plan.path.with_suffix(".kept"), good, plan.side, plan.fit, limit, workers, scan.kind)
    train, val, test = (_decoded_part(plan, kept.parts[part], scan.kind) for part in PARTS)
    corrupt = tuple(scan.corrupt.values())
    need = f"{scan.bytes / 1e9:.3g} GB"
    if scan.full:
        why = (
            f"the disk or quota of {plan.path.parent} was full before all {need} were written. Make room and remove "
            f"{plan.path.with_suffix('.scan').name} there, or name another disk with --cache DIR."
        )
    else:
        why = (
            f"decoded they take {need}, and {limit / 1e9:.3g} GB are allowed in {plan.path.parent}. "
            "Raise resources.cache_gb, or name a larger disk with --cache DIR."
        )
    slow = f"Images are decoded anew at each access, which is slow: {why}{_told(kept)}"
    notices = (*told(plan, scan), *_skipped(corrupt), slow)
    learned = (plan.listing.task, scan.kind, scan.stats)
    return Dataset(plan.listing.classes, train, val, test, plan.contents.digest, corrupt, notices, None, *learned)


def _decoded_part(plan: Plan, part: Labelled, kind: Kind) -> Part:
    return Part(
        DecodedImages(part.items, plan.side, plan.fit, kind),
        part.labels,
        part.tags,
        None if part.masks is None else DecodedMasks(part.masks, plan.listing.lookup, plan.side, plan.fit),
        part.groups,
        part.weights,
    )


def _told(kept: Kept) -> str:
    if not kept.images:
        return ""
    here = f"kept here compressed ({kept.bytes / 1e9:.3g} GB)"
    if kept.images == kept.total:
        return f" All files are {here}, so that the source is read no more."
    return f" {kept.images} of {kept.total} files are {here}; the others are read from the source each time."


def _skipped(corrupt: tuple[str, ...]) -> tuple[str, ...]:
    if not corrupt:
        return ()
    return (f"{len(corrupt)} images cannot be used and are skipped (study.json lists them), for example {corrupt[0]}.",)
