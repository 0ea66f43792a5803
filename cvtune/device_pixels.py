"""What `pixels.py` does to one image, done to a batch on its device: each image by numbers of its own.

Images are float32 (N, S, S, 3) in 0..255, and stay so from one change to the next; every number that steers a change is
a tensor (N,) beside them. `pixels.py` is the definition, and the tests compare the two image by image. What differs:
nothing is rounded between two changes, and images are shrunk by sampling instead of averaging (`warp`). Nothing here
waits for the device or looks at values, so that it can be recorded (see `recorded.py`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cvtune.pixels import MOST_SOFTENED

WHITE = 255.0


class Flat(NamedTuple):
    """Photos of any sizes, one after the other.

    Attributes:
        pixels: uint8 (sum of h x w x 3,).
        starts: int64 (N,), where each begins.
        heights: int64 (N,).
        widths: int64 (N,).
    """

    pixels: Tensor
    starts: Tensor
    heights: Tensor
    widths: Tensor

    def to(self, device: torch.device) -> Flat:
        """All of it there."""
        return Flat(*(part.to(device) for part in self))

    def pick(self, rows: Tensor) -> Flat:
        """The photos at `rows`, int64 (M,); their pixels stay where they are."""
        return Flat(self.pixels, self.starts[rows], self.heights[rows], self.widths[rows])


class Views(NamedTuple):
    """`pixels.View` of each image, float32 (N,), and whether it is mirrored, bool (N,)."""

    area: Tensor
    stretch: Tensor
    turn: Tensor
    shear: Tensor
    right: Tensor
    down: Tensor
    aside: Tensor
    over: Tensor


def warp(photos: Flat, views: Views, size: int, fit: str, finest: int = 1) -> Tensor:
    """What stands in each view, float32 (N, size, size, 3); see `pixels.change_view`.

    Args:
        photos: N of them.
        views: N.
        size: side of the result in px.
        fit: see `pixels.to_square`.
        finest: samples along each side of a pixel of the result; more than one where images are shrunk by more than a
            filter of three weights can follow (`samples_for`).
    """
    width, height, left, top = _frame(photos, size, fit)
    ratio, side = (4 / 3) ** (views.stretch / 2), views.area.sqrt()
    across = _axis(photos.widths, width, left, size, ratio / side, views.right)
    along = _axis(photos.heights, height, top, size, 1 / (ratio * side), views.down)
    turn, slant = views.turn * (math.pi / 6), torch.tan(views.shear * (math.pi / 18))
    cos, sin = turn.cos(), turn.sin()
    aside, over = (1.0 - 2.0 * mirrored for mirrored in (views.aside, views.over))
    x_step = across.scale * aside * cos, across.scale * over * (cos * slant - sin)
    y_step = along.scale * aside * sin, along.scale * over * (sin * slant + cos)
    places = torch.arange(size, device=side.device, dtype=torch.float32) - (size - 1) / 2
    total: Tensor | None = None
    for below in range(finest):
        for beside in range(finest):
            j, i = (places + (sub + 0.5) / finest - 0.5 for sub in (beside, below))
            x, y = (
                axis.center[:, None, None] + step[0][:, None, None] * j + step[1][:, None, None] * i[:, None]
                for axis, step in ((across, x_step), (along, y_step))
            )
            made = _sampled(photos, x, y, across.scale / finest, along.scale / finest)
            total = made if total is None else total + made
    assert total is not None
    return total / finest**2 if finest > 1 else total


def samples_for(coarsest: float) -> int:
    """`finest` of `warp` for images of which up to `coarsest` px become one."""
    return max(1, math.ceil(coarsest / MOST_SOFTENED - 0.05))  # a few percent more change little


class _Axis(NamedTuple):
    scale: Tensor
    center: Tensor


def _frame(photos: Flat, size: int, fit: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `pixels.frame`; float32 (N,) each."""
    height, width = photos.heights.float(), photos.widths.float()
    if fit == "squash":
        square, none = torch.full_like(width, size), torch.zeros_like(width)
        return square, square, none, none
    short = torch.minimum(height, width)
    width, height = ((length * size / short).round().clamp(min=size) for length in (width, height))
    return width, height, ((width - size) / 2).floor(), ((height - size) / 2).floor()


def _axis(length: Tensor, full: Tensor, start: Tensor, size: int, zoom: Tensor, shift: Tensor) -> _Axis:
    reach = (full - size / zoom).clamp(min=0) / 2 + 0.1 * size
    return _Axis(length / (full * zoom), length * (start + size / 2 + shift * reach) / full - 0.5)


