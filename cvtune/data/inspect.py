"""What a data set holds, told without decoding more than that takes: the facts that `cvtune check` goes by.

Of every image the header is read, and the bytes are hashed where another one has as many. A sample is decoded: for what
is broken behind its header, for near duplicates, and for how intricate the images are.
"""

from __future__ import annotations

import io
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from cvtune.data.decode import PHOTO_SUFFIXES, REMEDY, load_pair, open_image, reason
from cvtune.data.fingerprint import UNREADABLE, digest
from cvtune.data.guard import regular
from cvtune.data.listing import PARTS, Item, Listing, Task
from cvtune.data.packed import Packed
from cvtune.errors import DataError
from cvtune.kinds import Kind, kind_of
from cvtune.printable import printable

DECODED = 4000  # images that are decoded at most, drawn with seed 0
DECODED_PIXELS = 2_000_000_000  # and at most so many pixels in all: large photos take long
SIDE = 32  # px, the shorter side at which intricacy is measured: what is smaller is enlarged
THUMB = 16  # px, the side of the gray thumbnails by which near duplicates are found
NEAR = 0.998  # correlation of two thumbnails from which on their images are near duplicates
UNSURE = {".tif": "TIFF", ".tiff": "TIFF", "": ""}  # of kinds that Pillow may not know; rows of Parquet have no names
_AT_ONCE, _RUN, _ROWS = 4096, 64, 512

Progress = Callable[[str, int, int], None]
Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Copies:
    """Images that are there more than once.

    Attributes:
        extra: how many could go without anything being lost: of k copies k - 1.
        leaked: val, test -> how many of its images are in train, too.
        conflicts: how many have another label than a copy of theirs.
        example: two of them, 'a.jpg = b.jpg'; of those that leak or conflict if any do.
    """

    extra: int
    leaked: dict[str, int]
    conflicts: int
    example: str


@dataclass(frozen=True)
class Facts:
    """What was found.

    Attributes:
        images: train, val, test -> number of images.
        counts: train, val, test -> images per class, in the order of `classes`; of several labels those that show it,
            of masks (in `decoded` images of all parts, under "train") pixels.
        shorter: smallest, median and largest shorter side, px.
        longer: the same of the longer side.
        pixel_bytes: bytes of a decoded pixel.
        formats: such as 'JPEG RGB' -> number of images; those that say nothing in their header are left out.
        kinds: such as 'uint8 with 3 channels' -> number of `decoded` images.
        broken: 'name: reason' of images that cannot be used, of all headers and the decoded sample.
        decoded: images that were decoded, a sample drawn with seed 0, or all.
        exact: images of the same bytes.
        near: of the decoded images, those whose gray thumbnails correlate at NEAR or more, without exact copies.
        blank: decoded images of a single value.
        complexity: median over the decoded images of the spatial information (Yu and Winkler 2013): mean of the
            Sobel gradient's magnitude over the gray image, 0..255, whose shorter side was made SIDE px, so that sets of
            any size compare.
    """

    source: str
    task: Task
    classes: tuple[str, ...]
    images: dict[str, int]
    counts: dict[str, tuple[int, ...]]
    shorter: tuple[int, int, int]
    longer: tuple[int, int, int]
    pixel_bytes: int
    formats: dict[str, int]
    kinds: dict[str, int]
    broken: tuple[str, ...]
    decoded: int
    exact: Copies
    near: Copies
    blank: int
    complexity: float
    notices: tuple[str, ...]

    @property
    def total(self) -> int:
        """Images of all parts."""
        return sum(self.images.values())

    @property
    def imbalance(self) -> float:
        """How many times more often the most frequent class is seen in training than the rarest one that is there."""
        seen = [count for count in self.counts["train"] if count]
        return max(seen) / min(seen) if seen else 1.0

    @property
    def per_class(self) -> float:
        """Training images per class, on average."""
        return self.images["train"] / len(self.classes)


