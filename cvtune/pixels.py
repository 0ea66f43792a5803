"""What augmentation does to pixels: plain functions of an image and a generator, each continuous in its strength.

Where geometry is concerned the same functions move a mask, pixel for pixel from its nearest neighbor (`nearest`).
Geometry takes images of any kind; which kinds the others take stands in the tables of `augment`.
"""

from __future__ import annotations

import math
from functools import cache
from random import Random
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from cvtune.kinds import PHOTO, Values

Image = npt.NDArray[Any]  # uint8, uint16 or float32 (H, W, C); Any, as OpenCV's own types know no better
Mask = npt.NDArray[Any]  # uint8 (H, W), classes by number


def to_square(image: Image, size: int, fit: str, nearest: bool = False) -> Image:
    """What evaluation sees of an image, and what augmentation of strength 0 leaves.

    Args:
        image: (H, W, C), or a mask (H, W).
        size: side of the result in px.
        fit: "crop" resizes the shorter side to `size` and crops the center, "squash" resizes both sides.
        nearest: each pixel is that of the nearest one, as a mask's classes cannot be averaged.

    Returns:
        (size, size, C) or (size, size); the image itself when it has that shape already.
    """
    width, height, left, top = frame(image, size, fit)
    return np.ascontiguousarray(_resize(image, width, height, nearest)[top : top + size, left : left + size])


def frame(image: Image, size: int, fit: str) -> tuple[int, int, int, int]:
    """Width and height to which evaluation resizes the whole image, then left and top of its crop."""
    if fit == "squash":
        return size, size, 0, 0
    height, width = image.shape[:2]
    short = min(height, width)
    width, height = max(size, round(width * size / short)), max(size, round(height * size / short))
    return width, height, (width - size) // 2, (height - size) // 2


def _resize(image: Image, width: int, height: int, nearest: bool = False) -> Image:
    if image.shape[:2] == (height, width):
        return image
    if nearest:  # the exact one: plain INTER_NEAREST takes the pixel at the upper left and moves masks by half a pixel
        return resized(image, (width, height), cv2.INTER_NEAREST_EXACT)
    smaller = height <= image.shape[0] and width <= image.shape[1]
    return resized(image, (width, height), cv2.INTER_AREA if smaller else cv2.INTER_LINEAR)


def resized(image: Image, size: tuple[int, int], interpolation: int) -> Image:
    """`cv2.resize` to (width, height) of any number of channels: (H, W, C) stays that, a mask (H, W), too."""
    if image.ndim == 2 or 1 < image.shape[2] <= 4:
        return cv2.resize(image, size, interpolation=interpolation)
    groups = [image[..., start : start + 4] for start in range(0, image.shape[2], 4)]  # averaging knows no more
    made = [cv2.resize(np.ascontiguousarray(group), size, interpolation=interpolation) for group in groups]
    return np.concatenate([part.reshape(size[1], size[0], -1) for part in made], axis=2)


def ramp(strength: float, full: float = 1.0) -> float:
    """A probability that rises linearly from 0 to `full`, which it reaches at strength 0.2."""
    return full * min(1.0, 5.0 * strength)


class View(NamedTuple):
    """The crop window of `to_square` with `area` of its size, moved and deformed; numbers but `area` lie in [-1, 1]."""

    area: float = 1.0
    stretch: float = 0.0
    turn: float = 0.0
    shear: float = 0.0
    right: float = 0.0
    down: float = 0.0


def draw_view(random: Random, strength: float) -> View | None:
    """Crop, stretch, rotation, shear and shift as one map of the plane; None: the view of `to_square`.

    The window shrinks, turns and wanders, so that low strengths approach the center crop.
    """
    applied, shrink = random.random(), random.random()
    spread = [strength * random.uniform(-1, 1) for _ in range(5)]
    return None if applied >= ramp(strength) else View(1 - 0.75 * strength * shrink, *spread)


