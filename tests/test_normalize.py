"""What a network sees of images of any kind, and networks that take them; and that they learn from them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cvtune.actor import draw_strip
from cvtune.data import Dataset, open_dataset
from cvtune.data.dataset import Part
from cvtune.data.loader import evaluation_batch
from cvtune.errors import ConfigError
from cvtune.kinds import LEVELS, Kind, Stats
from cvtune.models import build_model, check_model
from cvtune.models.weights import IMAGENET, fit_channels, norm_of
from cvtune.normalize import normalizer_of
from cvtune.recipe import Recipe
from cvtune.sections import Source
from cvtune.train import Run, train

RNG = np.random.default_rng(0)


def dataset(images: np.ndarray | None = None, kind: Kind | None = None) -> Dataset:
    """Images (N, H, W, C) with what is measured of them."""
    images = np.zeros((2, 8, 8, 3), np.uint8) if images is None else images
    part = Part(list(images), np.arange(len(images)) % 2)
    flat = images.reshape(-1, images.shape[3]).astype(float)
    quantiles = tuple(map(tuple, np.quantile(flat, LEVELS, axis=0).T.tolist()))
    stats = Stats(tuple(flat.mean(0).tolist()), tuple(flat.std(0).tolist()), quantiles) if kind else None
    return Dataset(("a", "b"), part, part, part, "", (), (), None, kind=kind or Kind(), stats=stats)


def normalized(data: Dataset, images: np.ndarray, **values: Any) -> torch.Tensor:
    return normalizer_of(data, Recipe().replace(values), "cpu")(torch.from_numpy(images))


def test_photos_are_normalized_as_ever() -> None:
    images = RNG.integers(0, 256, (3, 9, 7, 3), dtype=np.uint8)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) * 255 for values in IMAGENET)
    before = torch.from_numpy(images).permute(0, 3, 1, 2).float().sub_(mean).div_(std)
    assert torch.equal(normalized(dataset(), images), before)
    assert torch.equal(normalized(dataset(), images, **{"model.pretrained": "default"}), before)


@pytest.mark.parametrize("kind", [Kind("uint16", 4), Kind("float32", 1), Kind("float32", 3), Kind("uint8", 7)], ids=str)
def test_other_images_by_what_was_measured_of_them(kind: Kind) -> None:
    scale = 10.0 ** np.arange(kind.channels) if kind.dtype == "float32" else 1.0
    images = (RNG.normal(150, 20, (6, 9, 9, kind.channels)) * scale).astype(kind.dtype)
    before = images.copy()
    x = normalized(dataset(images, kind), images)
    np.testing.assert_array_equal(images, before)  # floats are not changed in place
    assert (x.dtype, x.shape) == (torch.float32, (6, kind.channels, 9, 9))
    torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(kind.channels), atol=1e-4, rtol=0)
    torch.testing.assert_close(x.std((0, 2, 3), correction=0), torch.ones(kind.channels), atol=1e-4, rtol=0)


def test_a_channel_that_never_changes_is_zero() -> None:
    images = np.full((2, 5, 5, 1), 7.0, np.float32)
    assert not normalized(dataset(images, Kind("float32", 1)), images).any()


def test_a_window_cuts_off_and_is_normalized_for_what_is_left() -> None:
    images = RNG.normal(0, 500, (40, 16, 16, 1)).astype(np.float32)  # as of CT, in Hounsfield units
    window = {"data.window_low": -160.0, "data.window_high": 240.0}
    data = dataset(images, Kind("float32", 1))
    x = normalized(data, images, **window)
    assert abs(float(x.mean())) < 0.05 and abs(float(x.std()) - 1) < 0.05
    outside = torch.from_numpy(images[..., 0])
    assert x[:, 0][outside <= -160].unique().numel() == x[:, 0][outside >= 240].unique().numel() == 1
    open_above = normalized(data, images, **{"data.window_low": -160.0})
    assert open_above[:, 0][outside > 240].unique().numel() > 100
    photo = RNG.integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    x = normalized(dataset(), photo, **{"data.window_low": 50, "data.window_high": 150})
    np.testing.assert_allclose(
        x[0, 0], ((photo[0, ..., 0].clip(50, 150) - 50.0) / 100 - IMAGENET[0][0]) / IMAGENET[1][0], atol=1e-5
    )


def test_a_window_without_width_is_refused() -> None:
    with pytest.raises(ConfigError, match="leave nothing between them"):
        Recipe().replace({"data.window_low": 5, "data.window_high": 5})


def test_weights_of_three_channels_see_what_they_know() -> None:
    """Of 16 bits as much as of 8: the span of the images becomes 0..1, then comes the mean of the weights."""
    images = RNG.integers(1000, 5000, (8, 16, 16, 3), dtype=np.uint16)
    x = normalized(dataset(images, Kind("uint16", 3)), images, **{"model.pretrained": "default"})
    back = x * torch.tensor(IMAGENET[1]).view(1, 3, 1, 1) + torch.tensor(IMAGENET[0]).view(1, 3, 1, 1)
    assert -0.02 < float(back.min()) < 0.02 and 0.98 < float(back.max()) < 1.02


def test_timm_and_smp_say_how_their_weights_were_trained() -> None:
    assert norm_of("timm:vit_tiny_patch16_224", "default") == ((0.5,) * 3, (0.5,) * 3)
    assert norm_of("timm:vit_tiny_patch16_224", "own.safetensors") == IMAGENET
    assert norm_of("timm:resnet18", "default") == norm_of("torchvision:resnet18", "default") == IMAGENET
    assert norm_of("smp:unet/resnet18", "default") == IMAGENET
    photo = RNG.integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    x = normalized(dataset(), photo, **{"model.pretrained": "default", "model.name": "timm:vit_tiny_patch16_224"})
    torch.testing.assert_close(x, torch.from_numpy(photo).permute(0, 3, 1, 2) / 127.5 - 1)


# --- networks --------------------------------------------------------------------------------------------------------

NAMES = {
    "classify": ["small_resnet", "torchvision:mobilenet_v3_small", "timm:resnet10t"],
    "segment": ["small_unet", "torchvision:lraspp_mobilenet_v3_large", "smp:unet/resnet18"],
}


@pytest.mark.parametrize("channels", [1, 7])
@pytest.mark.parametrize(("task", "name"), [(task, name) for task, names in NAMES.items() for name in names])
def test_every_family_takes_any_channels(task: Any, name: str, channels: int) -> None:
    network = build_model(Recipe().replace({"model.name": name}), 5, 32, task, channels)
    check_model(network, 5, 32)
    assert network.channels == channels
    first = next(m for m in network.module.modules() if isinstance(m, torch.nn.Conv2d))
    assert first.in_channels == channels


@pytest.mark.parametrize("name", ["vit_b_16", "swin_t", "googlenet"])
def test_torchvisions_first_convolution_is_found(name: str) -> None:
    with torch.device("meta"):
        network = build_model(Recipe().replace({"model.name": f"torchvision:{name}"}), 5, 224, "classify", 4)
        with torch.no_grad():
            assert network.module.eval()(torch.empty(2, 4, 224, 224)).shape == (2, 5)


@pytest.mark.parametrize("channels", [1, 2, 4, 7])
def test_weights_for_photos_are_fitted_as_timm_does(tmp_path: Path, channels: int) -> None:
    from timm.models import adapt_input_conv

    photo = build_model(Recipe(), 5, 32)
    weight = photo.module.state_dict()["stem.0.weight"]
    expected = adapt_input_conv(channels, weight.clone())
    torch.save(photo.module.state_dict(), tmp_path / "w.pt")
    recipe = Recipe().replace({"model.pretrained": str(tmp_path / "w.pt")})
    fitted = build_model(recipe, 5, 32, "classify", channels)
    torch.testing.assert_close(fitted.module.state_dict()["stem.0.weight"], expected)
    if channels % 3 == 0 or channels == 1:
        x = torch.rand(2, 1, 16, 16)  # images that are the same in all channels give the same maps
        torch.testing.assert_close(fitted.module.stem[0](x), photo.module.stem[0](x.repeat(1, 3, 1, 1)))


def test_weights_of_other_channels_do_not_fit(tmp_path: Path) -> None:
    torch.save(build_model(Recipe(), 5, 32, "classify", 5).module.state_dict(), tmp_path / "w.pt")
    recipe = Recipe().replace({"model.pretrained": str(tmp_path / "w.pt")})
    with pytest.raises(ConfigError, match=r"1 of another shape: stem\.0\.weight"):
        build_model(recipe, 5, 32, "classify", 7)
    build_model(recipe, 5, 32, "classify", 5)
    state = {"stem.0.weight": torch.rand(8, 3, 3, 3)}
    assert fit_channels(build_model(Recipe(), 5, 32).module, state) is state


OWN = """
import torch