class Header(NamedTuple):
    """What an image file says of itself before it is decoded, and its digest if that was asked for."""

    width: int
    height: int
    format: str
    digest: bytes
    error: str = ""


class Look(NamedTuple):
    """What a decoded image shows."""

    thumb: Floats  # (THUMB ** 2,), of mean 0 and norm 1; all 0 where the image has a single value
    complexity: float
    kind: Kind
    pixels: Ints  # of each class in its mask; (0,) without one


def inspect(listing: Listing, source: str, workers: int, progress: Progress = lambda *_: None) -> Facts:
    """Reads headers of all images, hashes those of equal size, and decodes a sample.

    Args:
        source: how the user named the data.
        workers: threads.
        progress: told what is being done, how many images are done, and of how many.

    Raises:
        DataError: not one image can be decoded.
    """
    items = _Items(listing.parts[part].items for part in PARTS)
    headers = list(_headers(items, workers, progress))
    sides = np.array([(h.width, h.height) for h in headers if h.width], np.int64).reshape(-1, 2)
    rows = sample(len(items), float(np.median(sides.prod(axis=1))) if len(sides) else 0.0)
    looks = dict(zip(rows.tolist(), _looks(listing, rows, workers, progress), strict=True))
    seen = {row: look for row, look in looks.items() if isinstance(look, Look)}
    errors = {row: h.error for row, h in enumerate(headers) if h.error}
    errors |= {row: look for row, look in looks.items() if isinstance(look, str)}
    if not seen:
        raise DataError(
            f"{source}: none of {len(rows)} images can be decoded, for example {next(iter(errors.values()), '?')}. "
            "Look whether the files are images, and whole."
        )
    if not len(sides):
        sides = np.array([items.shape(row) for row in seen], np.int64)
    names, same = _Names(listing), _same(headers)
    exact = {later for _, later in same}
    thumbs = np.stack([look.thumb for look in seen.values()])
    like = _alike(np.array(list(seen)), thumbs)
    return Facts(
        source=source,
        task=listing.task,
        classes=listing.classes,
        images={part: len(listing.parts[part].labels) for part in PARTS},
        counts=_counts(listing, list(seen.values())),
        shorter=_three(sides.min(axis=1)),
        longer=_three(sides.max(axis=1)),
        pixel_bytes=max(look.kind.bytes for look in seen.values()),
        formats=dict(Counter(h.format for h in headers if h.format).most_common()),
        kinds=dict(Counter(str(look.kind) for look in seen.values()).most_common()),
        broken=tuple(text.removeprefix(printable(f"{listing.root}/")) for _, text in sorted(errors.items())),
        decoded=len(rows),
        exact=_copies(same, listing, names),
        near=_copies([pair for pair in like if pair[1] not in exact], listing, names),
        blank=int((~thumbs.any(axis=1)).sum()),
        complexity=float(np.median([look.complexity for look in seen.values()])),
        notices=listing.notices,
    )


def sample(images: int, pixels: float) -> Ints:
    """The images to decode, rising int64 (M,): DECODED of them, fewer if they have many `pixels` each, 16 at least."""
    most = max(16, min(DECODED, int(DECODED_PIXELS / max(1.0, pixels))))
    rng = np.random.default_rng(0)
    return np.sort(rng.permutation(images)[:most])


def spatial_information(gray: Floats) -> float:
    """Mean magnitude of the Sobel gradient of a gray image (H, W), 0..255; 0 for a single value.

    Yu and Winkler, Image complexity and spatial information, QoMEX 2013: of the simple measures the one that goes best
    with how far an image can be compressed.
    """
    return float(cv2.magnitude(cv2.Sobel(gray, cv2.CV_32F, 1, 0), cv2.Sobel(gray, cv2.CV_32F, 0, 1)).mean())


