"""Mixing the images of a batch on the device: mixup and CutMix."""

from __future__ import annotations

import math
from random import Random
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch


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
