"""Augmentation: one strength in [0, 1] becomes a random change of an image that keeps its label.

Strength is a promise. Strength 0 is exactly `to_square`, what evaluation sees; a higher strength never changes images
less on average; and nothing jumps: each probability rises linearly to its full value at strength 0.2 (that of gray, at
1) and each magnitude linearly to its full value at strength 1. What strength 1 means is written in the rows of
`FAMILIES`; a new family is one row there and one factor in `recipe.Augment`.

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
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np

from cvtune.errors import ConfigError
from cvtune.pixels import (
    Image,
    Mask,
    View,
    change_color,
    change_sharpness,
    change_solarize,
    change_view,
    draw_view,
    ramp,
)
from cvtune.recipe import Augment

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it asks the network for updates when it is imported

import albumentations as A

if TYPE_CHECKING:
    import torch

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
    side = (math.sqrt(strength) / 6, math.sqrt(strength) / 3)  # it is the area that is linear in strength
    return [A.CoarseDropout((1, 3), side, side, fill="random_uniform", p=ramp(strength, 0.5))]


@dataclass(frozen=True)
class Family:
    """One row: `build(strength, pipeline)` gives transforms that at strength 0 do nothing (geometry: `to_square`)."""

    name: str
    description: str
    build: Callable[[float, Pipeline], list[A.BasicTransform]]


FAMILIES: tuple[Family, ...] = (
    Family(
        "geometry",
        "always: crop to 25-100 % of the area anywhere in the image, aspect 3:4 to 4:3, rotation +-30 degrees, shear "
        "+-10 degrees, shift +-10 %; each allowed flip with probability 0.5; borders are reflected",
        _geometry,
    ),
    Family(
        "color",
        "with probability 0.8: brightness, contrast, saturation x 0.6-1.4, hue +-0.1 turns, gray with probability 0.1",
        _color,
    ),
    Family(
        "quality",
        "with probability 0.5 one of: blur of sigma up to size / 64, noise of std up to 25 of 255, JPEG down to 30",
        _quality,
    ),
    Family("occlusion", "with probability 0.5: 1-3 patches of one color, sides 1/6 to 1/3 of the image", _occlusion),
)


def _families(pipeline: Pipeline) -> A.Compose:
    augment = pipeline.augment
    strengths = [min(1.0, augment.strength * getattr(augment, family.name)) for family in FAMILIES]
    chain = [step for family, s in zip(FAMILIES, strengths, strict=True) for step in family.build(s, pipeline)]
    return A.Compose(chain, is_check_shapes=False)


def _trivial(pipeline: Pipeline) -> A.Compose:
    """TrivialAugment (Mueller & Hutter 2021, wide space): one of 14 operations, its magnitude uniform up to strength.

    The allowed flips come first, as in the paper's training. The promise asks for two differences: what has no
    magnitude (equalize, autocontrast) is applied with a rising probability, and borders are reflected, not black.
    """
    s = pipeline.augment.strength
    on, lean, far, still = ramp(s), math.degrees(math.atan(0.99)) * s, round(32 * s), (0, 0)
    affine = partial(A.Affine, border_mode=cv2.BORDER_REFLECT, p=1.0)
    operations = [  # in OneOf p is the weight; together they weigh 14
        A.NoOp(p=1.0),
        *(A.AutoContrast(p=on), A.NoOp(p=1 - on)),
        *(A.Equalize(p=on), A.NoOp(p=1 - on)),
        Step(partial(change_color, brightness=0.99 * s)),
        Step(partial(change_color, contrast=0.99 * s)),
        Step(partial(change_color, saturation=0.99 * s)),
        Step(partial(change_sharpness, amount=0.99 * s)),
        A.Posterize(num_bits=(round(8 - 6 * s), 8), p=1.0),
        Step(partial(change_solarize, reach=s)),
        affine(rotate=(-135 * s, 135 * s)),
        affine(shear={"x": (-lean, lean), "y": still}),
        affine(shear={"x": still, "y": (-lean, lean)}),
        affine(translate_px={"x": (-far, far), "y": still}),
        affine(translate_px={"x": still, "y": (-far, far)}),
    ]
    view = ViewStep(0.0, pipeline.image_size, pipeline.fit)
    return A.Compose([view, *_mirror(s, pipeline.augment.flip), A.OneOf(operations, p=1.0)], is_check_shapes=False)


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
    """

    augment: Augment
    image_size: int
    fit: str = "crop"

    def __call__(self, image: Image, seed: int) -> Image:
        """Augment uint8 (H, W, 3) to uint8 (S, S, 3). The same seed gives the same change, in any order of calls.

        Raises:
            ConfigError: the user's policy gave something else than uint8 (S, S, 3).
        """
        result = self._seeded(seed)(image=image)
        return self._checked("image", result, (self.image_size, self.image_size, 3))

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
        return self._checked("image", result, (size, size, 3)), self._checked("mask", result, (size, size))

    def _seeded(self, seed: int) -> Callable[..., Any]:
        transform, random, bits = self._built
        random.seed(int(seed))
        bits.state = _pcg64(random.getrandbits(128))  # 5 us; 90-200 us with set_random_seed
        return transform

    def _checked(self, what: str, result: Any, shape: tuple[int, ...]) -> Image:
        out = result.get(what) if isinstance(result, dict) else result
        if isinstance(out, np.ndarray) and out.dtype == np.uint8 and out.shape == shape:
            return out
        made = f"{out.dtype} {out.shape}" if isinstance(out, np.ndarray) else type(out).__name__
        remedy = {
            "image": "End it with a crop or resize to the image_size that it is called with, without normalization "
            "(the device does that).",
            "mask": "Its transforms must move masks as they move images, and keep their numbers.",
        }
        raise ConfigError(
            f"augment.policy = {self.augment.policy!r} made {made} of the {what}: it must give uint8 {shape}, where "
            f"{shape[0]} is data.image_size. {remedy[what]}"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return Pipeline, (self.augment, self.image_size, self.fit)

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


class Mixed(NamedTuple):
    """A batch as it is trained on: its loss is share x loss(x, y_a, w_a) + (1 - share) x loss(x, y_b, w_b).

    Attributes:
        x: float (N, C, H, W).
        y_a: labels int64 (N,), tags float32 (N, K), or masks uint8 (N, H, W).
        y_b: as `y_a`; the same tensor where nothing is mixed.
        share: of y_a, in [0, 1].
        w_a: weights float32 (N,), or (N, H, W) of pasted masks; None: all alike.
        w_b: as `w_a`.
    """

    x: torch.Tensor
    y_a: torch.Tensor
    y_b: torch.Tensor
    share: float = 1.0
    w_a: torch.Tensor | None = None
    w_b: torch.Tensor | None = None

    def rows(self, rows: slice) -> Mixed:
        """A part of the batch."""
        w_a, w_b = (None if w is None else w[rows] for w in (self.w_a, self.w_b))
        return Mixed(self.x[rows], self.y_a[rows], self.y_b[rows], self.share, w_a, w_b)


def mix_batch(
    x: torch.Tensor,
    y: torch.Tensor,
    mixup: float,
    cutmix: float,
    generator: torch.Generator,
    weights: torch.Tensor | None = None,
) -> Mixed:
    """Mix each sample of a shuffled batch with another one: mixup (Zhang et al. 2018) or CutMix (Yun et al. 2019).

    If both are on, each batch takes one, with equal chance. Partners are a rotation of the batch, so that nothing but
    `x` and the targets is read on the device. CutMix pastes masks as it pastes images: each pixel has one label.

    Args:
        x: float (N, C, H, W) on any device; not changed in place.
        y: labels int64 (N,), tags float32 (N, K), or masks uint8 (N, H, W).
        mixup: Beta parameter of the share, 0 is off.
        cutmix: Beta parameter of the share, 0 is off.
        generator: on the CPU, so that drawing does not wait for the device.
        weights: float32 (N,), of the samples; None: all alike.
    """
    import torch

    if not (mixup or cutmix) or len(x) < 2:
        return Mixed(x, y, y, 1.0, weights, weights)
    random = Random(int(torch.randint(2**62, (), generator=generator).item()))
    patch = cutmix > 0 and (mixup == 0 or random.random() < 0.5)
    alpha = cutmix if patch else mixup
    share, shift = random.betavariate(alpha, alpha), random.randrange(1, len(x))
    other, y_b = x.roll(shift, 0), y.roll(shift, 0)
    w_b = None if weights is None else weights.roll(shift, 0)
    if not patch:
        return Mixed(torch.lerp(other, x, share), y, y_b, share, weights, w_b)
    height, width = x.shape[2:]
    side, row, column = math.sqrt(1 - share) / 2, random.random(), random.random()
    top, bottom = (round(height * min(1.0, max(0.0, row + s))) for s in (-side, side))
    left, right = (round(width * min(1.0, max(0.0, column + s))) for s in (-side, side))

    def pasted(into: torch.Tensor, of: torch.Tensor) -> torch.Tensor:
        into = into.clone()
        into[..., top:bottom, left:right] = of[..., top:bottom, left:right]
        return into

    if y.ndim < 3:
        share = 1 - (bottom - top) * (right - left) / (height * width)  # the true share of the area
        return Mixed(pasted(x, other), y, y_b, share, weights, w_b)
    masks = pasted(y, y_b)
    if weights is not None and w_b is not None:
        weights = pasted(*(w[:, None, None].expand(y.shape) for w in (weights, w_b)))
    return Mixed(pasted(x, other), masks, masks, 1.0, weights, weights)
