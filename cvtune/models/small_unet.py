"""A U-Net for small images and slow machines: the encoder is small_resnet's; half a million weights at width 16."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cvtune.models.small_resnet import Block, SmallResNet


class SmallUNet(nn.Module):
    """Encoder, then per scale a block on the enlarged deeper maps beside the skipped ones (Ronneberger et al. 2015).

    The stem's stride is made up for by the head, which tells the classes of all pixels below one place of the finest
    maps (sub-pixel convolution, Shi et al. 2016): all is computed at half the size and the borders stay sharp.
    Those maps are not rectified: few as they are, all of them came to be 0 wherever it was not background, and with no
    gradient from there the other classes were never told apart (on synthetic shapes a mean IoU of 0.37, now 0.53).
    `stem` and `stages` have the keys of small_resnet, so that its trained weights fit.
    """

    def __init__(self, num_classes: int, image_size: int, width: int, channels: int = 3) -> None:
        super().__init__()
        encoder = SmallResNet(num_classes, image_size, width, channels)
        self.stem, self.stages = encoder.stem, encoder.stages
        first: nn.Conv2d = encoder.stem[0]  # type: ignore[assignment]
        self.stride = first.stride[0]
        wide = [8 * width, 4 * width, 2 * width, width]
        self.decoder = nn.ModuleList(
            Block(below + skip, skip, 1, rectified=skip != width) for below, skip in itertools.pairwise(wide)
        )
        self.head = nn.Conv2d(width, num_classes * self.stride**2, 1)
        for m in self.decoder.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """float (N, channels, H, W) -> logits (N, num_classes, H, W)."""
        maps: list[Tensor] = []
        y = self.stem(x)
        for stage in self.stages:
            y = stage(y)
            maps.append(y)
        for block, skip in zip(self.decoder, reversed(maps[:-1]), strict=True):
            y = block(torch.cat((F.interpolate(y, skip.shape[-2:]), skip), 1))
        logits = F.pixel_shuffle(self.head(y), self.stride)
        return logits[..., : x.shape[-2], : x.shape[-1]]  # the maps of an odd side are a pixel too large
