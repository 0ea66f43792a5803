"""The architectures as one table: which names, where noise goes, which norm layers fit."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cvtune.errors import ConfigError, did_you_mean
from cvtune.models.small_resnet import SmallResNet

TORCHVISION = "torchvision:"


@dataclass(frozen=True)
class Family:
    """One row of the table.

    Attributes:
        name: for messages.
        pattern: regular expression that a model's name matches in full.
        stages: what runs one after the other on ever coarser maps; spatial dropout goes between them.
        branches: per block, from first to deepest, the modules whose outputs are added to the shortcut.
        options: image size -> arguments of the torchvision builder.
        own_norm: whether no other norm layer fits.
        has_maps: whether there are channel maps between stages (a ViT has none).
    """

    name: str
    pattern: str
    stages: Callable[[Any], Iterable[nn.Module]]
    branches: Callable[[Any], list[list[nn.Module]]]
    options: Callable[[int], dict[str, Any]] = lambda image_size: {}
    own_norm: bool = False
    has_maps: bool = True

    def stage_ends(self, module: nn.Module) -> list[nn.Module]:
        """The stages that are followed by one with a stride: what they return is a finished scale of maps."""
        stages = list(self.stages(module))
        return [stage for stage, following in itertools.pairwise(stages) if _strides(following)]


def _resnet_stages(m: Any) -> tuple[Any, ...]:
    return (m.layer1, m.layer2, m.layer3, m.layer4)


def _inverted_residuals(m: Any) -> list[list[nn.Module]]:
    return [[b.block] for b in m.modules() if getattr(b, "use_res_connect", False)]


# torchvision's own StochasticDepth modules are built with probability 0: one mechanism, ours, serves all rows.
FAMILIES = (
    Family("small_resnet", "small_resnet", lambda m: m.stages, lambda m: [[block.norm2] for block in m.stages]),
    Family(
        "ResNet",
        r"(wide_)?resnet\d+(_2)?|resnext\d+_\d+x\d+d",
        _resnet_stages,
        lambda m: [[getattr(b, "bn3", b.bn2)] for stage in _resnet_stages(m) for b in stage],
    ),
    Family("MobileNetV3", r"mobilenet_v3_\w+", lambda m: m.features[1:], _inverted_residuals),
    Family(
        "EfficientNet",
        r"efficientnet_\w+",
        lambda m: m.features[1:],
        _inverted_residuals,
        options=lambda image_size: {"stochastic_depth_prob": 0.0},
    ),
    Family(
        "ConvNeXt",
        r"convnext_\w+",
        lambda m: m.features[1:],
        lambda m: [[b.block] for b in m.modules() if hasattr(b, "layer_scale")],
        options=lambda image_size: {"stochastic_depth_prob": 0.0},
        own_norm=True,
    ),
    Family(
        "ViT",
        r"vit_\w_\d+",
        lambda m: (),
        lambda m: [[b.dropout, b.mlp] for b in m.encoder.layers],
        options=lambda image_size: {"image_size": image_size},
        own_norm=True,
        has_maps=False,
    ),
)


def find_family(full_name: str) -> tuple[Family, str]:
    """The row of an architecture and its name without `torchvision:`.

    Raises:
        ConfigError: torchvision has no such architecture, or it is of a family that is not in the table.
    """
    name = full_name.removeprefix(TORCHVISION)
    if name == full_name:
        return FAMILIES[0], name
    from torchvision.models import list_models

    family = {known: row for known in list_models() for row in FAMILIES[1:] if re.fullmatch(row.pattern, known)}
    if name in family:
        return family[name], name
    if name in list_models():
        raise ConfigError(
            f"model.name = {full_name!r} is not of a supported family: {', '.join(row.name for row in FAMILIES[1:])}. "
            "Choose one of these or write a 'python:module:function' that builds it."
        )
    known = [TORCHVISION + known for known in family]
    raise ConfigError(f"model.name = {full_name!r} is not known. {did_you_mean(full_name, known, show=len(known))}")


def build_plain(family: Family, name: str, num_classes: int, image_size: int, width: int) -> nn.Module:
    """The architecture as published, with fresh weights and `num_classes` logits."""
    if family.name == "small_resnet":
        return SmallResNet(num_classes, image_size, width)
    from torchvision.models import get_model

    if family.name == "ViT":
        _check_patches(name, image_size)
    module: nn.Module = get_model(name, weights=None, num_classes=num_classes, **family.options(image_size))
    return module


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


def replace_norms(module: nn.Module, family: Family, name: str, norm: str | None) -> None:
    """Puts another norm layer in the place of every batch norm; `batch` and None keep them.

    Without norm the last scale of each residual branch starts at 0 and the network as the identity, which
    is what lets deep ones train (SkipInit, De & Smith 2020; Fixup, Zhang et al. 2019).

    Raises:
        ConfigError: the architecture has only its own norm layer.
    """
    if norm is not None and family.own_norm:
        raise ConfigError(
            f"model.norm = {norm!r} does not fit model.name = '{TORCHVISION}{name}': {family.name} knows only its own "
            "layer norm. Leave model.norm at None."
        )
    if norm not in NORMS:
        return
    for parent in list(module.modules()):
        for key, child in parent.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, key, NORMS[norm](child.num_features))
    if norm == "none":
        for branch in (branch for block in family.branches(module) for branch in block):
            last = [m for m in branch.modules() if isinstance(m, Affine)][-1]
            nn.init.zeros_(last.weight)


def _strides(stage: nn.Module) -> bool:
    return any(isinstance(m, nn.Conv2d) and m.stride[0] > 1 for m in stage.modules())


def _check_patches(name: str, image_size: int) -> None:
    patch = int(name.rpartition("_")[2])
    if image_size % patch:
        below = image_size // patch * patch
        valid = " or ".join(str(side) for side in (below, below + patch) if side)
        raise ConfigError(
            f"data.image_size = {image_size} is not a multiple of the {patch} px patches of model.name = "
            f"'{TORCHVISION}{name}'. The nearest valid sizes: {valid}."
        )
