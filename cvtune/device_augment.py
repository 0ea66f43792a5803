"""The policy "families" for a batch on its device: the same strengths, probabilities and magnitudes, other draws.

`augment.py` says what a strength means; here a change is drawn for each image by a generator that counts, so that what
becomes of an image depends on its own seed alone and not on the batch it is in. Only photos, without masks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cvtune.augment import Pipeline
from cvtune.data.dataset import Dataset
from cvtune.device_pixels import Colors, Flat, Views, blur, color, grain, jpeg, patches, samples_for, warp
from cvtune.kinds import PHOTO
from cvtune.pixels import ramp
from cvtune.recipe import Augment, Recipe

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # splitmix64 (Steele et al. 2014) in whole numbers of 64 bits with a sign
_FIRST, _SECOND = 0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64
_NORMALS = 2**20
_DRAWS = 48  # numbers for each image


def can_augment(recipe: Recipe, data: Dataset) -> bool:
    """Whether the images of a data set, by the policy of a recipe, are augmented here."""
    return recipe.augment.policy == "families" and data.kind == PHOTO and data.train.masks is None


def moves(augment: Augment) -> bool:
    """Whether geometry is on: else images have to be given as evaluation sees them, to stay exactly that."""
    return augment.strength * augment.geometry > 0


def uniform(seeds: Tensor, count: int) -> Tensor:
    """Numbers of each seed, int64 (N,): float32 (N, count), uniform in [0, 1), the same on every device."""
    z = seeds[:, None] + torch.arange(1, count + 1, device=seeds.device) * _GOLDEN
    z = (z ^ ((z >> 30) & (2**34 - 1))) * _FIRST
    z = (z ^ ((z >> 27) & (2**37 - 1))) * _SECOND
    z = z ^ ((z >> 31) & (2**33 - 1))
    return ((z >> 40) & (2**24 - 1)).float() / 2**24


@dataclass(frozen=True)
class DevicePipeline:
    """A `Pipeline` of the policy "families" for batches of photos on a device.

    Args:
        pipeline: of the policy "families", for photos.
        side: of the largest image in px, the shorter one where images are cropped, the longer one where they are
            squashed; it decides how finely images are sampled.
    """

    pipeline: Pipeline
    side: int

    def __call__(self, photos: Flat, seeds: Tensor) -> Tensor:
        """Augment N photos, by a seed each, int64 (N,): float32 (N, S, S, 3) in 0..255."""
        draws = iter(uniform(seeds, _DRAWS).unbind(1))
        images = warp(photos, self._views(draws), self.pipeline.image_size, self.pipeline.fit, self._finest)
        images = self._colored(images, draws)
        images = self._of_less_quality(images, draws)
        return self._occluded(images, draws)

    def _strength(self, factor: str) -> float:
        augment = self.pipeline.augment
        return min(1.0, augment.strength * float(getattr(augment, factor)))

    @cached_property
    def _finest(self) -> int:
        stretched = (4 / 3) ** (self._strength("geometry") / 2)
        return samples_for(stretched * self.side / self.pipeline.image_size)

    def _views(self, draws: Any) -> Views:
        strength, flip = self._strength("geometry"), self.pipeline.augment.flip
        applied, shrink = next(draws) < ramp(strength), next(draws)
        stretch, turn, shear, right, down = (strength * applied * (2 * next(draws) - 1) for _ in range(5))
        aside, over = (next(draws) < ramp(strength, 0.5) for _ in range(2))
        aside, over = aside & (flip != "none"), over & (flip == "both")
        return Views(1 - 0.75 * strength * applied * shrink, stretch, turn, shear, right, down, aside, over)

    def _colored(self, images: Tensor, draws: Any) -> Tensor:
        strength = self._strength("color")
        applied, bright, differ, vivid, turn, gray = (next(draws) for _ in range(6))
        if not strength:
            return images
        on = applied < ramp(strength, 0.8)
        bright, differ, vivid = (1 + 0.4 * strength * on * (2 * u - 1) for u in (bright, differ, vivid))
        vivid = torch.where(on & (gray < 0.1 * strength), 0.0, vivid)
        return color(images, Colors(bright, differ, vivid, 2 * math.pi * 0.1 * strength * on * (2 * turn - 1)))

    def _of_less_quality(self, images: Tensor, draws: Any) -> Tensor:
        strength = self._strength("quality")
        applied, which, much, start = (next(draws) for _ in range(4))
        if not strength:
            return images
        on, which = applied < ramp(strength, 0.5), (3 * which).floor()
        most, worst = strength * self.pipeline.image_size / 64, round(100 - 70 * strength)
        packed = jpeg(images, worst + (much * (101 - worst)).floor())
        images = torch.where((on & (which == 2))[:, None, None, None], packed, images)
        images = blur(images, (on & (which == 0)) * most * much, most)
        noise = 0.1 * 255 * strength * much * (on & (which == 1))
        return grain(images, noise, _normals(images.device, max(_NORMALS, 2 * images[0].numel())), start)

    def _occluded(self, images: Tensor, draws: Any) -> Tensor:
        strength = self._strength("occlusion")
        applied = next(draws)
        numbers = torch.stack([next(draws) for _ in range(22)], 1)
        if not strength:
            return images
        sides = (math.sqrt(strength) / 6, math.sqrt(strength) / 3)  # it is the area that is linear in strength
        on = (applied < ramp(strength, 0.5))[:, None, None, None]
        return torch.where(on, patches(images, numbers, sides), images)


_STORES: dict[tuple[torch.device, int], Tensor] = {}


def _normals(device: torch.device, count: int) -> Tensor:
    if (device, count) not in _STORES:
        numbers = np.random.default_rng(0).standard_normal(count, np.float32)
        _STORES[device, count] = torch.from_numpy(numbers).to(device)
    return _STORES[device, count]