def change_view(
    image: Image,
    view: View | None,
    size: int,
    fit: str,
    mirror: tuple[bool, bool] = (False, False),
    nearest: bool = False,
) -> Image:
    """What stands in a view: (H, W, C) -> (size, size, C), or a mask (H, W) -> (size, size); see `to_square`.

    `mirror` then swaps left and right, top and bottom. What lies outside the image is its reflection, in the mask as in
    the image.
    """
    if view is None:
        return _mirrored(to_square(image, size, fit, nearest), mirror)
    width, height, left, top = frame(image, size, fit)
    ratio, side = (4 / 3) ** (view.stretch / 2), math.sqrt(view.area)
    across = _axis(image.shape[1], width, left, size, ratio / side, view.right)
    along = _axis(image.shape[0], height, top, size, 1 / (ratio * side), view.down)
    matrix = _to_image(view, across, along, size, mirror)
    if nearest:
        flags, seen = cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP, image
    else:
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        seen = _softened(_cut(image, matrix, size, max(across.scale, along.scale)), across.scale, along.scale, matrix)
    return _like(image, cv2.warpAffine(seen, matrix, (size, size), flags=flags, borderMode=cv2.BORDER_REFLECT))


def _mirrored(image: Image, mirror: tuple[bool, bool]) -> Image:
    if not any(mirror):
        return image
    return _like(image, cv2.flip(image, -1 if all(mirror) else int(mirror[0])))


def _like(image: Image, made: Image) -> Image:
    """What OpenCV made of an image, which drops a single channel, with as many axes."""
    return made if made.ndim == image.ndim else made[..., None]


class _Axis(NamedTuple):
    """One axis of a warp: px of the image per px of the result, and the one at the center of the window."""

    scale: float
    center: float


def _axis(length: int, full: int, start: int, size: int, zoom: float, shift: float) -> _Axis:
    """The window may move by `shift` in [-1, 1] of what keeps it inside the image, plus 10 % of the result."""
    reach = max(0.0, full - size / zoom) / 2 + 0.1 * size
    return _Axis(length / (full * zoom), length * (start + size / 2 + shift * reach) / full - 0.5)


def _to_image(view: View, across: _Axis, along: _Axis, size: int, mirror: tuple[bool, bool]) -> npt.NDArray[np.float64]:
    """The map of px of the result to px of the image, (2, 3)."""
    turn, shear = view.turn * math.pi / 6, view.shear * math.pi / 18
    cos, sin, slant = math.cos(turn), math.sin(turn), math.tan(shear)
    right, down = (-1 if swapped else 1 for swapped in mirror)
    xx, xy = right * across.scale * cos, down * across.scale * (cos * slant - sin)
    yx, yy = right * along.scale * sin, down * along.scale * (sin * slant + cos)
    middle = (size - 1) / 2
    return np.array([[xx, xy, across.center - (xx + xy) * middle], [yx, yy, along.center - (yx + yy) * middle]])


def _cut(image: Image, matrix: npt.NDArray[np.float64], size: int, scale: float) -> Image:
    """The part of the image that a warp sees, reflections included; `matrix` becomes the map to that part."""
    slices, margin = [], 2 if scale <= MOST_SOFTENED else math.ceil(2 * scale)  # for the filter and the interpolation
    for axis, length in ((1, image.shape[0]), (0, image.shape[1])):
        a, b, c = matrix[axis]
        ends = ((size - 1) * min(a, 0.0) + (size - 1) * min(b, 0.0) + c, (size - 1) * (max(a, 0.0) + max(b, 0.0)) + c)
        low, high = math.floor(ends[0]) - margin, math.ceil(ends[1]) + margin + 1
        low, high = max(0, min(low, 2 * length - high)), min(length, max(high, -low))
        matrix[axis, 2] -= low
        slices.append(slice(low, high))
    return image[slices[0], slices[1]]


MOST_SOFTENED = 1.9
"""Beyond it a filter of three weights would have to weigh the neighbors more than the pixel itself."""


