"""The memory layout that a network trains fastest in, and what makes it safe on a CPU.

With channels last, convolutions on an x86 CPU need not reorder what goes in and out: 20 to 25 % of a small ResNet's
time (`tests/bench/layouts.py`). But oneDNN (3.13 in torch 2.15) writes past its buffer in the gradient of a strided
1 x 1 convolution whose input channels do not fill a vector register (github.com/uxlfoundation/oneDNN/issues/6035).
Such a convolution looks at every second pixel, say, and at nothing else: here they are picked first, and a convolution
without stride follows, which gives the same numbers by other code.
"""

from __future__ import annotations

import platform

import torch
import torch.nn.functional as F
from torch import Tensor, nn

X86 = ("x86_64", "AMD64")


class PickedConv2d(nn.Conv2d):
    """A strided 1 x 1 convolution without its stride, of every stride-th pixel."""

    def forward(self, x: Tensor) -> Tensor:
        """float (N, C, H, W) to what nn.Conv2d makes of it."""
        picked = F.avg_pool2d(x, 1, self.stride)  # a mean of one; slicing would lose the layout in the gradient
        return F.conv2d(picked, self.weight, self.bias, groups=self.groups)


def arrange(module: nn.Module, device: torch.device) -> torch.memory_format:
    """Bring a network on its device into the layout that it trains fastest in; returns it, for the images.

    It stays as it is on a CPU that is no x86 and with several threads (neither was measured), and where a strided
    1 x 1 convolution may hide.
    """
    layout = torch.channels_last
    if device.type == "cpu":
        measured = platform.machine() in X86 and torch.get_num_threads() == 1
        if not measured or not all(map(_in_sight, module.modules())):
            return torch.contiguous_format
        for conv in module.modules():
            if _strided(conv):
                conv.__class__ = PickedConv2d
    module.to(memory_format=layout)
    return layout


def _in_sight(module: nn.Module) -> bool:
    """Whether it is known what a layer does with its own 1 x 1 kernels, which a strided convolution may take."""
    if type(module) in (nn.Conv2d, PickedConv2d):
        return not _strided(module) or module.padding in ((0, 0), "valid")
    return not any(p.ndim == 4 and p.shape[2:] == (1, 1) for p in module.parameters(recurse=False))


def _strided(module: nn.Module) -> bool:
    return type(module) is nn.Conv2d and module.kernel_size == (1, 1) and module.stride != (1, 1)
