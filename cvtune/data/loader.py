"""Batches: which images an epoch visits, and their augmentation in this process or in workers.

What a batch holds depends on the images, the order and the seed alone: not on workers, and not on batch_size.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader

from cvtune.data.dataset import Images, Part
from cvtune.data.decode import Fit
from cvtune.data.listing import Labels, Pixels
from cvtune.kinds import DTYPES, PHOTO
from cvtune.pixels import to_square
from cvtune.pulse import die_with_parent

_MASK = 2**64 - 1
_TYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in DTYPES}


class Batch(NamedTuple):
    """Some images of a part and what is to be learned of them.

    Attributes:
        images: (N, S, S, C), uint8, uint16 or float32 as the data set is.
        targets: masks uint8 (N, S, S) of a part that has masks, else tags float32 (N, K) where it has tags, else labels
            int64 (N,).
        weights: float32 (N,), factor on the loss of each image; None: 1.
    """

    images: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor | None


class Augmenter(Hashable, Protocol):
    """Augments one image: (H, W, C) and a seed give (S, S, C). Picklable; equal if its settings are.

    `with_mask` makes the same of the image and moves its mask along, uint8 (H, W) to (S, S). See `augment.Pipeline`.
    """

    def __call__(self, image: Pixels, seed: int, /) -> Pixels: ...

    def with_mask(self, image: Pixels, mask: Pixels, seed: int, /) -> tuple[Pixels, Pixels]: ...


@dataclass(frozen=True)
class Request:
    """All that a worker needs to make one batch. A ticket is an image's index + len(images) x earlier draws of it."""

    tickets: Labels  # int64 (N,)
    make: Augmenter
    seed: int
    pin: bool


class Loader:
    """Augmented batches of one part. Workers start with the first batch and live until `close`.

    workers: processes that augment; 0: this one does. pin: batches in page-locked memory, for copies to a GPU.
    """

    def __init__(self, part: Part, workers: int, pin: bool) -> None:
        self.waited = 0.0  # seconds that the consumer has spent waiting for batches
        self._batches = _Batches(part)
        self._pin = pin and torch.cuda.is_available()
        self._requests: list[Request] = []
        self._made: Iterator[Batch] = iter(())  # what the pass under way has not handed out yet
        self._pass: object = None
        self._workers: DataLoader[Batch] | None = None
        if workers:
            self._workers = DataLoader(
                self._batches,
                batch_size=None,
                sampler=_Requests(self._requests),
                num_workers=workers,
                pin_memory=self._pin,
                persistent_workers=True,
                worker_init_fn=_one_thread,
                generator=torch.Generator(),  # else it draws from the global one, and dropout depends on workers
            )

    def batches(
        self,
        order: Labels,
        batch_size: int,
        make: Augmenter,
        seed: int,
        rows: Callable[[int], slice] = lambda count: slice(count),
    ) -> Iterator[Batch]:
        """The images at `order`, int64 (M,), augmented by `make`, in batches of `batch_size`; of each, its `rows`.

        Image i gets `sample_seed(seed, i)`, another one at each further draw. The last batch may be smaller, but
        has at least two images. Ends an iteration that is still under way.
        """
        tickets = tickets_of(order, len(self._batches.part.labels))
        starts = range(0, len(tickets), batch_size)
        chunks = [tickets[start : start + batch_size] for start in starts]
        pin_here = self._pin and self._workers is None  # else the DataLoader pins, since a worker cannot
        requests = [Request(chunk[rows(len(chunk))], make, seed, pin_here) for chunk in chunks if len(chunk) > 1]
        self._requests[:] = requests
        self._made = map(self._batches.__getitem__, requests) if self._workers is None else iter(self._workers)
        mine = self._pass = object()
        while self._pass is mine:  # no iterator is held here: it would keep the workers after `close`
            start = time.perf_counter()
            batch = next(self._made, None)
            self.waited += time.perf_counter() - start
            if batch is None:
                return
            yield batch

    def close(self) -> None:
        """End the workers and the pass that is under way.

        Torch takes 5 s for each worker where the garbage collector finds them in a cycle of references, since it
        has closed their queues by then.
        """
        self._pass, self._made, self._workers = None, iter(()), None


def sample_seed(seed: int, ticket: int) -> int:
    """A well-mixed seed in 0..2**64-1 for one image (splitmix64, Steele et al. 2014)."""
    z = (_mix(seed) + ticket * 0x9E3779B97F4A7C15) & _MASK
    return _mix(z)


def sample_seeds(seed: int, tickets: Labels) -> npt.NDArray[np.uint64]:
    """`sample_seed` of each ticket, (M,)."""
    with np.errstate(over="ignore"):
        return _mix_all(np.uint64(_mix(seed)) + tickets.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15))


