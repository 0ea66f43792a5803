"""Batches of images that lie on a GPU, augmented there: what `data.loader.Loader` does where the CPU is too slow."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cvtune.augment import Pipeline
from cvtune.data.dataset import Dataset, DecodedImages, Images, Part
from cvtune.data.listing import Labels
from cvtune.data.loader import Batch, sample_seeds, tickets_of
from cvtune.device import allowed_bytes
from cvtune.device_augment import DevicePipeline, can_augment, moves
from cvtune.device_pixels import Flat
from cvtune.on_gpu import OnGpu
from cvtune.pixels import to_square
from cvtune.recipe import Recipe
from cvtune.recorded import Repeated

PIXELS = 2**21  # augmented together: as many batches as have so many, since kernels of less cost as much
SHARE = 0.25  # of the GPU's memory that this process may use: more images than that are augmented by the CPU


def bytes_of(images: Images, most: int) -> int:
    """Bytes of all pixels; counted no further than to `most`."""
    total = 0
    for i in range(len(images)):
        total += images[i].nbytes
        if total > most:
            break
    return total


def fits(images: Images, device: torch.device) -> bool:
    """Whether there is room for images on a GPU. Those that are decoded at each access are too many for a disk."""
    if isinstance(images, DecodedImages):
        return False
    most = int(SHARE * allowed_bytes(device))
    return bytes_of(images, most) <= most


def loader_of(recipe: Recipe, data: Dataset, device: torch.device, on_gpu: OnGpu) -> DeviceLoader | None:
    """What augments the training images on the device; None: the CPU is to do it."""
    able = device.type == "cuda" and on_gpu.augment != "off" and can_augment(recipe, data)
    if not able or (on_gpu.augment == "auto" and not fits(data.train.images, device)):
        return None
    return DeviceLoader(data.train, device, on_gpu.graph != "off")


class DeviceLoader:
    """Augmented batches of one part, float32 (N, S, S, 3) in 0..255 on its device; photos without masks.

    Images are copied there at the first batch. See `data.loader.Loader`, whose batches hold other draws of the same
    distribution.

    Attributes:
        waited: seconds that the consumer has spent waiting for batches: none, since nothing waits here.
    """

    def __init__(self, part: Part, device: torch.device, records: bool) -> None:
        """`records`: whether the augmentation is launched as a whole, see `recorded.py`."""
        self.waited = 0.0
        self._part, self._device, self._records = part, device, records
        told = part.labels if part.tags is None else part.tags
        self._targets = torch.from_numpy(told).to(device)
        self._weights = None if part.weights is None else torch.from_numpy(part.weights).to(device)
        self._photos: tuple[object, Flat, int] | None = None  # what they were made for, the photos, `side`
        self._repeated = self._fresh()

    def batches(
        self,
        order: Labels,
        batch_size: int,
        make: Pipeline,
        seed: int,
        rows: Callable[[int], slice] = lambda count: slice(count),
    ) -> Iterator[Batch]:
        """As those of `data.loader.Loader`."""
        photos, side = self._held(make)
        augment = DevicePipeline(make, side)
        tickets = tickets_of(order, len(self._part.labels))
        seeds = torch.from_numpy(sample_seeds(seed, tickets).view(np.int64)).to(self._device)
        places = torch.from_numpy(order).to(self._device)
        whole = max(1, min(PIXELS // (batch_size * make.image_size**2), -(-len(order) // batch_size)))
        ahead = whole * batch_size  # images that are augmented together
        images = torch.empty(0)
        for start in range(0, len(order), batch_size):
            count = min(batch_size, len(order) - start)
            if count < 2:
                return
            if start % ahead == 0:
                chunk = slice(start, start + ahead)
                images = self._augmented(augment, photos, places[chunk], seeds[chunk], ahead, len(order) - start)
            mine = slice(start % ahead, start % ahead + count)
            there = places[start : start + count][rows(count)]
            weights = None if self._weights is None else self._weights[there]
            yield Batch(images[mine][rows(count)], self._targets[there], weights)

    def close(self) -> None:
        """As that of `data.loader.Loader`: there are no workers."""

    def _fresh(self) -> Repeated:
        return Repeated(self._records, warm=1, worth=3)  # it has no kernels to choose from

    def _held(self, make: Pipeline) -> tuple[Flat, int]:
        """The photos and the side that `DevicePipeline` wants to know."""
        still = None if moves(make.augment) else (make.image_size, make.fit)
        if self._photos is None or self._photos[0] != (still, make.fit):
            self._photos, self._repeated = None, self._fresh()  # their room is wanted
            prepare = (lambda image: image) if still is None else (lambda image: to_square(image, *still))
            flat = flatten(self._part.images, prepare).to(self._device)
            shorter, longer = torch.minimum(flat.heights, flat.widths), torch.maximum(flat.heights, flat.widths)
            side = int((shorter if make.fit == "crop" else longer).max().item())
            self._photos = (still, make.fit), flat, side
        return self._photos[1:]

    @torch.no_grad()
    def _augmented(
        self, augment: DevicePipeline, photos: Flat, rows: Tensor, seeds: Tensor, count: int, left: int
    ) -> Tensor:
        """The photos at `rows`, `count` of them at most; `left` are to come, these included."""

        def made(rows: Tensor, seeds: Tensor) -> tuple[Tensor, ...]:
            return (augment(photos.pick(rows), seeds),)

        missing = (0, count - len(rows))  # always as many, so that a recording fits
        return self._repeated(made, augment, -(-left // count), F.pad(rows, missing), F.pad(seeds, missing))[0]


def flatten(images: Images, prepare: Callable[[np.ndarray], np.ndarray]) -> Flat:
    """Photos of any sizes on the CPU, each as `prepare` makes it."""
    shapes, chunks = np.empty((len(images), 2), np.int64), []
    for i in range(len(images)):
        photo = prepare(images[i])
        shapes[i] = photo.shape[:2]
        chunks.append(photo.reshape(-1))
    starts = np.concatenate([[0], np.cumsum(shapes.prod(1) * 3)[:-1]])
    parts = (np.concatenate(chunks), starts, shapes[:, 0], shapes[:, 1])
    return Flat(*(torch.from_numpy(np.ascontiguousarray(part)) for part in parts))
