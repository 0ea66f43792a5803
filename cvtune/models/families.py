"""The architectures as one table: which names, for which task, where noise goes, how they are built."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from cvtune.errors import ConfigError, did_you_mean
from cvtune.models import extras
from cvtune.models.norms import Branches
from cvtune.models.small_resnet import SmallResNet
from cvtune.models.small_unet import SmallUNet

TORCHVISION = "torchvision:"
OWN = ("small_resnet", "small_unet")


def _none(m: Any) -> Branches:
    return []


@dataclass(frozen=True)
class Family:
    """One row of the table.

    Attributes:
        name: for messages.
        pattern: regular expression that `model.name` matches in full; the first row that matches counts.
        stages: what runs one after the other on ever coarser maps; spatial dropout goes between them.
        branches: per block, from first to deepest, the modules whose outputs are added to the shortcut.
        options: image size -> arguments of the torchvision builder.
        own_norm: whether no other norm layer fits.
        segments: whether the logits are (N, K, H, W), else (N, K).
        head: all that comes after the backbone, where it is not the last nn.Linear alone.
    """

    name: str
    pattern: str
    stages: Callable[[Any], Iterable[nn.Module]] = lambda m: ()
    branches: Callable[[Any], Branches] = _none
    options: Callable[[int], dict[str, Any]] = lambda image_size: {}
    own_norm: bool = False
    segments: bool = False
    head: Callable[[Any], Iterable[nn.Module]] | None = None

    def stage_ends(self, module: nn.Module) -> list[nn.Module]:
        """The stages that are followed by one with a stride: what they return is a finished scale of maps."""
        stages = list(self.stages(module))
        return [stage for stage, following in itertools.pairwise(stages) if _strides(following)]


def _resnet_stages(m: Any) -> tuple[Any, ...]:
    return (m.layer1, m.layer2, m.layer3, m.layer4)


def _resnet_branches(stages: Iterable[Any]) -> Branches:
    return [[getattr(b, "bn3", b.bn2)] for stage in stages for b in stage]


def _named(*names: str) -> Callable[[Any], Branches]:
    """Of every module that has children of such names: those."""
    return lambda m: [
        found for b in m.modules() if (found := [c for key, c in b.named_children() if key in names and c is not None])
    ]


def _inverted_residuals(m: Any) -> Branches:
    return [[b.block] for b in m.modules() if getattr(b, "use_res_connect", False)]


def _backbone_branches(m: Any) -> Branches:
    """Of a segmentation model with a ResNet or a MobileNetV3 as backbone."""
    layers = [layer for name, layer in m.backbone.named_children() if name.startswith("layer")]
    return _resnet_branches(layers) if layers else _inverted_residuals(m)


# torchvision's own StochasticDepth modules rest (see `build_plain`): one mechanism, ours, serves all rows.
FAMILIES = (
    Family("small_resnet", "small_resnet", lambda m: m.stages, lambda m: [[block.norm2] for block in m.stages]),
    Family(
        "small_unet",
        "small_unet",
        lambda m: m.stages,
        lambda m: [[block.norm2] for block in (*m.stages, *m.decoder)],
        segments=True,
        head=lambda m: (m.decoder, m.head),
    ),
    Family(
        "ResNet",
        r"torchvision:((wide_)?resnet\d+(_2)?|resnext\d+_\d+x\d+d)",
        _resnet_stages,
        lambda m: _resnet_branches(_resnet_stages(m)),
    ),
    Family("MobileNetV3", r"torchvision:mobilenet_v3_\w+", lambda m: m.features[1:], _inverted_residuals),
    Family(
        "MobileNetV2",
        r"torchvision:mobilenet_v2",
        lambda m: m.features[1:],
        lambda m: [[b.conv] for b in m.modules() if getattr(b, "use_res_connect", False)],
    ),
    Family(
        "MNASNet",
        r"torchvision:mnasnet\w+",
        lambda m: m.layers,
        lambda m: [[b.layers] for b in m.modules() if getattr(b, "apply_residual", False)],
    ),
    Family("EfficientNet", r"torchvision:efficientnet_\w+", lambda m: m.features[1:], _inverted_residuals),
    Family("RegNet", r"torchvision:regnet_\w+", lambda m: m.trunk_output, _named("f")),
    Family(
        "ConvNeXt",
        r"torchvision:convnext_\w+",
        lambda m: m.features[1:],
        lambda m: [[b.block] for b in m.modules() if hasattr(b, "layer_scale")],
        own_norm=True,
    ),
    Family(
        "ViT",
        r"torchvision:vit_\w_\d+",
        branches=lambda m: [[b.dropout, b.mlp] for b in m.encoder.layers],
        options=lambda image_size: {"image_size": image_size},
        own_norm=True,
    ),
    Family("Swin", r"torchvision:swin_\w+", branches=_named("stochastic_depth"), own_norm=True),
    Family(
        "MaxViT",
        r"torchvision:maxvit_\w+",
        lambda m: m.blocks,
        _named("stochastic_depth", "stochastic_dropout"),
        options=lambda image_size: {"input_size": (image_size, image_size)},
        own_norm=True,
    ),
    Family("DenseNet", r"torchvision:densenet\d+", lambda m: m.features),
    Family("AlexNet, VGG or SqueezeNet", r"torchvision:(alexnet|(vgg|squeezenet)\w+)", lambda m: m.features),
    Family(
        "GoogLeNet or Inception",
        r"torchvision:(googlenet|inception_v3)",
        lambda m: m.children(),
        options=lambda image_size: {"aux_logits": False, "init_weights": True},
    ),
    Family("ShuffleNet", r"torchvision:shufflenet_\w+", lambda m: m.children()),
    Family(
        "DeepLabV3 or FCN",
        r"torchvision:(deeplabv3|fcn)_\w+",
        lambda m: m.backbone.values(),
        _backbone_branches,
        options=lambda image_size: {"weights_backbone": None, "aux_loss": False},
        segments=True,
        head=lambda m: (m.classifier,),
    ),
    Family(
        "LR-ASPP",
        r"torchvision:lraspp_\w+",
        lambda m: m.backbone.values(),
        _backbone_branches,
        options=lambda image_size: {"weights_backbone": None},
        segments=True,
        head=lambda m: (m.classifier,),
    ),
    Family("torchvision's newer ones", r"torchvision:.+"),
    Family(
        "timm",
        r"timm:.+",
        branches=_named("drop_path", "drop_path1", "drop_path2"),
        head=lambda m: (extras.timm_head(m),),
    ),
    Family("smp", r"smp:.+", segments=True, head=lambda m: (m.decoder, m.segmentation_head)),
)


def names_for(segments: bool) -> list[str]:
    """Values of `model.name` for a task, of timm and smp only the pattern."""
    own, module, more = (
        ("small_unet", "segmentation", ["smp:DECODER/ENCODER"]) if segments else ("small_resnet", "", ["timm:NAME"])
    )
    return [own, *(TORCHVISION + name for name in _torchvision_names(module)), *more, "python:module:function"]


def find_family(full_name: str) -> Family:
    """The row of an architecture.

    Raises:
        ConfigError: there is no such architecture, or its library is not installed.
    """
    known = {*_torchvision_names(""), *_torchvision_names("segmentation")} if full_name not in OWN else set()
    family = next((row for row in FAMILIES if re.fullmatch(row.pattern, full_name)), None)
    if family is None or (full_name.startswith(TORCHVISION) and full_name.removeprefix(TORCHVISION) not in known):
        valid = [*OWN, *sorted(TORCHVISION + name for name in known)]
        raise ConfigError(f"model.name = {full_name!r} is not known. {did_you_mean(full_name, valid, show=len(valid))}")
    extras.check_name(full_name)
    return family


def build_plain(
    family: Family, name: str, num_classes: int, image_size: int, width: int, channels: int = 3
) -> nn.Module:
    """The architecture as published, with fresh weights and `num_classes` logits. `name` is the whole model.name.

    For other than 3 channels the first convolution is a new one.

    Raises:
        ConfigError: the architecture can be built for other image sizes only.
    """
    if name in OWN:
        return (SmallUNet if name == "small_unet" else SmallResNet)(num_classes, image_size, width, channels)
    if not name.startswith(TORCHVISION):
        return extras.build(name, num_classes, image_size, channels)
    from torchvision.models import get_model
    from torchvision.ops import StochasticDepth

    _check_multiple(family, name, image_size)
    plain = name.removeprefix(TORCHVISION)
    module: nn.Module = get_model(plain, weights=None, num_classes=num_classes, **family.options(image_size))
    if channels != 3:
        _replace_first(module, channels)
    for m in module.modules():
        if isinstance(m, StochasticDepth):
            m.p = 0.0
    if family.segments:
        module.register_forward_hook(_out)
    return module


def _replace_first(module: nn.Module, channels: int) -> None:
    """A new first convolution for images of so many channels; its weights are as large, seen from its output."""
    name, first = next((name, m) for name, m in module.named_modules() if isinstance(m, nn.Conv2d))
    where, _, leaf = name.rpartition(".")
    fresh = nn.Conv2d(
        channels,
        first.out_channels,
        first.kernel_size,  # type: ignore[arg-type]
        first.stride,  # type: ignore[arg-type]
        first.padding,  # type: ignore[arg-type]
        bias=first.bias is not None,
    )
    fresh.weight.data.normal_().mul_(first.weight.data.std() * math.sqrt(first.in_channels / channels))
    if fresh.bias is not None and first.bias is not None:
        fresh.bias.data.copy_(first.bias.data)
    setattr(module.get_submodule(where), leaf, fresh)


def _out(module: nn.Module, inputs: tuple[Tensor, ...], output: dict[str, Tensor]) -> Tensor:
    """Hook: of a segmentation model of torchvision only the logits."""
    return output["out"]


def _torchvision_names(module: str) -> list[str]:
    from torchvision import models

    names: list[str] = models.list_models(module=models.segmentation if module else models)
    return names


def _strides(stage: nn.Module) -> bool:
    return any(
        isinstance(m, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d)
        and (m.stride if isinstance(m.stride, int) else m.stride[0]) > 1
        for m in stage.modules()
    )


def _check_multiple(family: Family, name: str, image_size: int) -> None:
    """ViTs cut the image into patches; MaxViT its maps, down to the coarsest at 1/32, into windows of 7."""
    unit = {"ViT": int(name.rpartition("_")[2]) if family.name == "ViT" else 0, "MaxViT": 7 * 32}.get(family.name, 1)
    if image_size % unit:
        below = image_size // unit * unit
        valid = " or ".join(str(side) for side in (below, below + unit) if side)
        raise ConfigError(
            f"data.image_size = {image_size} is not a multiple of the {unit} px patches of model.name = {name!r}. "
            f"The nearest valid sizes: {valid}."
        )
