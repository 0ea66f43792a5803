"""Every architecture of torchvision, and what timm and segmentation_models_pytorch add: built, run, hooked, refused."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision import models as torchvision_models
from torchvision.models import regnet

from cvtune.errors import ConfigError
from cvtune.models import Network, build_model, check_model
from cvtune.models.families import FAMILIES, find_family, names_for
from cvtune.recipe import Recipe, Regularize
from cvtune.regularize import resolve

CLASSIFIERS = torchvision_models.list_models(module=torchvision_models)
SEGMENTERS = torchvision_models.list_models(module=torchvision_models.segmentation)
SIDES = {"inception_v3": 75, "alexnet": 64, "maxvit_t": 224, "vit_h_14": 42}  # px; 32 suffices for the others
PLACES = {  # small ones of each kind, and how many branches and channel places they have
    "alexnet": (0, 3),
    "vgg11_bn": (0, 5),
    "squeezenet1_1": (0, 3),
    "densenet121": (0, 4),
    "googlenet": (0, 4),
    "inception_v3": (0, 4),
    "shufflenet_v2_x0_5": (0, 4),
    "mnasnet0_5": (10, 4),
    "mobilenet_v2": (10, 4),
    "regnet_y_400mf": (16, 3),
    "swin_t": (12, 0),
    "swin_v2_t": (12, 0),
}
QUIET = Recipe().replace({"regularize.strength": None})


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def recipe(name: str, **values: object) -> Recipe:
    return QUIET.replace({"model.name": name, **{key.replace("__", "."): value for key, value in values.items()}})


def noise(**knobs: float) -> Regularize:
    return resolve(QUIET).regularize.model_copy(update=knobs)


def images(side: int, count: int = 2) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def side_of(name: str) -> int:
    return SIDES.get(name, 32)


@pytest.fixture
def nothing_is_computed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Within the test networks have shapes only: the largest one has 0.6 billion weights."""
    widths = regnet.BlockParams.from_init_params

    def on_the_cpu(*arguments: Any, **options: Any) -> Any:
        with torch.device("cpu"):  # a RegNet computes its widths with tensors
            return widths(*arguments, **options)

    monkeypatch.setattr(regnet.BlockParams, "from_init_params", on_the_cpu)
    with torch.device("meta"):
        yield


# --- torchvision's classifiers


@pytest.mark.usefixtures("nothing_is_computed")
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_every_classifier_of_torchvision_builds_with_its_head_and_gives_logits(name: str) -> None:
    network = build_model(recipe(f"torchvision:{name}"), 7, side_of(name))
    assert network.module.eval()(torch.empty(2, 3, side_of(name), side_of(name))).shape == (2, 7)
    layers = [m for m in network.module.modules() if next(m.parameters(recurse=False), None) is not None]
    assert layers[-1] is network.head and network.head.weight.shape[0] == 7
    assert not {"aux1", "aux2", "AuxLogits"} & {key.partition(".")[0] for key in network.module.state_dict()}
    assert network._dropout
    assert {m.p for m in network.module.modules() if type(m).__name__ == "StochasticDepth"} <= {0.0}


@cache
def built(name: str) -> Network:
    torch.manual_seed(0)
    network = build_model(recipe(f"torchvision:{name}"), 5, side_of(name))
    nn.init.normal_(network.head.weight, std=0.1)  # type: ignore[arg-type]
    for m in network.module.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.momentum = None  # one pass tells them the statistics: fresh weights may let no signal through
    with torch.no_grad():
        network.module.train()(images(side_of(name)))
    return network


@pytest.mark.parametrize("name", PLACES)
def test_noise_acts_where_it_has_a_place_and_only_there(name: str) -> None:
    network, (branches, channels) = built(name), PLACES[name]
    assert (len(network._branches), len(network._channels)) == (branches, channels)
    x, acts = images(side_of(name)), {"dropout": True, "spatial_dropout": bool(channels), "drop_path": bool(branches)}

    def agree(training: bool) -> bool:
        network.module.train(training)
        for m in network.module.modules():
            if isinstance(m, nn.BatchNorm2d) and not m._forward_hooks:
                m.eval()
        with torch.no_grad():
            return torch.equal(network.module(x), network.module(x))

    for knob, expected in acts.items():
        network.set_noise(noise(**{knob: 0.5}))
        assert agree(training=True) != expected, knob
        assert agree(training=False), knob
    network.set_noise(noise())
    assert agree(training=True)