class _Items:
    """The images of a listing, or its masks, by their position in it."""

    def __init__(self, parts: Iterable[Sequence[Item]]) -> None:
        self._parts = list(parts)
        self._stops = list(itertools.accumulate(len(part) for part in self._parts))

    def __len__(self) -> int:
        return self._stops[-1]

    def __getitem__(self, row: int) -> Item:
        part = next(k for k, stop in enumerate(self._stops) if row < stop)
        return self._parts[part][row - self._stops[part]]

    def __iter__(self) -> Iterator[Item]:
        return itertools.chain.from_iterable(self._parts)

    def shape(self, row: int) -> tuple[int, int]:
        """Width and height of an image whose header says nothing: it is decoded once more."""
        image, _ = load_pair(self[row], None, (), 2**20, "squash")
        return image.shape[1], image.shape[0]


class _Names:
    """The names of a listing's images, made at the first use: a million of them would take 100 MB."""

    def __init__(self, listing: Listing) -> None:
        self._listing, self._made = listing, list[str]()

    def __getitem__(self, row: int) -> str:
        self._made = self._made or list(self._listing.names())
        return self._made[row]


def _headers(items: _Items, workers: int, progress: Progress) -> Iterator[Header]:
    """What each image says of itself, in order; the digest only where another one has as many bytes."""
    sizes = np.fromiter(map(_bytes, items), np.int64, len(items))
    order, counts = np.unique(sizes, return_counts=True)
    shared = set(order[counts > 1].tolist())
    rows = zip(items, sizes.tolist(), strict=True)
    done = 0
    with ThreadPoolExecutor(max(1, workers)) as pool:
        while some := list(itertools.islice(rows, _AT_ONCE)):
            runs = [some[start : start + _RUN] for start in range(0, len(some), _RUN)]
            for found in pool.map(lambda run: [_header(item, size in shared) for item, size in run], runs):
                done += len(found)
                progress("reading headers", done, len(items))
                yield from found


def _bytes(item: Item) -> int:
    """The size of a file; -1 of what does not say it (a row of Parquet) or cannot be asked."""
    if isinstance(item, np.ndarray):
        return item.nbytes
    if isinstance(item, Packed):
        return item.unpacked or -1
    try:
        return item.stat().st_size
    except OSError:
        return -1


def _header(item: Item, is_hashed: bool) -> Header:
    if isinstance(item, np.ndarray):
        height, width = item.shape[:2] if item.ndim > 1 else (0, 0)
        return Header(width, height, f"array {item.dtype}", digest(item) if is_hashed else b"")
    code = digest(item) if is_hashed else b""
    suffix = item.suffix.lower()
    if suffix not in (*PHOTO_SUFFIXES, *UNSURE):
        return Header(0, 0, suffix.lstrip("."), code)
    try:
        with open_image(io.BytesIO(item.read()) if isinstance(item, Packed) else regular(item)) as image:
            return Header(*image.size, f"{image.format} {image.mode}", code)
    except Exception as error:  # Pillow's plugins raise whatever a broken file makes them
        if suffix in UNSURE:
            return Header(0, 0, UNSURE[suffix], code)
        return Header(0, 0, "", code, f"{printable(str(item))}: cannot be read ({reason(error)})")


def _looks(listing: Listing, rows: Ints, workers: int, progress: Progress) -> Iterator[Look | str]:
    """What the images at `rows` show, in order, or why they cannot be used."""
    items = _Items(listing.parts[part].items for part in PARTS)
    masks = _Items(listing.parts[part].masks or () for part in PARTS)

    def one(row: int) -> Look | str:
        try:
            image, mask = load_pair(items[row], masks[row] if len(masks) else None, listing.lookup, 2 * SIDE, "crop")
        except DataError as error:
            return str(error).removesuffix(f".{REMEDY}")
        return _look(image, mask, len(listing.classes))

    with ThreadPoolExecutor(max(1, workers)) as pool:
        for done, found in enumerate(pool.map(one, rows.tolist()), 1):
            progress("decoding a sample" if len(rows) < len(items) else "decoding", done, len(rows))
            yield found