def derived_seed(seed: int, number: int) -> int:
    """The seed of one pass, or of one report, of a run with `seed`: 0..2**32-1."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1, np.uint32)[0])


def report_order(labels: Labels, seed: int, step: int, oversample: float, images: int) -> Labels:
    """Which images are trained on between report `step` (from 0) and the next one, int64 (images,).

    Passes over all N images, each in an order of its own, are strung together and cut into pieces of `images`: so
    the first ceil(N / images) reports see every image. With `oversample` every piece is drawn for itself.
    """
    if oversample:
        return epoch_order(labels, derived_seed(seed, step), oversample, images)
    total, start, stop = len(labels), step * images, (step + 1) * images
    passes = range(start // total, -(-stop // total))
    strung = np.concatenate([epoch_order(labels, derived_seed(seed, number), 0) for number in passes])
    return strung[start - passes[0] * total :][:images]


def epoch_order(labels: Labels, seed: int, oversample: float, images: int | None = None) -> Labels:
    """Which images a pass visits, int64 (N,): a permutation; with `oversample` (`images` or N) draws with replacement.

    A class is drawn by its own frequency at 0 and as often as any other at 1, linear in between.
    """
    rng = np.random.default_rng(seed)
    if oversample == 0:
        return rng.permutation(len(labels))
    counts = np.bincount(labels)
    balanced = (counts > 0) / np.count_nonzero(counts)
    share = (1 - oversample) * counts / len(labels) + oversample * balanced
    weights = (share / np.maximum(counts, 1))[labels]
    return rng.choice(len(labels), images or len(labels), p=weights / weights.sum())


def subset(labels: Labels, fraction: float, seed: int) -> Labels:
    """Rising indices of a share of each class, at least one of each. A smaller fraction gives a part of a larger."""
    chosen = []
    for label in np.unique(labels):
        rows = np.random.default_rng([seed, label]).permutation(np.flatnonzero(labels == label))
        chosen.append(rows[: max(1, round(fraction * len(rows)))])
    return np.sort(np.concatenate(chosen))


def evaluation_batch(images: Images, indices: Sequence[int] | Labels, image_size: int, fit: Fit) -> Pixels:
    """Images as evaluation sees them, (N, S, S, C): cropped at the center or squashed to `image_size`."""
    batch: Pixels | None = None
    for row, i in enumerate(indices):
        square = to_square(images[int(i)], image_size, fit)
        if batch is None:
            batch = np.empty((len(indices), *square.shape), square.dtype)
        batch[row] = square
    return np.empty((0, image_size, image_size, PHOTO.channels), PHOTO.dtype) if batch is None else batch


def evaluation_targets(part: Part, indices: Labels, image_size: int, fit: Fit) -> torch.Tensor:
    """What is to be told of the images at `indices`, as the `targets` of a `Batch`; masks as evaluation sees them."""
    if part.masks is None:
        return torch.from_numpy((part.labels if part.tags is None else part.tags)[indices])
    masks = np.empty((len(indices), image_size, image_size), np.uint8)
    for row, i in enumerate(indices):
        masks[row] = to_square(part.masks[int(i)], image_size, fit, nearest=True)
    return torch.from_numpy(masks)


@dataclass(frozen=True)
class _Batches(torch.utils.data.Dataset[Batch]):
    """The Dataset behind the DataLoader: its key is a whole request."""

    part: Part

    def __getitem__(self, request: Request) -> Batch:
        part, make = self.part, _kept(request.make)
        rows = request.tickets % len(part.labels)
        seeds = [sample_seed(request.seed, ticket) for ticket in request.tickets.tolist()]
        if part.masks is None:
            targets = torch.from_numpy((part.labels if part.tags is None else part.tags)[rows])
            images = _stacked((make(part.images[i], s) for i, s in zip(rows.tolist(), seeds, strict=True)), request)
        else:
            masks = part.masks
            pairs = [make.with_mask(part.images[i], masks[i], s) for i, s in zip(rows.tolist(), seeds, strict=True)]
            images, targets = (_stacked((pair[k] for pair in pairs), request) for k in (0, 1))
        return Batch(images, targets, None if part.weights is None else torch.from_numpy(part.weights[rows]))


def _stacked(made: Iterable[Pixels], request: Request) -> torch.Tensor:
    """Arrays of one shape and type as one tensor (N, ...), which is written while they are made."""
    together: torch.Tensor | None = None
    for row, array in enumerate(made):
        if together is None:
            shape = (len(request.tickets), *array.shape)
            together = torch.empty(shape, dtype=_TYPES[array.dtype.name], pin_memory=request.pin)
        together.numpy()[row] = array
    assert together is not None
    return together


@dataclass(frozen=True)
class _Requests:
    """The sampler of the DataLoader: hands out the requests of the current epoch."""

    requests: list[Request]

    def __iter__(self) -> Iterator[Request]:
        return iter(self.requests)

    def __len__(self) -> int:
        return len(self.requests)


@functools.lru_cache(maxsize=4)
def _kept(make: Augmenter) -> Augmenter:
    """The first pipeline equal to `make`: a worker gets a new copy with each request and keeps what the first built."""
    return make


def tickets_of(order: Labels, total: int) -> Labels:
    """The ticket of each draw, int64 (M,): the index of its image + `total` x earlier draws of it in `order`."""
    by_index = np.argsort(order, kind="stable")
    ranked = order[by_index]
    draws = np.empty(len(order), np.int64)
    draws[by_index] = np.arange(len(order)) - np.searchsorted(ranked, ranked)
    return order + draws * total


def _mix(z: int) -> int:
    z = (z + 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


def _mix_all(z: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    z = z + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _one_thread(_worker: int) -> None:
    die_with_parent()
    cv2.setNumThreads(0)  # OpenCV's own threads do not survive the fork
