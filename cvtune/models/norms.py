"""Which norm layer a network has: batch norm, another one in its place, or none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from cvtune.errors import ConfigError

Branches = list[list[nn.Module]]


class Affine(nn.Module):
    """What stands where there is no norm: a scale and a bias per channel, without statistics."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.bias.view(-1, 1, 1), x, self.weight.view(-1, 1, 1))


def group_norm(channels: int) -> nn.GroupNorm:
    """Group norm of at most 32 groups (Wu & He 2018) with at least 8 channels each, as divisors allow."""
    groups = max(g for g in range(1, max(1, min(32, channels // 8)) + 1) if channels % g == 0)
    return nn.GroupNorm(groups, channels)


NORMS: dict[str, Callable[[int], nn.Module]] = {"group": group_norm, "none": Affine}


def replace_norms(module: nn.Module, branches: Callable[[Any], Branches], name: str, norm: str | None) -> None:
    """Puts another norm layer in the place of every batch norm; `batch` and None keep them.

    Without norm the last scale of each residual branch starts at 0 and the network as the identity, which
    is what lets deep ones train (SkipInit, De & Smith 2020; Fixup, Zhang et al. 2019).

    Args:
        module: changed in place.
        branches: tells, per block, the modules whose outputs are added to the shortcut.
        name: `model.name`, for the message.
        norm: `model.norm`.

    Raises:
        ConfigError: there is no batch norm whose place another one could take.
    """
    if norm is None:
        return
    children = [(parent, key, child) for parent in module.modules() for key, child in parent.named_children()]
    places = [(parent, key, child) for parent, key, child in children if type(child) is nn.BatchNorm2d]
    if not places:
        raise ConfigError(
            f"model.norm = {norm!r} does not fit model.name = {name!r}: it has no batch norm to keep or to replace. "
            "Leave model.norm at None."
        )
    if norm not in NORMS:
        return
    for parent, key, child in places:
        setattr(parent, key, NORMS[norm](child.num_features))
    if norm == "none":
        for branch in (branch for block in branches(module) for branch in block):
            scales = [m for m in branch.modules() if isinstance(m, Affine)]
            if scales:
                nn.init.zeros_(scales[-1].weight)
