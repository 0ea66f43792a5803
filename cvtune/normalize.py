"""How the numbers of images become what a network sees: float32 of about mean 0 and spread 1, made on the device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cvtune.data.dataset import Dataset
from cvtune.kinds import PHOTO, values_of
from cvtune.models.weights import norm_of
from cvtune.recipe import Recipe


@dataclass(frozen=True)
class Normalizer:
    """Calling it makes images (N, H, W, C) of any type float32 (N, C, H, W) on the device; see `normalizer_of`."""

    mean: Tensor  # float32 (1, C, 1, 1), in the numbers of the images
    std: Tensor
    low: float | None
    high: float | None
    layout: torch.memory_format = torch.contiguous_format

    def __call__(self, images: Tensor) -> Tensor:
        there = images.to(self.mean.device, non_blocking=True)
        x = there.to(torch.float32, copy=True, memory_format=torch.contiguous_format)  # what is given stays as it is
        if self.low is not None or self.high is not None:
            x = x.clamp_(self.low, self.high)
        if x.is_cuda:  # a kernel saved is worth more there
            x.sub_(self.mean.view(1, 1, 1, -1)).div_(self.std.view(1, 1, 1, -1))
        else:
            rows = x.view(*x.shape[:2], -1)  # whole rows of numbers: channel by channel takes several times as long
            rows.sub_(self.mean.flatten().repeat(x.shape[2])).div_(self.std.flatten().repeat(x.shape[2]))
        return x.permute(0, 3, 1, 2).contiguous(memory_format=self.layout)


def normalizer_of(
    data: Dataset,
    recipe: Recipe,
    device: torch.device | str,
    layout: torch.memory_format = torch.contiguous_format,
) -> Normalizer:
    """What brings the images of a data set to a network.

    First `data.window_low` and `data.window_high` cut off what lies beyond them. Then photos, and images of three
    channels for pretrained weights, are scaled from their span (see `kinds.values_of`) to 0..1 and normalized as the
    weights were trained, which is as ImageNet is unless timm or smp say otherwise. All others are normalized by mean
    and standard deviation of each channel of the training images.
    """
    low, high = recipe.data.window_low, recipe.data.window_high
    if data.kind == PHOTO or data.stats is None or (recipe.model.pretrained and data.kind.channels == 3):
        values = values_of(data.kind, data.stats, low, high)
        dark, bright = torch.tensor(values.low), torch.tensor(values.high)
        mean, std = map(torch.tensor, norm_of(recipe.model.name, recipe.model.pretrained))
        mean, std = dark + mean * (bright - dark), std * (bright - dark)
    else:
        found, spread = data.stats.clipped(low, high)
        mean, std = torch.tensor(found), torch.tensor([s if s > 0 else 1.0 for s in spread])
    mean, std = (values.float().view(1, -1, 1, 1).to(device) for values in (mean, std))
    return Normalizer(mean, std, low, high, layout)