def _look(image: npt.NDArray[Any], mask: npt.NDArray[Any] | None, classes: int) -> Look:
    gray = image.mean(axis=2, dtype=np.float32)
    if image.dtype != np.uint8:
        low, high = np.quantile(gray, (0.001, 0.999))
        gray = (np.clip((gray - low) / max(high - low, 1e-12), 0, 1) * 255).astype(np.float32)
    small = cv2.resize(gray, (THUMB, THUMB), interpolation=cv2.INTER_AREA).ravel()
    small = small - small.mean()
    norm = float(np.linalg.norm(small))
    scale = SIDE / min(gray.shape)
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    even = cv2.resize(gray, None, fx=scale, fy=scale, interpolation=how)
    thumb = small / norm if norm > 1e-3 else np.zeros_like(small)
    pixels = np.bincount(mask[mask < classes], minlength=classes) if mask is not None else np.zeros(0, np.int64)
    return Look(thumb.astype(np.float32), spatial_information(even), kind_of(image), pixels)


def _counts(listing: Listing, looks: Sequence[Look]) -> dict[str, tuple[int, ...]]:
    if listing.task == "segment":
        return {"train": tuple(np.sum([look.pixels for look in looks], axis=0).tolist())}
    counts = {}
    for name in PARTS:
        part = listing.parts[name]
        if part.tags is not None and listing.task == "multilabel":
            counted = (np.nan_to_num(part.tags) >= 0.5).sum(axis=0)
        else:
            counted = np.bincount(part.labels, minlength=len(listing.classes))
        counts[name] = tuple(int(c) for c in counted)
    return counts


def _three(values: Ints) -> tuple[int, int, int]:
    return int(values.min()), int(np.median(values)), int(values.max())


def _same(headers: Sequence[Header]) -> list[tuple[int, int]]:
    """Pairs (earlier, later) of images with the same digest: each with the first of its kind."""
    first: dict[bytes, int] = {}
    told = ((row, h.digest) for row, h in enumerate(headers) if h.digest not in (b"", UNREADABLE))
    return [(first[code], row) for row, code in told if first.setdefault(code, row) < row]


def _alike(rows: Ints, thumbs: Floats) -> list[tuple[int, int]]:
    """Pairs (earlier, later) of images with like thumbnails, float32 (N, D): each with the first that it is like."""
    pairs = []
    for start in range(0, len(rows), _ROWS):
        block = thumbs[start : start + _ROWS] @ thumbs[: start + _ROWS].T >= NEAR
        block &= np.arange(block.shape[1])[None] < np.arange(start, start + len(block))[:, None]
        later = np.flatnonzero(block.any(axis=1))
        pairs += list(zip(rows[block[later].argmax(axis=1)].tolist(), rows[start + later].tolist(), strict=True))
    return pairs


def _copies(pairs: Sequence[tuple[int, int]], listing: Listing, names: _Names) -> Copies:
    """What pairs (earlier, later) come to; the order is train, val, test, so that `earlier` of a leak is in train."""
    labels = listing.labels()
    stops = np.cumsum([len(listing.parts[part].labels) for part in PARTS])
    part_of = np.searchsorted(stops, np.arange(len(labels)), side="right")
    leaked = [(a, b) for a, b in pairs if part_of[a] == 0 and part_of[b] > 0]
    conflicts = [(a, b) for a, b in pairs if listing.task == "classify" and labels[a] != labels[b]]
    shown = next(iter(leaked or conflicts or pairs), None)
    counted = Counter(PARTS[part_of[b]] for _, b in leaked)
    example = f"{names[shown[0]]} = {names[shown[1]]}" if shown else ""
    return Copies(len(pairs), dict(counted), len(conflicts), example)
