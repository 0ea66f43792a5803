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

import copy
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from random import Random
from typing import Any

import cv2
import numpy as np

from cvtune.errors import ConfigError
from cvtune.kinds import DTYPES, PHOTO, PHOTOS, Kind, Values
from cvtune.pixels import (
    Image,
    Mask,
    View,
    change_by_blur,
    change_by_noise,
    change_by_patches,
    change_color,
    change_sharpness,
    change_solarize,
    change_tone,
    change_view,
    draw_view,
    invert_bright,
    ramp,
)
from cvtune.recipe import Augment

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it asks the network for updates when it is imported

import albumentations as A

MAPPING_VERSION: int = 1
"""Rises whenever the same `Augment` would change images in another way."""


class Step(A.ImageOnlyTransform):  # type: ignore[misc]
    """A function (image, random) -> image as an albumentations transform."""

    def __init__(self, change: Callable[[Image, Random], Image], p: float = 1.0) -> None:
        super().__init__(p=p)
        self.change = change

    def apply(self, img: Image, shape: tuple[int, ...]) -> Image:
        return self.change(img, self.py_random)


class ViewStep(A.DualTransform):  # type: ignore[misc]
    """`change_view` as an albumentations transform: one draw for an image and its mask."""

    def __init__(self, strength: float, size: int, fit: str) -> None:
        super().__init__(p=1.0)
        self.strength, self.size, self.fit = strength, size, fit

    def get_params(self) -> dict[str, View | None]:
        return {"view": draw_view(self.py_random, self.strength)}

    def apply(self, img: Image, view: View | None, shape: tuple[int, ...]) -> Image:
        return change_view(img, view, self.size, self.fit)

    def apply_to_mask(self, mask: Mask, view: View | None, shape: tuple[int, ...]) -> Mask:
        return change_view(mask, view, self.size, self.fit, nearest=True)


def _mirror(strength: float, flip: str) -> list[A.BasicTransform]:
    allowed = {"none": [], "horizontal": [A.HorizontalFlip], "both": [A.HorizontalFlip, A.VerticalFlip]}[flip]
    return [mirror(p=ramp(strength, 0.5)) for mirror in allowed]


def _geometry(strength: float, pipeline: Pipeline) -> list[A.BasicTransform]:
    view = ViewStep(strength, pipeline.image_size, pipeline.fit)
    return [view, *_mirror(strength, pipeline.augment.flip)]


def _color(strength: float, pipeline: Pipeline) -> list[A.BasicTransform]:
    s = 0.4 * strength
    jitter = partial(change_color, brightness=s, contrast=s, saturation=s, hue=0.1 * strength, gray=0.1 * strength)
    return [Step(jitter, p=ramp(strength, 0.8))]


def _quality(strength: float, pipeline: Pipeline) -> list[A.BasicTransform]:
    blur = A.GaussianBlur(sigma_limit=(1e-3, 1e-3 + strength * pipeline.image_size / 64))
    noise = A.GaussNoise(std_range=(0.0, 0.1 * strength))
    jpeg = A.ImageCompression(quality_range=(round(100 - 70 * strength), 100))
    return [A.OneOf([blur, noise, jpeg], p=ramp(strength, 0.5))]


def _occlusion(strength: float, pipeline: Pipeline) -> list[A.BasicTransform]:
    side = _side_of_patches(strength)
    return [A.CoarseDropout((1, 3), side, side, fill="random_uniform", p=ramp(strength, 0.5))]


def _side_of_patches(strength: float) -> tuple[float, float]:
    return math.sqrt(strength) / 6, math.sqrt(strength) / 3  # it is the area that is linear in strength


def _tone(strength: float, pipeline: Pipeline) -> list[A.BasicTransform]:
    s = 0.4 * strength
    return [Step(partial(change_tone, values=pipeline.values, brightness=s, contrast=s), p=ramp(strength, 0.8))]


def _blur_or_noise(strength: float, pipeline: Pipeline) -> list[A.BasicTransform]:
    blur = Step(partial(change_by_blur, most=strength * pipeline.image_size / 64))
    noise = Step(partial(change_by_noise, values=pipeline.values, most=0.1 * strength))
    return [A.OneOf([blur, noise], p=ramp(strength, 0.5))]