@pytest.mark.parametrize("name", ["torchvision:vgg11", "torchvision:densenet121", "torchvision:shufflenet_v2_x0_5"])
def test_drop_path_by_hand_is_refused_where_nothing_is_residual(name: str) -> None:
    with pytest.raises(ConfigError, match=r"drop_path = 0\.2 has no place in .*no residual branches"):
        build_model(recipe(name, regularize__drop_path=0.2), 3, 32)
    build_model(recipe(name, regularize__strength=0.5), 3, 32)


@pytest.mark.parametrize("norm", ["group", "none"])
@pytest.mark.parametrize(
    "name", ["vgg11_bn", "densenet121", "googlenet", "shufflenet_v2_x0_5", "mnasnet0_5", "regnet_y_400mf"]
)
def test_batch_norm_is_replaced_everywhere(name: str, norm: str) -> None:
    network = build_model(recipe(f"torchvision:{name}", model__norm=norm), 3, 32)
    assert not [m for m in network.module.modules() if isinstance(m, nn.BatchNorm2d)]
    check_model(network, 3, 32)


@pytest.mark.parametrize(("name", "complaint"), [("alexnet", "no batch norm"), ("swin_t", "only its own norm layers")])
def test_a_norm_is_refused_where_there_is_none_to_replace(name: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=rf"model\.norm = 'group'.*{complaint}"):
        build_model(recipe(f"torchvision:{name}", model__norm="group"), 3, 64)


@pytest.mark.parametrize(("name", "side"), [("alexnet", 48), ("inception_v3", 64), ("densenet121", 16)])
def test_a_size_that_is_too_small_is_refused_and_others_are_named(name: str, side: int) -> None:
    network = build_model(recipe(f"torchvision:{name}"), 3, side)
    with pytest.raises(ConfigError, match=rf"image_size = {side} px: .*It takes .*96, 128, 224.* px"):
        check_model(network, 3, side)


def test_maxvit_wants_whole_windows() -> None:
    with pytest.raises(ConfigError, match=r"image_size = 300 .*224 px.*224 or 448"):
        build_model(recipe("torchvision:maxvit_t"), 3, 300)


def test_an_architecture_of_a_later_torchvision_gets_the_plain_row(monkeypatch: pytest.MonkeyPatch) -> None:
    known = torchvision_models.list_models
    monkeypatch.setattr(torchvision_models, "list_models", lambda module=None: [*known(module=module), "newnet"])
    assert find_family("torchvision:newnet").name == "torchvision's newer ones"
    assert all(find_family(f"torchvision:{name}").name != "torchvision's newer ones" for name in CLASSIFIERS)


# --- tasks


@pytest.mark.parametrize("name", ["small_resnet", "torchvision:resnet18", "timm:resnet18"])
def test_a_classifier_cannot_segment(name: str) -> None:
    with pytest.raises(ConfigError, match=r"classifies images, but the task .* 'segment'.*small_unet.*smp:DECODER"):
        build_model(recipe(name), 3, 32, "segment")


@pytest.mark.parametrize("name", ["small_unet", "torchvision:lraspp_mobilenet_v3_large", "smp:unet/resnet18"])
@pytest.mark.parametrize("task", ["classify", "multilabel"])
def test_a_segmenter_cannot_classify(name: str, task: Any) -> None:
    with pytest.raises(ConfigError, match=rf"segments images, but the task .* '{task}'.*small_resnet.*timm:NAME"):
        build_model(recipe(name), 3, 32, task)


