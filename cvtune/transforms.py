"""The policies that albumentations carries out: TrivialAugment, and a user's own.

Importing it takes a second, so that only those who use these policies do.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from random import Random
from typing import Any

import albumentations as A
import cv2
import numpy as np

from cvtune.errors import ConfigError
from cvtune.kinds import ANY_IMAGE, ONLY_PHOTOS, PHOTO, PHOTOS, Kind, Takes, Values
from cvtune.pixels import (
    Image,
    Mask,
    change_color,
    change_sharpness,
    change_solarize,
    change_tone,
    invert_bright,
    ramp,
    to_square,
)
from cvtune.recipe import Augment


class Seeded:
    """A transform whose every call is decided by a seed. One that is no albumentations transform decides alone."""

    def __init__(self, transform: Callable[..., Any], policy: str) -> None:
        self._transform, self._policy = transform, policy
        self._random, self._bits = Random(), np.random.PCG64()  # nested transforms too draw from these
        if hasattr(transform, "set_random_state"):
            transform.set_random_state(np.random.Generator(self._bits), self._random)

    def __call__(self, image: Image, seed: int) -> Any:
        """What it makes of an image (H, W, C), unchecked."""
        self._seed(seed)
        result = self._transform(image=image)
        return result.get("image") if isinstance(result, dict) else result

    def with_mask(self, image: Image, mask: Mask, seed: int) -> tuple[Any, Any]:
        """What it makes of an image and its mask, unchecked.

        Raises:
            ConfigError: it cannot move a mask.
        """
        if not isinstance(self._transform, A.BasicTransform | A.BaseCompose):
            raise ConfigError(
                f"augment.policy = {self._policy!r} gave a {type(self._transform).__name__}, which cannot move a mask "
                "with its image: for segmentation it must return an albumentations transform. Return one, such as "
                "A.Compose([...]), or use the policy 'families' or 'trivial'."
            )
        self._seed(seed)
        result = self._transform(image=image, mask=mask)
        return result.get("image"), result.get("mask")

    def _seed(self, seed: int) -> None:
        self._random.seed(seed)
        self._bits.state = _pcg64(self._random.getrandbits(128))  # 5 us; 90-200 us with set_random_seed


def _pcg64(state: int) -> Any:
    return {"bit_generator": "PCG64", "state": {"state": state, "inc": 1}, "has_uint32": 0, "uinteger": 0}


class Step(A.ImageOnlyTransform):  # type: ignore[misc]
    """A function (image, random) -> image as an albumentations transform."""

    def __init__(self, change: Callable[[Image, Random], Image], p: float = 1.0) -> None:
        super().__init__(p=p)
        self.change = change

    def apply(self, img: Image, shape: tuple[int, ...]) -> Image:
        return self.change(img, self.py_random)


class Square(A.DualTransform):  # type: ignore[misc]
    """`to_square` as an albumentations transform."""

    def __init__(self, size: int, fit: str) -> None:
        super().__init__(p=1.0)
        self.size, self.fit = size, fit

    def apply(self, img: Image, shape: tuple[int, ...]) -> Image:
        return to_square(img, self.size, self.fit)

    def apply_to_mask(self, mask: Mask, shape: tuple[int, ...]) -> Mask:
        return to_square(mask, self.size, self.fit, nearest=True)


def _mirror(strength: float, flip: str) -> list[A.BasicTransform]:
    allowed = {"none": [], "horizontal": [A.HorizontalFlip], "both": [A.HorizontalFlip, A.VerticalFlip]}[flip]
    return [mirror(p=ramp(strength, 0.5)) for mirror in allowed]


def trivial(augment: Augment, size: int, fit: str, values: Values) -> A.Compose:
    """TrivialAugment (Mueller & Hutter 2021, wide space): one of 14 operations, its magnitude uniform up to strength.

    The allowed flips come first, as in the paper's training. The promise asks for two differences: what has no
    magnitude (equalize, autocontrast) is applied with a rising probability, and borders are reflected, not black.
    Images that are no photos are spared what they cannot take, and the others are as likely as before, or more.
    """
    s = augment.strength
    rows = _rows(s, values, round(32 * s))
    operations = [operation for _, takes, each in rows if values.kind in takes for operation in each]
    chain = [Square(size, fit), *_mirror(s, augment.flip), A.OneOf(operations, p=1.0)]
    return A.Compose(chain, is_check_shapes=False)


def trivial_lacks(kind: Kind) -> list[str]:
    """The operations of TrivialAugment that images of a kind cannot take."""
    return [name for name, takes, _ in _rows(0.5, PHOTOS, 8) if kind not in takes]


def _rows(s: float, values: Values, far: int) -> list[tuple[str, Takes, list[A.BasicTransform]]]:
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


def users(augment: Augment, image_size: int) -> Callable[..., Any]:
    """What the function that `augment.policy` names makes of strength and size."""
    from cvtune.usercode import load_function

    function = load_function(augment.policy, "augment.policy")
    transform = function(augment.strength, image_size)
    if not callable(transform):
        raise ConfigError(
            f"augment.policy = {augment.policy!r} returned {type(transform).__name__}: it must return an "
            "albumentations transform, or another callable that takes image= and returns a dict with 'image'."
        )
    if isinstance(transform, A.BasicTransform | A.BaseCompose):
        transform = copy.deepcopy(transform)  # it may be kept and returned again, but gets generators of this pipeline
    if isinstance(transform, A.BaseCompose):
        # Pipelines written for other trainers end so; here the device normalizes whole batches of uint8
        while transform.transforms and type(transform.transforms[-1]).__name__ in _FOR_THE_DEVICE:
            transform.transforms = transform.transforms[:-1]
    return transform  # type: ignore[no-any-return]
