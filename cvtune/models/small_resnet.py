"""A residual network for small images and slow machines: four blocks, about 0.3 million weights at width 16."""

from __future__ import annotations

from torch import Tensor, nn


class Block(nn.Module):
    """Basic residual block (He et al. 2016): two 3x3 convolutions, a 1x1 shortcut where the shape changes.

    Without `rectified` what it gives may be negative.
    """

    def __init__(self, channels_in: int, channels: int, stride: int, rectified: bool = True) -> None:
        super().__init__()
        self.rectified = rectified
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut: nn.Module = nn.Identity()
        if (channels_in, 1) != (channels, stride):
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels_in, H, W) -> (N, channels, H / stride, W / stride)."""
        y = self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x)))))
        y += self.shortcut(x)
        out: Tensor = self.relu(y) if self.rectified else y
        return out


class SmallResNet(nn.Module):
    """Stem, stages of `width` x 1, 2, 4, 8 channels with one block each, average pool, linear head.

    Strides: 2 in the stem above 32 px, then 2 before stages 2, 3 and 4 as long as the map stays 2x2 or larger.
    """

    def __init__(self, num_classes: int, image_size: int, width: int, channels: int = 3) -> None:
        super().__init__()
        stride = 2 if image_size > 32 else 1
        self.stem = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        )
        side, channels = -(-image_size // stride), width
        blocks = [Block(width, width, 1)]
        for _ in range(3):
            stride = 2 if side > 2 else 1
            side = -(-side // stride)
            blocks.append(Block(channels, 2 * channels, stride))
            channels *= 2
        self.stages = nn.Sequential(*blocks)
        self.head = nn.Linear(channels, num_classes)
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """float (N, channels, H, W) -> logits (N, num_classes)."""
        logits: Tensor = self.head(self.stages(self.stem(x)).mean((2, 3)))
        return logits