def test_what_is_offered_for_a_task_fits_it() -> None:
    for segments in (False, True):
        rows = [find_family(name) for name in names_for(segments) if name[-1].islower() and "python:" not in name]
        assert {row.segments for row in rows} == {segments}
    assert len(names_for(False)) == len(CLASSIFIERS) + 3
    assert len(names_for(True)) == len(SEGMENTERS) + 3
    assert len({row.name for row in FAMILIES}) == len(FAMILIES)


# --- segmentation


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
@pytest.mark.parametrize("side", [8, 9, 17, 32, 33, 64, 97, 128])
def test_small_unet_gives_logits_for_every_pixel_at_any_size(side: int, norm: str) -> None:
    network = build_model(recipe("small_unet", model__width=4, model__norm=norm), 3, side, "segment")
    check_model(network, 3, side)
    network.module.train()(images(side)).square().mean().backward()
    missing = [name for name, p in network.module.named_parameters() if p.grad is None]
    assert not missing


def test_small_unet_has_half_a_million_weights_and_places_for_noise() -> None:
    network = build_model(recipe("small_unet"), 2, 96, "segment")
    assert sum(p.numel() for p in network.module.parameters()) < 520_000
    assert (len(network._branches), len(network._channels), len(network._dropout)) == (7, 3, 1)
    network.set_noise(noise(drop_path=0.5))
    assert [block[0].p for block in network._branches] == pytest.approx([i / 12 for i in range(7)])


def test_what_small_unets_head_sees_cannot_die() -> None:
    """Maps that are negative everywhere still tell one pixel from another, and their gradient reaches the image."""
    network = build_model(recipe("small_unet", model__width=4), 2, 32, "segment")
    last = network.module.decoder[-1]  # type: ignore[index,union-attr]
    nn.init.constant_(last.norm2.bias, -100.0)
    x = images(32).requires_grad_()
    network.module.eval()(x).square().mean().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0


def test_small_unet_learns_where_a_disk_is() -> None:
    """To the pixel, though it computes at half the size: IoU of random disks."""
    torch.manual_seed(0)
    network = build_model(recipe("small_unet", model__width=8), 2, 48, "segment")
    optimizer = torch.optim.Adam(network.module.parameters(), 5e-3)
    grid = torch.arange(48.0)

    def sample(count: int) -> tuple[Tensor, Tensor]:
        x, y, r = (torch.rand(3, count, 1, 1) * torch.tensor([28.0, 28.0, 8.0]).view(3, 1, 1, 1)).unbind(0)
        masks = (((grid[None, None, :] - 10 - x) ** 2 + (grid[None, :, None] - 10 - y) ** 2) < (r + 4) ** 2).long()
        return masks[:, None] + 0.3 * torch.randn(count, 3, 48, 48), masks

    for _ in range(80):
        x, masks = sample(8)
        optimizer.zero_grad()
        nn.functional.cross_entropy(network.module(x), masks).backward()
        optimizer.step()
    x, masks = sample(32)
    found = network.module.eval()(x).argmax(1)
    assert ((found & masks).sum() / (found | masks).sum()).item() > 0.85


@pytest.mark.usefixtures("nothing_is_computed")
@pytest.mark.parametrize("name", SEGMENTERS)
def test_every_segmenter_of_torchvision_keeps_its_keys_and_gives_logits(name: str) -> None:
    network = build_model(recipe(f"torchvision:{name}"), 4, 64, "segment")
    plain = torchvision_models.get_model(name, weights=None, weights_backbone=None, num_classes=4)
    assert network.module.state_dict().keys() == plain.state_dict().keys()
    assert network.module.eval()(torch.empty(2, 3, 64, 64)).shape == (2, 4, 64, 64)
    assert network._branches and network._channels


def test_a_copy_of_a_segmenter_still_gives_logits() -> None:
    network = build_model(recipe("torchvision:lraspp_mobilenet_v3_large"), 4, 64, "segment")
    check_model(network, 4, 64)
    assert copy.deepcopy(network.module).eval()(images(64)).shape == (2, 4, 64, 64)