def _patches(strength: float, pipeline: Pipeline) -> list[A.BasicTransform]:
    hide = partial(change_by_patches, values=pipeline.values, sides=_side_of_patches(strength))
    return [Step(hide, p=ramp(strength, 0.5))]


@dataclass(frozen=True)
class Takes:
    """The images that something can be done to: their types, and their numbers of channels (empty: any)."""

    dtypes: tuple[str, ...] = DTYPES
    channels: tuple[int, ...] = ()

    def __contains__(self, kind: Kind) -> bool:
        return kind.dtype in self.dtypes and (not self.channels or kind.channels in self.channels)


ANY_IMAGE, ONLY_PHOTOS = Takes(), Takes(("uint8",), (3,))


@dataclass(frozen=True)
class Family:
    """One row: `build(strength, pipeline)` gives transforms that at strength 0 do nothing (geometry: `to_square`).

    Attributes:
        factor: the value of `recipe.Augment` that scales it. Of rows with the same one the first that takes the images
            is used.
        takes: the images that it is for.
        without: what it lacks of the row before it of the same factor.
    """

    factor: str
    description: str
    build: Callable[[float, Pipeline], list[A.BasicTransform]]
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
        _blur_or_noise,
        ANY_IMAGE,
        without="JPEG",
    ),
    Family(
        "occlusion",
        "with probability 0.5: 1-3 patches of one color, sides 1/6 to 1/3 of the image",
        _occlusion,
        ONLY_PHOTOS,
    ),
    Family(
        "occlusion",
        "with probability 0.5: 1-3 patches of one value per channel, sides 1/6 to 1/3 of the image",
        _patches,
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
    if augment.policy == "trivial":
        lacking = [name for name, takes, _ in _trivial_rows(0.5, PHOTOS, 8) if kind not in takes]
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


def _families(pipeline: Pipeline) -> A.Compose:
    augment = pipeline.augment
    chain: list[A.BasicTransform] = []
    for family in families_for(pipeline.values.kind):
        chain += family.build(min(1.0, augment.strength * getattr(augment, family.factor)), pipeline)
    return A.Compose(chain, is_check_shapes=False)


def _trivial(pipeline: Pipeline) -> A.Compose:
    """TrivialAugment (Mueller & Hutter 2021, wide space): one of 14 operations, its magnitude uniform up to strength.

    The allowed flips come first, as in the paper's training. The promise asks for two differences: what has no
    magnitude (equalize, autocontrast) is applied with a rising probability, and borders are reflected, not black.
    Images that are no photos are spared what they cannot take, and the others are as likely as before, or more.
    """
    values, s = pipeline.values, pipeline.augment.strength
    rows = _trivial_rows(s, values, round(32 * s))
    operations = [operation for _, takes, each in rows if values.kind in takes for operation in each]
    view = ViewStep(0.0, pipeline.image_size, pipeline.fit)
    return A.Compose([view, *_mirror(s, pipeline.augment.flip), A.OneOf(operations, p=1.0)], is_check_shapes=False)


def _trivial_rows(s: float, values: Values, far: int) -> list[tuple[str, Takes, list[A.BasicTransform]]]:
    """The 14 operations at magnitude up to `s`: name, what takes them, and transforms whose weights add up to 1.

    In OneOf p is the weight. `far` is the largest shift, px.
    """
    on, lean, still = ramp(s), math.degrees(math.atan(0.99)) * s, (0, 0)
    affine = partial(A.Affine, border_mode=cv2.BORDER_REFLECT, p=1.0)
    photo = values.kind == PHOTO
    tone = partial(change_color) if photo else partial(change_tone, values=values)
    solarize = partial(change_solarize) if photo else partial(invert_bright, values=values)
    return [
        ("identity", ANY_IMAGE, [A.NoOp(p=1.0)]),
        ("autocontrast", ONLY_PHOTOS, [A.AutoContrast(p=on), A.NoOp(p=1 - on)]),
        ("equalize", ONLY_PHOTOS, [A.Equalize(p=on), A.NoOp(p=1 - on)]),
        ("brightness", ANY_IMAGE, [Step(partial(tone, brightness=0.99 * s))]),
        ("contrast", ANY_IMAGE, [Step(partial(tone, contrast=0.99 * s))]),
        ("color", ONLY_PHOTOS, [Step(partial(change_color, saturation=0.99 * s))]),
        ("sharpness", ANY_IMAGE, [Step(partial(change_sharpness, amount=0.99 * s))]),
        ("posterize", ONLY_PHOTOS, [A.Posterize(num_bits=(round(8 - 6 * s), 8), p=1.0)]),
        ("solarize", ANY_IMAGE, [Step(partial(solarize, reach=s))]),
        ("rotate", ANY_IMAGE, [affine(rotate=(-135 * s, 135 * s))]),
        ("shear x", ANY_IMAGE, [affine(shear={"x": (-lean, lean), "y": still})]),
        ("shear y", ANY_IMAGE, [affine(shear={"x": still, "y": (-lean, lean)})]),
        ("shift x", ANY_IMAGE, [affine(translate_px={"x": (-far, far), "y": still})]),
        ("shift y", ANY_IMAGE, [affine(translate_px={"x": still, "y": (-far, far)})]),
    ]


_FOR_THE_DEVICE = ("Normalize", "ToFloat", "ToTensorV2")


def _user_policy(pipeline: Pipeline) -> Callable[..., Any]:
    from cvtune.usercode import load_function

    function = load_function(pipeline.augment.policy, "augment.policy")
    transform = function(pipeline.augment.strength, pipeline.image_size)
    if not callable(transform):
        raise ConfigError(
            f"augment.policy = {pipeline.augment.policy!r} returned {type(transform).__name__}: it must return an "
            "albumentations transform, or another callable that takes image= and returns a dict with 'image'."
        )
    if isinstance(transform, A.BasicTransform | A.BaseCompose):
        transform = copy.deepcopy(transform)  # it may be kept and returned again, but gets generators of this pipeline
    if isinstance(transform, A.BaseCompose):
        # Pipelines written for other trainers end so; here the device normalizes whole batches of uint8
        while transform.transforms and type(transform.transforms[-1]).__name__ in _FOR_THE_DEVICE:
            transform.transforms = transform.transforms[:-1]
    return transform  # type: ignore[no-any-return]


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
        result = self._seeded(seed)(image=image)
        return self._checked("image", result, (self.image_size, self.image_size, self.values.kind.channels))

    def with_mask(self, image: Image, mask: Mask, seed: int) -> tuple[Image, Mask]:
        """Augment an image, as a call without its mask does, and move its mask along: uint8 (H, W) to (S, S).

        Raises:
            ConfigError: the user's policy is no albumentations transform, or gave something of another type or shape.
        """
        transform, size = self._seeded(seed), self.image_size
        if not isinstance(transform, A.BasicTransform | A.BaseCompose):
            raise ConfigError(
                f"augment.policy = {self.augment.policy!r} gave a {type(transform).__name__}, which cannot move a mask "
                "with its image: for segmentation it must return an albumentations transform. Return one, such as "
                "A.Compose([...]), or use the policy 'families' or 'trivial'."
            )
        result = transform(image=image, mask=mask)
        channels = self.values.kind.channels
        return self._checked("image", result, (size, size, channels)), self._checked("mask", result, (size, size))

    def _seeded(self, seed: int) -> Callable[..., Any]:
        transform, random, bits = self._built
        random.seed(int(seed))
        bits.state = _pcg64(random.getrandbits(128))  # 5 us; 90-200 us with set_random_seed
        return transform

    def _checked(self, what: str, result: Any, shape: tuple[int, ...]) -> Image:
        out = result.get(what) if isinstance(result, dict) else result
        dtype = self.values.kind.dtype if what == "image" else "uint8"
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
    def _built(self) -> tuple[Callable[..., Any], Random, np.random.PCG64]:
        """The transform, and the two generators that every transform in it draws from, nested ones too."""
        build: Any = {"families": _families, "trivial": _trivial}.get(self.augment.policy, _user_policy)
        transform, random, bits = build(self), Random(), np.random.PCG64()
        if hasattr(transform, "set_random_state"):
            transform.set_random_state(np.random.Generator(bits), random)
        return transform, random, bits


def _pcg64(state: int) -> Any:
    return {"bit_generator": "PCG64", "state": {"state": state, "inc": 1}, "has_uint32": 0, "uinteger": 0}