def _softened(image: Image, across: float, along: float, matrix: npt.NDArray[np.float64]) -> Image:
    """An image without what a warp to a coarser grid would alias, which interpolates between neighbors alone.

    Averaging over the area of a new pixel, `scale` px wide, and interpolating between such means adds a variance of
    (scale ** 2 - 1) / 4 px to that of interpolation alone: a filter of three weights adds the same. Beyond what three
    weights can do, means of two pixels stand for them first, which leaves the filter half of the scale, and `matrix`
    becomes the map to these.
    """
    while max(across, along) > MOST_SOFTENED:
        halves = [2 if scale > MOST_SOFTENED else 1 for scale in (across, along)]
        image, across, along = _halved(image, *halves), across / halves[0], along / halves[1]
        for axis, half in enumerate(halves):
            matrix[axis] /= half
            matrix[axis, 2] += (1 / half - 1) / 2
    x, y = _weights(across), _weights(along)
    if x[1] == y[1] == 1:
        return image
    return _like(image, cv2.sepFilter2D(image, -1, x, y, borderType=cv2.BORDER_REFLECT))


def _halved(image: Image, across: int, along: int) -> Image:
    """Means of two pixels along an axis whose number is 2; a last one that has no neighbor falls away."""
    height, width = (max(1, length // half) for length, half in zip(image.shape, (along, across), strict=False))
    whole = image[: height * along, : width * across]
    return resized(whole, (width, height), cv2.INTER_LINEAR)  # between two pixels; averaging takes four times as long


def _weights(scale: float) -> npt.NDArray[np.float32]:
    """Three weights whose variance is what a warp by `scale` needs, exact in the 8 bits that OpenCV filters with."""
    outer = round(32 * max(0.0, scale * scale - 1)) / 256
    return np.array([outer, 1 - 2 * outer, outer], np.float32)


_GRAY = np.full((3, 3), 1 / 3)
_CHROMA = np.eye(3) - _GRAY
_TURN = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)


def change_color(
    image: Image,
    random: Random,
    brightness: float = 0.0,
    contrast: float = 0.0,
    saturation: float = 0.0,
    hue: float = 0.0,
    gray: float = 0.0,
) -> Image:
    """All of color as one affine map of RGB (Karras et al. 2020, StyleGAN2-ADA): uint8 (H, W, 3) -> (H, W, 3).

    Factors are uniform in 1 +- `brightness`, `contrast` (about the mean of the image), `saturation`; `hue` is the
    largest turn about the gray axis in full turns; `gray` the probability that all color goes.
    """
    bright, differ, vivid, turn = (random.uniform(-1, 1) for _ in range(4))
    bright, differ = 1 + brightness * bright, 1 + contrast * differ
    vivid = 0.0 if random.random() < gray else 1 + saturation * vivid
    angle = 2 * math.pi * hue * turn
    matrix = _GRAY + vivid * (math.cos(angle) * _CHROMA + math.sin(angle) * _TURN)
    offset = bright * (1 - differ) * sum(cv2.mean(image)[:3]) / 3
    return cv2.transform(image, np.hstack([bright * differ * matrix, np.full((3, 1), offset)]))


def change_sharpness(image: Image, random: Random, amount: float) -> Image:
    """Blend with the 3 x 3 smoothed image (the Sharpness of Pillow), factor 1 +- `amount`; (H, W, C)."""
    factor = 1 + amount * random.uniform(-1, 1)
    smooth = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13
    kernel = (1 - factor) * smooth
    kernel[1, 1] += factor
    return _like(image, cv2.filter2D(image, -1, kernel))


def change_solarize(image: Image, random: Random, reach: float) -> Image:
    """Invert what is brighter than a threshold, up to `reach` of 256 below 256; uint8 (H, W, 3)."""
    levels = np.arange(256)  # not A.Solarize: its weakest threshold, 255, still inverts white
    inverted = levels >= 256 * (1 - reach * random.random())
    return cv2.LUT(image, np.where(inverted, 255 - levels, levels).astype(np.uint8))


def change_tone(image: Image, random: Random, values: Values, brightness: float = 0.0, contrast: float = 0.0) -> Image:
    """Brightness and contrast of images of any kind, (H, W, C), all channels by the same two factors.

    Factors are uniform in 1 +- `brightness` (from the dark end of the span of each channel) and 1 +- `contrast` (about
    the mean of each channel).
    """
    bright, differ = (1 + most * random.uniform(-1, 1) for most in (brightness, contrast))
    low, mean = np.array(values.low, np.float32), image.mean((0, 1), dtype=np.float32)
    scale = np.float32(bright * differ)
    return _typed(image * scale + (bright * (mean * (1 - differ) - low) + low), image)


def change_by_blur(image: Image, random: Random, most: float) -> Image:
    """A Gaussian of sigma up to `most` px; of any kind, (H, W, C)."""
    return _like(image, cv2.GaussianBlur(image, (0, 0), 1e-3 + most * random.random()))


def change_by_noise(image: Image, random: Random, values: Values, most: float) -> Image:
    """Gaussian noise of a standard deviation up to `most` of the span of each channel; of any kind, (H, W, C)."""
    share = most * random.random()
    if values.kind == PHOTO:
        return _grained(image, 255 * share, random)
    std = share * np.subtract(values.high, values.low).astype(np.float32)
    generator = np.random.default_rng(random.getrandbits(64))
    return _typed(image + std * generator.standard_normal(image.shape, np.float32), image)


def _grained(photo: Image, std: float, random: Random) -> Image:
    """Noise that starts anywhere in a store of normal numbers: drawing new ones takes ten times longer."""
    store = _normals(max(2**20, 2 * photo.size))
    start = random.randrange(len(store) - photo.size)
    grain = store[start : start + photo.size].reshape(photo.shape)
    return cv2.addWeighted(photo, 1.0, grain, std / _DEVIATION, -_MIDDLE * std / _DEVIATION)


_MIDDLE, _DEVIATION = 128, 32  # of the store, so that four standard deviations fit


@cache
def _normals(count: int) -> npt.NDArray[np.uint8]:
    numbers = np.random.default_rng(0).standard_normal(count, np.float32)
    return np.rint(_MIDDLE + _DEVIATION * numbers).clip(0, 255).astype(np.uint8)


def change_by_jpeg(image: Image, random: Random, worst: int) -> Image:
    """What JPEG of a quality from `worst` to 100 leaves; uint8 (H, W, 3)."""
    quality = random.randint(worst, 100)
    packed = cv2.imencode(".jpg", image, (cv2.IMWRITE_JPEG_QUALITY, quality))[1]
    made = cv2.imdecode(packed, cv2.IMREAD_UNCHANGED)
    assert made is not None  # which OpenCV gives for broken files
    return made


def change_by_patches(image: Image, random: Random, values: Values, sides: tuple[float, float]) -> Image:
    """1 to 3 patches, each of one value per channel from its span; `sides` in shares of the image's; (H, W, C)."""
    image = image.copy()
    height, width = image.shape[:2]
    for _ in range(random.randint(1, 3)):
        rows, columns = (round(side * random.uniform(*sides)) for side in (height, width))
        top, left = random.randint(0, height - rows), random.randint(0, width - columns)
        fill = [random.uniform(*ends) for ends in zip(values.low, values.high, strict=True)]
        image[top : top + rows, left : left + columns] = _typed(np.array(fill, np.float32), image)
    return image


def invert_bright(image: Image, random: Random, values: Values, reach: float) -> Image:
    """Turn around, within the span, what is brighter than a threshold, up to `reach` of the span below its bright end.

    Of any kind, (H, W, C); what lies beyond the span stays.
    """
    low, high = (np.array(ends, np.float32) for ends in (values.low, values.high))
    above = (image > high - (high - low) * np.float32(reach * random.random())) & (image <= high)
    return np.where(above, _typed(low + high - image, image), image)


def _typed(made: Image, like: Image) -> Image:
    """Numbers as the type of an image holds them: whole ones rounded and kept within its range, floats unbounded."""
    if like.dtype == np.float32:
        return made.astype(np.float32, copy=False)
    most = np.iinfo(like.dtype).max
    return np.rint(made).clip(0, most).astype(like.dtype)