def test_a_frozen_segmenter_trains_all_that_comes_after_the_encoder() -> None:
    network = build_model(recipe("small_unet", model__width=4), 3, 32, "segment")
    network.freeze_backbone(True)
    before = copy.deepcopy(network.module.state_dict())
    network.module.train()(images(32, 4)).square().mean().backward()
    trained = {name.partition(".")[0] for name, p in network.module.named_parameters() if p.grad is not None}
    assert trained == {"decoder", "head"}
    changed = {name.partition(".")[0] for name, v in network.module.state_dict().items() if not v.equal(before[name])}
    assert changed == {"decoder"}, "its norms go on averaging, those of the encoder do not"


def test_check_of_a_segmenter_names_the_shape_it_wants() -> None:
    network = build_model(recipe("small_unet", model__width=4), 3, 32, "segment")
    with pytest.raises(ConfigError, match=r"\(2, 3, 32, 32\) for 2 images.*\(2, 5, 32, 32\), one per class and pixel"):
        check_model(network, 5, 32)


# --- timm and smp


@pytest.mark.parametrize(
    ("name", "side", "branches"),
    [
        ("resnet18", 32, 0),
        ("convnext_atto", 32, 12),
        ("vit_tiny_patch16_224", 48, 12),
        ("mobilenetv3_small_050", 32, 12),
    ],
)
def test_timm(name: str, side: int, branches: int) -> None:
    network = build_model(recipe(f"timm:{name}"), 5, side)
    check_model(network, 5, side)
    assert len(network._branches) == branches
    assert next(network.head.parameters()).shape[0] == 5
    network.set_noise(noise(dropout=0.5))
    nn.init.normal_(next(network.head.parameters()), std=0.1)
    network.module.train()
    for m in network.module.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.eval()
    with torch.no_grad():
        assert not torch.equal(network.module(images(side)), network.module(images(side)))


@pytest.mark.parametrize("name", ["unet/resnet18", "fpn/mobilenet_v2", "segformer/mit_b0"])
def test_smp(name: str) -> None:
    network = build_model(recipe(f"smp:{name}"), 3, 64, "segment")
    check_model(network, 3, 64)
    network.freeze_backbone(True)
    frozen = {key.partition(".")[0] for key, p in network.module.named_parameters() if not p.requires_grad}
    assert frozen == {"encoder"}


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("timm:resnet81", "'timm:resnet81' is not known. Did you mean 'timm:resnet"),
        ("timm:vit_tiny_patch16_224.wrong", "is not known"),
        ("timm:deit_tiny_distilled_patch16_224", "not one last layer"),
        ("smp:unet/resnet8", "'resnet8' is no encoder. Did you mean 'resnet18'"),
        ("smp:umet/resnet18", "'umet' is no decoder. Did you mean 'unet'"),
    ],
)
def test_unknown_names_of_the_extras(name: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        build_model(recipe(name), 3, 64, "segment" if name.startswith("smp:") else "classify")


def test_a_size_that_smp_cannot_take_is_refused() -> None:
    network = build_model(recipe("smp:fpn/resnet18"), 3, 100, "segment")
    with pytest.raises(ConfigError, match=r"image_size = 100 px.*divisible by 32.*It takes 32, 64, 96, 128"):
        check_model(network, 3, 100)


@pytest.mark.parametrize(
    ("name", "module", "extra"),
    [("timm:resnet18", "timm", "timm"), ("smp:unet/resnet18", "segmentation_models_pytorch", "smp")],
)
def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, name: str, module: str, extra: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=rf"needs the extra '{extra}'.*pip install 'cvtune\[{extra}\]'"):
        build_model(recipe(name), 3, 64, "segment" if extra == "smp" else "classify")


@pytest.mark.parametrize("name", ["timm:", "smp:unet", "smp:/resnet18", "torchvision:ResNet18", "small_vit"])
def test_names_without_form(name: str) -> None:
    with pytest.raises(ConfigError, match=r"model\.name.*small_unet.*smp:DECODER/ENCODER"):
        recipe(name)