def asks(num_classes, recipe, channels):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(num_classes)) if channels == 0 else (
        torch.nn.Sequential(torch.nn.Conv2d(channels, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
                            torch.nn.Linear(4, num_classes)))

def photos_only(num_classes, recipe):
    return asks(num_classes, recipe, 3)

def wrong(num_classes, recipe, channels):
    return asks(num_classes, recipe, 3)
"""


def test_own_models_are_told_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_nets.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("own_nets", None)

    def built(function: str, channels: int) -> None:
        recipe = Recipe().replace({"model.name": f"python:own_nets:{function}"})
        check_model(build_model(recipe, 5, 32, "classify", channels), 5, 32)

    built("asks", 7)
    built("asks", 3)
    built("photos_only", 3)
    with pytest.raises(ConfigError, match=r"own_nets:photos_only.*the images have 7.*third argument"):
        built("photos_only", 7)
    with pytest.raises(ConfigError, match="cannot take images with 7 channels"):
        built("wrong", 7)


# --- learning --------------------------------------------------------------------------------------------------------


def told_by_the_fifth_channel(root: Path, count: int) -> Path:
    """float32 with 6 channels; two classes differ in the texture of one channel, far from zero and small."""
    for i in range(count):
        image = RNG.normal(0, 1, (24, 24, 6))
        stripes = np.sin(np.arange(24) * (2.1 if i % 2 else 0.7) + RNG.uniform(0, 6))
        image[..., 4] = 5000 + 0.01 * (2 * stripes[:, None] + image[..., 4])
        place = root / ("fine" if i % 2 else "coarse")
        place.mkdir(parents=True, exist_ok=True)
        np.save(place / f"{i}.npy", image.astype(np.float32))
    return root


def test_a_network_learns_from_floats_of_six_channels(tmp_path: Path) -> None:
    """Of 8 bits nothing would be left of the stripes: they are 4 millionths of the value."""
    recipe = Recipe().replace(
        {"data.image_size": 16, "data.batch_size": 16, "max_epochs": 7, "augment.strength": 0.1, "model.width": 8}
        | {"regularize.strength": 0.0, "optim.lr": 5e-3}
    )
    source = Source(source=str(told_by_the_fifth_channel(tmp_path / "d", 160)))
    data = open_dataset(source, recipe.data, tmp_path / "cache", None, 1)
    run = Run(recipe, data, device="cpu")
    epochs = list(train(run))
    assert epochs[-1].val_accuracy is not None and epochs[-1].val_accuracy >= 0.85
    draw_strip(run, 4, tmp_path / "media")
    assert (tmp_path / "media" / "7.png").stat().st_size > 500
    batch = evaluation_batch(data.val.images, [0, 1], 16, "crop")
    assert run.normalized(torch.from_numpy(batch)).shape == (2, 6, 16, 16)
