"""Augmentation: one strength in [0, 1] becomes a random change of an image that keeps its label.

Strength is a promise. Strength 0 is exactly `to_square`, what evaluation sees; a higher strength never changes images
less on average; and nothing jumps: each probability rises linearly to its full value at strength 0.2 (that of gray, at
1) and each magnitude linearly to its full value at strength 1. What strength 1 means is written in the rows of
`FAMILIES`; a new family is one row there and one factor in `recipe.Augment`.

Each row says which kinds of images it takes. Photos are uint8 with 3 channels; for others a row of the same factor does
what has a meaning for them (`families_for`), and `left_out` tells a person what falls away.

A mask goes where geometry moves its image (`Pipeline.with_mask`), each pixel from its nearest neighbor; color, quality
and occlusion leave it alone. Erased pixels thereby keep their labels: what is hidden has to be told from what is
around it, which is what occlusion is to teach.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np

from cvtune.errors import ConfigError
from cvtune.kinds import ANY_IMAGE, ONLY_PHOTOS, PHOTO, PHOTOS, Kind, Takes, Values
from cvtune.pixels import (
    Image,
    Mask,
    change_by_blur,
    change_by_jpeg,
    change_by_noise,
    change_by_patches,
    change_color,
    change_tone,
    change_view,
    draw_view,
    ramp,
)
from cvtune.recipe import Augment

if TYPE_CHECKING:
    from cvtune.transforms import Seeded

MAPPING_VERSION: int = 3
"""Rises whenever the same `Augment` would change images in another way."""


@dataclass(frozen=True)
class Step:
    """One change and the probability that an image gets it.

    Attributes:
        change: (image, random) -> image.
        moves: it moves a mask too, by the same numbers: (mask, random, nearest=True) -> mask.
    """

    chance: float
    change: Callable[..., Image]
    moves: bool = False


def _geometry(strength: float, pipeline: Pipeline) -> Step:
    look = partial(_look, strength=strength, size=pipeline.image_size, fit=pipeline.fit, flip=pipeline.augment.flip)
    return Step(1.0, look, moves=True)


def _look(
    image: Image, random: Random, strength: float, size: int, fit: str, flip: str, nearest: bool = False
) -> Image:
    """View and flips in one warp."""
    view, half = draw_view(random, strength), ramp(strength, 0.5)
    aside, over = random.random() < half, random.random() < half
    return change_view(image, view, size, fit, (aside and flip != "none", over and flip == "both"), nearest)


def _color(strength: float, pipeline: Pipeline) -> Step:
    s = 0.4 * strength
    jitter = partial(change_color, brightness=s, contrast=s, saturation=s, hue=0.1 * strength, gray=0.1 * strength)
    return Step(ramp(strength, 0.8), jitter)


def _tone(strength: float, pipeline: Pipeline) -> Step:
    s = 0.4 * strength
    return Step(ramp(strength, 0.8), partial(change_tone, values=pipeline.values, brightness=s, contrast=s))


def _quality(strength: float, pipeline: Pipeline) -> Step:
    jpeg = partial(change_by_jpeg, worst=round(100 - 70 * strength))
    return Step(ramp(strength, 0.5), partial(_one_of, changes=(*_blur_and_noise(strength, pipeline), jpeg)))


def _quality_of_any(strength: float, pipeline: Pipeline) -> Step:
    return Step(ramp(strength, 0.5), partial(_one_of, changes=_blur_and_noise(strength, pipeline)))


def _blur_and_noise(strength: float, pipeline: Pipeline) -> tuple[Callable[[Image, Random], Image], ...]:
    blur = partial(change_by_blur, most=strength * pipeline.image_size / 64)
    return blur, partial(change_by_noise, values=pipeline.values, most=0.1 * strength)


def _one_of(image: Image, random: Random, changes: tuple[Callable[[Image, Random], Image], ...]) -> Image:
    return random.choice(changes)(image, random)


def _occlusion(strength: float, pipeline: Pipeline) -> Step:
    sides = (math.sqrt(strength) / 6, math.sqrt(strength) / 3)  # it is the area that is linear in strength
    return Step(ramp(strength, 0.5), partial(change_by_patches, values=pipeline.values, sides=sides))


@dataclass(frozen=True)
class Family:
    """One row: `build(strength, pipeline)` gives a step that at strength 0 does nothing (geometry: `to_square`).

    Attributes:
        factor: the value of `recipe.Augment` that scales it. Of rows with the same one the first that takes the images
            is used.
        takes: the images that it is for.
        without: what it lacks of the row before it of the same factor.
    """

    factor: str
    description: str
    build: Callable[[float, Pipeline], Step]
    takes: Takes
    without: str = ""


FAMILIES: tuple[Family, ...] = (
    Family(
        "geometry",
        "always: crop to 25-100 % of the area anywhere in the image, aspect 3:4 to 4:3, rotation +-30 degrees, shear "
        "+-10 degrees, shift +-10 %; each allowed flip with probability 0.5; borders are reflected",
        _geometry,
        ANY_IMAGE,
    ),
    Family(
        "color",
        "with probability 0.8: brightness, contrast, saturation x 0.6-1.4, hue +-0.1 turns, gray with probability 0.1",
        _color,
        ONLY_PHOTOS,
    ),
    Family(
        "color",
        "with probability 0.8: brightness and contrast x 0.6-1.4, from the dark end of each channel's span",
        _tone,
        ANY_IMAGE,
        without="saturation, hue and gray",
    ),
    Family(
        "quality",
        "with probability 0.5 one of: blur of sigma up to size / 64, noise of std up to 25 of 255, JPEG down to 30",
        _quality,
        ONLY_PHOTOS,
    ),
    Family(
        "quality",
        "with probability 0.5 one of: blur of sigma up to size / 64, noise of std up to 0.1 of each channel's span",
        _quality_of_any,
        ANY_IMAGE,
        without="JPEG",
    ),
    Family(
        "occlusion",
        "with probability 0.5: 1-3 patches of one value per channel, sides 1/6 to 1/3 of the image",
        _occlusion,
        ANY_IMAGE,
    ),
)
FACTORS = tuple(dict.fromkeys(family.factor for family in FAMILIES))


def families_for(kind: Kind) -> list[Family]:
    """The rows that augment images of a kind, one per factor at most."""
    found: dict[str, Family] = {}
    for family in FAMILIES:
        if kind in family.takes:
            found.setdefault(family.factor, family)
    return list(found.values())


def left_out(augment: Augment, kind: Kind) -> str:
    """What of an augmentation such images cannot take, as one sentence for a person; "" where there is nothing."""
    if kind == PHOTO:
        return ""
    if augment.policy == "trivial":
        from cvtune.transforms import trivial_lacks  # late: albumentations takes a second

        lacking = trivial_lacks(kind)
    else:
        used = {family.factor: family for family in families_for(kind)}
        ours = [factor for factor in FACTORS if augment.policy == "families" and getattr(augment, factor)]
        lacking = [
            f"{factor}: no {used[factor].without}" if factor in used else factor
            for factor in ours
            if factor not in used or used[factor].without
        ]
    if not lacking:
        return ""
    return f"The images are {kind}. Left out of the augmentation, which they cannot take: {'; '.join(lacking)}."


class Families:
    """The policy "families": the steps of all rows that take the images, in the order of the table."""

    def __init__(self, pipeline: Pipeline) -> None:
        augment = pipeline.augment
        rows = families_for(pipeline.values.kind)
        strengths = [min(1.0, augment.strength * getattr(augment, row.factor)) for row in rows]
        self._steps = [row.build(strength, pipeline) for row, strength in zip(rows, strengths, strict=True)]
        self._random = Random()

    def __call__(self, image: Image, seed: int) -> Image:
        """Changes of an image, decided by the seed."""
        self._random.seed(seed)
        for step in self._steps:
            if self._random.random() < step.chance:
                image = step.change(image, self._random)
        return image

    def with_mask(self, image: Image, mask: Mask, seed: int) -> tuple[Image, Mask]:
        """The same of the image, and its mask moved by the numbers that the seed gives to what comes first."""
        self._random.seed(seed)
        for step in self._steps:
            if step.moves and self._random.random() < step.chance:
                mask = step.change(mask, self._random, nearest=True)
        return self(image, seed), mask


@dataclass(frozen=True)
class Pipeline:
    """All augmentation of one image, decided by these settings and the seed of the call alone.

    Equal settings are equal pipelines. What is built for the first call is not pickled. A pipeline is for one thread
    at a time; two threads need two (equal) pipelines.

    Args:
        augment: strength, factors (of the policy "families" only), flip and policy; a user's policy is called with
            strength and keeps its promise itself. mixup and cutmix are for `mix_batch`.
        image_size: side S of the result in px.
        fit: see `to_square`.
        values: the kind of the images, and the span of each channel.
    """

    augment: Augment
    image_size: int
    fit: str = "crop"
    values: Values = PHOTOS

    def __call__(self, image: Image, seed: int) -> Image:
        """Augment (H, W, C) to (S, S, C) of the same type. The same seed gives the same change, in any order of calls.

        Raises:
            ConfigError: the user's policy gave something else.
        """
        return self._checked("image", self._policy(image, int(seed)))

    def with_mask(self, image: Image, mask: Mask, seed: int) -> tuple[Image, Mask]:
        """Augment an image, as a call without its mask does, and move its mask along: uint8 (H, W) to (S, S).

        Raises:
            ConfigError: the user's policy is no albumentations transform, or gave something of another type or shape.
        """
        made, moved = self._policy.with_mask(image, mask, int(seed))
        return self._checked("image", made), self._checked("mask", moved)

    def _checked(self, what: str, out: Any) -> Image:
        kind, square = self.values.kind, (self.image_size, self.image_size)
        dtype, shape = (kind.dtype, (*square, kind.channels)) if what == "image" else ("uint8", square)
        if isinstance(out, np.ndarray) and out.dtype == dtype and out.shape == shape:
            return out
        made = f"{out.dtype} {out.shape}" if isinstance(out, np.ndarray) else type(out).__name__
        remedy = {
            "image": "End it with a crop or resize to the image_size that it is called with, without normalization "
            "(the device does that).",
            "mask": "Its transforms must move masks as they move images, and keep their numbers.",
        }
        raise ConfigError(
            f"augment.policy = {self.augment.policy!r} made {made} of the {what}: it must give {dtype} {shape}, where "
            f"{shape[0]} is data.image_size. {remedy[what]}"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return Pipeline, (self.augment, self.image_size, self.fit, self.values)

    @cached_property
    def _policy(self) -> Families | Seeded:
        if self.augment.policy == "families":
            return Families(self)
        from cvtune import transforms  # late: albumentations takes a second

        if self.augment.policy == "trivial":
            made = transforms.trivial(self.augment, self.image_size, self.fit, self.values)
        else:
            made = transforms.users(self.augment, self.image_size)
        return transforms.Seeded(made, self.augment.policy)
