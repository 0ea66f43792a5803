"""What the numbers in the images of a data set are: of which type, how many to a pixel, which dark and which bright.

Photos are uint8 with 3 channels, 0..255. Of all other images the training set tells: its mean, spread and quantiles
are measured once, when they are decoded (`Stats`), and everything that draws, augments or normalizes goes by them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

DTYPES = ("uint8", "uint16", "float32")
MOST_CHANNELS = 512  # OpenCV turns and shrinks no more at once
LEVELS = (0.0, 0.001, *(percent / 100 for percent in range(1, 100)), 0.999, 1.0)
"""The quantiles that are measured."""
DARK, BRIGHT = LEVELS.index(0.001), LEVELS.index(0.999)
_PIXELS, _IMAGES = 256, 4096  # that the quantiles are taken from: of an image, of a data set


@dataclass(frozen=True)
class Kind:
    """The type of the numbers, one of DTYPES, and how many each pixel has. All images of a data set have one kind."""

    dtype: str = "uint8"
    channels: int = 3

    @property
    def bytes(self) -> int:
        """Of one pixel."""
        return np.dtype(self.dtype).itemsize * self.channels

    def __str__(self) -> str:
        return f"{self.dtype} with {self.channels} channel{'s' if self.channels > 1 else ''}"


PHOTO = Kind()


@dataclass(frozen=True)
class Takes:
    """The images that something can be done to: their types, and their numbers of channels (empty: any)."""

    dtypes: tuple[str, ...] = DTYPES
    channels: tuple[int, ...] = ()

    def __contains__(self, kind: Kind) -> bool:
        return kind.dtype in self.dtypes and (not self.channels or kind.channels in self.channels)


ANY_IMAGE, ONLY_PHOTOS = Takes(), Takes(("uint8",), (3,))


def kind_of(image: npt.NDArray[Any]) -> Kind:
    """The kind of an image (H, W, C)."""
    return Kind(image.dtype.name, image.shape[2])


def usual(images: Iterable[npt.NDArray[Any]]) -> Kind:
    """The kind that most of some images (H, W, C) have, of a tie the first; photos if there are none."""
    counts = Counter(map(kind_of, images))
    return counts.most_common(1)[0][0] if counts else PHOTO


@dataclass(frozen=True)
class Stats:
    """What was measured of each channel of the training images, as they are kept.

    Attributes:
        mean: of all pixels.
        std: their standard deviation.
        quantiles: one row of `LEVELS` per channel, from a sample of the pixels.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    quantiles: tuple[tuple[float, ...], ...]

    def clipped(self, low: float | None, high: float | None) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel once values below `low` and above `high` were set to these.

        Exact where nothing is (both None), else from the quantiles, between which the values are taken to lie evenly.
        """
        if low is None and high is None:
            return self.mean, self.std
        steps = np.linspace(0, 1, 4001)
        values = np.array([np.interp(steps, LEVELS, row) for row in self.quantiles])
        values = values.clip(-np.inf if low is None else low, np.inf if high is None else high)
        return tuple(values.mean(1).tolist()), tuple(values.std(1).tolist())


def to_json(kind: Kind, stats: Stats | None) -> dict[str, Any]:
    """Both as plain JSON."""
    return {"kind": asdict(kind), "stats": None if stats is None else asdict(stats)}


def from_json(raw: Mapping[str, Any]) -> tuple[Kind, Stats | None]:
    """What `to_json` was given; photos where there is nothing."""
    stats = raw.get("stats")
    if stats is not None:
        stats = Stats(tuple(stats["mean"]), tuple(stats["std"]), tuple(map(tuple, stats["quantiles"])))
    return Kind(**raw.get("kind", {})), stats


class Sketch:
    """Takes in the training images one by one and gives their Stats."""

    def __init__(self, images: int) -> None:
        self._every = -(-max(1, images) // _IMAGES)
        self._seen, self._pixels = 0, 0
        self._mean: Any = 0.0
        self._squares: Any = 0.0  # sum of the squared distances from the mean
        self._sample: list[npt.NDArray[Any]] = []

    def add(self, image: npt.NDArray[Any]) -> None:
        """Take in an image (H, W, C)."""
        values = image.reshape(-1, image.shape[2]).astype(np.float64)
        count, mean = len(values), values.mean(0)
        total, apart = self._pixels + count, mean - self._mean
        self._squares = (
            self._squares + ((values - mean) ** 2).sum(0) + apart**2 * self._pixels * count / total
        )  # Chan et al. 1979: as exact as two passes
        self._mean, self._pixels = self._mean + apart * count / total, total
        if self._seen % self._every == 0:
            rows = np.random.default_rng(self._seen).permutation(count)[:_PIXELS]
            self._sample.append(values[rows])
        self._seen += 1

    def stats(self) -> Stats | None:
        """What was measured; None if there was no image."""
        if not self._pixels:
            return None
        std = np.sqrt(self._squares / self._pixels)
        quantiles = np.quantile(np.concatenate(self._sample), LEVELS, axis=0).T
        return Stats(tuple(self._mean.tolist()), tuple(std.tolist()), tuple(map(tuple, quantiles.tolist())))


@dataclass(frozen=True)
class Values:
    """What the numbers of images mean: the kind, and of each channel the value that is dark and the one that is bright.

    Noise, brightness and erased patches are measured by that span, and pictures show it from black to white. Nothing
    is cut off at its ends, unless by what draws.
    """

    kind: Kind = PHOTO
    low: tuple[float, ...] = (0.0, 0.0, 0.0)
    high: tuple[float, ...] = (255.0, 255.0, 255.0)


PHOTOS = Values()


def values_of(kind: Kind, stats: Stats | None, low: float | None = None, high: float | None = None) -> Values:
    """The span of each channel: `data.window_low` to `data.window_high`, where they are set.

    Else 0 to 255 of photos, and of other images from the quantile 0.001 to 0.999 of the training images. A channel
    that has one value only spans 1 from there.
    """
    if stats is None:
        ends: list[tuple[float, ...]] = [(0.0,) * kind.channels, (255.0,) * kind.channels]
    else:
        ends = [tuple(row[level] for row in stats.quantiles) for level in (DARK, BRIGHT)]
    dark = [found if low is None else low for found in ends[0]]
    bright = [found if high is None else high for found in ends[1]]
    bright = [above if above > below else below + 1.0 for below, above in zip(dark, bright, strict=True)]
    return Values(kind, tuple(dark), tuple(bright))


def shown(images: npt.NDArray[Any], values: Values) -> npt.NDArray[np.uint8]:
    """Images (..., C) as a screen shows them, uint8 (..., 3): the one rule for all pictures that cvtune draws.

    Photos as they are. Of other images the span of each channel goes from black to white, and what lies beyond is cut
    off; the first three channels are red, green and blue, and of one or two channels the first is gray.
    """
    if values == PHOTOS:
        return images
    channels: Sequence[int] = (0, 1, 2) if values.kind.channels >= 3 else (0, 0, 0)
    low, high = (np.array(ends, np.float32)[list(channels)] for ends in (values.low, values.high))
    scaled = (images[..., list(channels)].astype(np.float32) - low) * (255 / (high - low))
    return np.asarray(np.rint(scaled.clip(0, 255)), np.uint8)