def _sampled(photos: Flat, x: Tensor, y: Tensor, across: Tensor, along: Tensor) -> Tensor:
    """Colors at places (N, S, S) of the photos, each smoothed and interpolated: float32 (N, S, S, 3).

    A filter of three weights followed by interpolation between two neighbors is one of four weights along each axis.
    """
    columns, x_weights = _taps(x, photos.widths, across)
    rows, y_weights = _taps(y, photos.heights, along)
    channels = torch.arange(3, device=x.device)
    total = torch.zeros((*x.shape, 3), device=x.device)
    stride = 3 * photos.widths[:, None, None]
    for row, y_weight in zip(rows, y_weights, strict=True):
        begin = photos.starts[:, None, None] + row * stride
        line = torch.zeros_like(total)
        for column, x_weight in zip(columns, x_weights, strict=True):
            place = (begin + 3 * column)[..., None] + channels
            line.addcmul_(photos.pixels[place].float(), x_weight[..., None])
        total.addcmul_(line, y_weight[..., None])
    return total


def _taps(at: Tensor, length: Tensor, scale: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Four neighbors of each place along one axis (reflected at the ends) and what each counts for."""
    base = at.floor()
    part = at - base
    a = ((scale.square() - 1).clamp(min=0) / 8)[:, None, None]  # the outer of three weights; see `pixels._softened`
    near, far = 1 - part, part
    weights = [a * near, (1 - 2 * a) * near + a * far, (1 - 2 * a) * far + a * near, a * far]
    period = 2 * length[:, None, None]
    indices = []
    for step in (-1, 0, 1, 2):
        index = torch.remainder(base.long() + step, period)
        indices.append(torch.minimum(index, period - 1 - index))
    return indices, weights


class Colors(NamedTuple):
    """What `pixels.change_color` draws, each float32 (N,): factors, turn in radians."""

    bright: Tensor
    differ: Tensor
    vivid: Tensor
    angle: Tensor


_GRAY = torch.full((3, 3), 1 / 3)
_CHROMA = torch.eye(3) - _GRAY
_TURN = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / math.sqrt(3)


def color(images: Tensor, colors: Colors) -> Tensor:
    """See `pixels.change_color`."""
    gray, chroma, turn = _on(images.device)
    vivid = colors.vivid[:, None, None]
    angle = colors.angle[:, None, None]
    matrix = gray + vivid * (angle.cos() * chroma + angle.sin() * turn)
    scale = colors.bright * colors.differ
    offset = colors.bright * (1 - colors.differ) * images.mean((1, 2, 3))
    # no matrix product, which TF32 would round
    matrix = scale[:, None, None] * matrix
    mapped = _sum(images[..., k, None] * matrix[:, None, None, :, k] for k in range(3))
    return (mapped + offset[:, None, None, None]).clamp(0, WHITE)


@functools.cache
def _on(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    return _GRAY.to(device), _CHROMA.to(device), _TURN.to(device)


def blur(images: Tensor, sigma: Tensor, most: float) -> Tensor:
    """A Gaussian of `sigma` px, (N,), at most `most`; 0 changes nothing. See `pixels.change_by_blur`."""
    radius = min(max(1, math.ceil(3 * most)), images.shape[1] - 1)
    steps = torch.arange(-radius, radius + 1, device=images.device)
    weights = (-0.5 * (steps / sigma.clamp(min=1e-3)[:, None]).square()).exp()
    weights = weights / weights.sum(1, keepdim=True)
    across = F.pad(images.permute(0, 3, 1, 2), (radius,) * 4, mode="reflect")
    for axis in (2, 3):
        length = across.shape[axis] - 2 * radius
        parts = (across.narrow(axis, k, length) * weights[:, k, None, None, None] for k in range(2 * radius + 1))
        across = functools.reduce(torch.add, parts)
    return across.permute(0, 2, 3, 1)


def grain(images: Tensor, std: Tensor, store: Tensor, start: Tensor) -> Tensor:
    """Normal noise of `std`, (N,), of 0..255; see `pixels.change_by_noise`.

    Args:
        store: float32 (M,), normal numbers.
        start: float32 (N,) in [0, 1): where in the store the noise of each image begins.
    """
    count = images[0].numel()
    begin = (start * (len(store) - count)).long()
    noise = store[begin[:, None] + torch.arange(count, device=images.device)].view(images.shape)
    return torch.addcmul(images, noise, std[:, None, None, None]).clamp(0, WHITE)


def patches(images: Tensor, numbers: Tensor, sides: tuple[float, float]) -> Tensor:
    """1 to 3 patches of one color each; `sides` in shares of the image's. See `pixels.change_by_patches`.

    Args:
        numbers: float32 (N, 22) in [0, 1): how many there are, then of each its height, width, top, left and color.
    """
    size = images.shape[1]
    many = (numbers[:, 0] * 3).floor() + 1
    places = torch.arange(size, device=images.device)
    for number in range(3):
        tall, wide, top, left, *fill = numbers[:, 1 + 7 * number : 8 + 7 * number].unbind(1)
        inside = []
        for side, start in ((tall, top), (wide, left)):
            length = (size * (sides[0] + (sides[1] - sides[0]) * side)).round()
            first = (start * (size - length + 1)).floor()
            inside.append((places >= first[:, None]) & (places < (first + length)[:, None]))
        there = inside[0][:, :, None] & inside[1][:, None, :] & (number < many)[:, None, None]
        images = torch.where(there[..., None], WHITE * torch.stack(fill, 1)[:, None, None], images)
    return images


# The tables of the JPEG standard (ITU-T T.81, annex K.1) that libjpeg scales by quality.
_LUMA = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
_TINT = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * 8,) * 4,
)
# Rows are Y, Cb, Cr of an image whose first channel counts as blue: OpenCV, which packs images in `pixels.py`, takes it
# for that, and a definition is to be followed.
_YCC = torch.tensor([[0.114, 0.587, 0.299], [0.5, -0.331264, -0.168736], [-0.081312, -0.418688, 0.5]])


@functools.cache
def _jpeg_tables(device: torch.device) -> tuple[Tensor, ...]:
    waves = torch.arange(8, dtype=torch.float64)
    cosines = torch.cos((2 * waves + 1) * waves[:, None] * math.pi / 16) / 2
    cosines[0] /= math.sqrt(2)
    tables = torch.tensor([_LUMA, _TINT, _TINT], dtype=torch.float32)
    back = torch.linalg.inv(_YCC.double())
    return tuple(made.float().to(device) for made in (cosines, tables, _YCC, back))


def jpeg(images: Tensor, quality: Tensor) -> Tensor:
    """What JPEG of a quality, (N,) in 1..100, leaves: colors at half the resolution. See `pixels.change_by_jpeg`."""
    cosines, tables, ycc, back = _jpeg_tables(images.device)
    size = images.shape[1]
    padded = -(-size // 16) * 16
    scale = torch.where(quality < 50, 5000 / quality, 200 - 2 * quality)
    steps = ((tables * scale[:, None, None, None] + 50) / 100).floor().clamp(1, 255)  # (N, 3, 8, 8)
    planes = F.pad(_times(images.round(), ycc).permute(0, 3, 1, 2), (0, padded - size) * 2, mode="replicate").round()
    planes[:, 0] -= 128
    luma = _quantized(planes[:, 0], steps[:, 0], cosines)
    halves = F.avg_pool2d(planes[:, 1:], 2).round()
    tints = [_quantized(halves[:, k], steps[:, 1 + k], cosines) for k in (0, 1)]
    wide = F.interpolate(torch.stack(tints, 1), scale_factor=2, mode="bilinear", align_corners=False)
    made = torch.cat([luma[:, None] + 128, wide], 1)[..., :size, :size].permute(0, 2, 3, 1)
    return _times(made, back).clamp(0, WHITE).round()


def _times(images: Tensor, matrix: Tensor) -> Tensor:
    """Each pixel, (..., 3), by a matrix (3, 3); no matrix product, which TF32 would round."""
    return _sum(images[..., k, None] * matrix[:, k] for k in range(3))


def _quantized(plane: Tensor, steps: Tensor, cosines: Tensor) -> Tensor:
    """A plane (N, H, W), its blocks of 8 x 8 as cosines that are whole multiples of `steps`, (N, 8, 8)."""
    images, height, width = plane.shape
    blocks = plane.view(images, height // 8, 8, width // 8, 8).transpose(2, 3)
    waves = _both_sides(blocks, cosines)
    steps = steps[:, None, None]
    back = _both_sides((waves / steps).round() * steps, cosines.T)
    return back.transpose(2, 3).reshape(images, height, width).round().clamp(-128, 127)


def _both_sides(blocks: Tensor, matrix: Tensor) -> Tensor:
    """matrix @ block @ matrix.T of each block, (..., 8, 8), in float32 to the last bit that matters for rounding."""
    by_rows = _sum(matrix[:, k, None] * blocks[..., k, None, :] for k in range(8))
    return _sum(by_rows[..., :, k, None] * matrix[:, k] for k in range(8))


def _sum(parts: Iterable[Tensor]) -> Tensor:
    return functools.reduce(torch.add, parts)
