"""The images and networks that `health.py` trains, small enough for hundreds of runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from sklearn import datasets as datasets_of_sklearn
from torch import nn
from torchvision import datasets

from cvtune.data import Dataset, Part, open_dataset
from cvtune.recipe import Recipe
from cvtune.sections import Source

TRAIN, VAL, HELD = 192, 200, 300  # images
FEW = 48  # training images where there are to be few
LETTERS = "AHOSTX"
FONTS = ("DejaVuSans", "DejaVuSerif", "DejaVuSansMono", "DejaVuSans-Bold", "STIXGeneral", "STIXGeneralItalic", "cmtt10")
SIDE = 16  # px of what is made here

Arrays = tuple[np.ndarray, np.ndarray]  # uint8 (N, S, S, 3), int64 (N,)


def nuclei(photos: Path) -> dict[str, Arrays]:
    """Patches of the photos in PHOTOS/dsb2018_nuclei: is the middle in a nucleus? Half are; parts share no photo."""
    folder, rng, made = photos / "dsb2018_nuclei", np.random.default_rng(0), {}
    for part in ("train", "val", "test"):
        names = (folder / f"{part}.txt").read_text().split()
        found: list[tuple[np.ndarray, int]] = []
        for name in names[:100]:
            image = np.asarray(Image.open(folder / "images" / f"{name}.jpg").convert("RGB"))
            mask = np.asarray(Image.open(folder / "masks" / f"{name}.png"))
            for label in (0, 1):
                inner = mask[SIDE // 2 : -SIDE // 2, SIDE // 2 : -SIDE // 2] > 0
                spots = np.argwhere(inner == bool(label))
                for y, x in spots[rng.permutation(len(spots))[:2]]:
                    found.append((image[y : y + SIDE, x : x + SIDE], label))
        made[part] = np.stack([image for image, _ in found]), np.array([label for _, label in found])
    return made


def letters(photos: Path) -> dict[str, Arrays]:
    """One of `LETTERS` in one of `FONTS`, turned, moved, bright on some dark color, noisy; PHOTOS is not looked at."""
    rng, made = np.random.default_rng(0), {}
    for part, count in (("train", TRAIN), ("val", VAL), ("test", HELD)):
        labels = rng.integers(len(LETTERS), size=count)
        made[part] = np.stack([drawn(LETTERS[int(label)], rng) for label in labels]), labels
    return made


def drawn(letter: str, rng: np.random.Generator) -> np.ndarray:
    """One picture, uint8 (16, 16, 3): drawn four times as large, then made smaller."""
    large = 4 * SIDE
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{rng.choice(FONTS)}.ttf"
    font, middle = ImageFont.truetype(path, int(rng.integers(44, 60))), rng.uniform(large / 2 - 4, large / 2 + 4, 2)
    ink = Image.new("L", (large, large))
    ImageDraw.Draw(ink).text(tuple(middle), letter, fill=255, font=font, anchor="mm")
    cover = np.asarray(ink.rotate(rng.uniform(-12, 12), Image.Resampling.BILINEAR).resize((SIDE, SIDE))) / 255
    ground, color = rng.uniform(0, 100, 3), rng.uniform(160, 255, 3)
    picture = ground + cover[..., None] * (color - ground) + rng.normal(0, 12, (SIDE, SIDE, 3))
    return picture.clip(0, 255).astype(np.uint8)


def mnist(photos: Path) -> dict[str, Arrays]:
    """Handwritten digits as torchvision keeps them, in PHOTOS/MNIST/raw."""
    learned, held = (datasets.MNIST(photos, train=train) for train in (True, False))
    order = np.random.default_rng(0).permutation(len(learned))
    rows = {"train": order[:TRAIN], "val": order[TRAIN : TRAIN + VAL], "test": np.arange(HELD)}
    parts = {"train": learned, "val": learned, "test": held}
    return {part: (parts[part].data[index].numpy(), parts[part].targets[index].numpy()) for part, index in rows.items()}


def digits(photos: Path) -> dict[str, Arrays]:
    """Handwritten digits of scikit-learn, twice as large; PHOTOS is not looked at."""
    found = datasets_of_sklearn.load_digits()
    images = np.kron(found.images * 255 / 16, np.ones((1, 2, 2))).astype(np.uint8)
    order = np.random.default_rng(0).permutation(len(images))
    parts = {"train": order[:TRAIN], "val": order[TRAIN : TRAIN + VAL], "test": order[-HELD:]}
    return {part: (images[rows], found.target[rows]) for part, rows in parts.items()}


def waves(photos: Path) -> dict[str, Arrays]:
    """Gratings in six directions, of any phase, period and color, under noise; PHOTOS is not looked at."""
    rng, made = np.random.default_rng(0), {}
    y, x = np.mgrid[:SIDE, :SIDE]
    for part, count in (("train", TRAIN), ("val", VAL), ("test", HELD)):
        labels, pictures = rng.integers(6, size=count), []
        for label in labels:
            angle, period, phase = label * np.pi / 6 + rng.normal(0, 0.08), rng.uniform(3, 7), rng.uniform(0, 2 * np.pi)
            wave = np.sin(2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / period + phase)
            picture = rng.uniform(80, 170, 3) + wave[..., None] * rng.uniform(-70, 70, 3)
            pictures.append((picture + rng.normal(0, 25, picture.shape)).clip(0, 255).astype(np.uint8))
        made[part] = np.stack(pictures), labels
    return made


SETS: dict[str, tuple[str | Callable[[Path], dict[str, Arrays]], int]] = {
    # name: source within --photos, or what makes it; side in px
    "fashion": ("fashion_mnist_mini/fashion_mnist_mini.npz", 14),
    "signs": ("sign_digits", 16),
    "trashnet24": ("trashnet", 24),
    "nuclei": (nuclei, SIDE),
    "letters": (letters, SIDE),
    "mnist": (mnist, SIDE),
    "digits": (digits, SIDE),
    "waves": (waves, SIDE),
}


def opened(name: str, photos: Path, cache: Path) -> Dataset:
    """The set with `TRAIN`, `VAL` and `HELD` images, drawn once, in memory."""
    source, side = SETS[name]
    if callable(source):
        source = made(name, source, photos, cache)
    found = open_dataset(
        Source(source=str(photos / source)),
        Recipe().replace({"data.image_size": side, "data.store_size": side}).data, cache, None, 1,
    )  # fmt: skip
    rng, parts = np.random.default_rng(24 if name == "trashnet24" else 0), {}
    for part, most in (("train", TRAIN), ("val", VAL), ("test", HELD)):
        whole = getattr(found, part)
        rows = rng.permutation(len(whole.labels))[:most]
        parts[part] = Part([np.array(whole.images[int(i)]) for i in rows], whole.labels[rows])
    return dataclasses.replace(found, **parts, store=None)


def made(name: str, make: Callable[[Path], dict[str, Arrays]], photos: Path, cache: Path) -> str:
    """Where the pictures of `make` are, as an .npz file."""
    path = (cache / f"{name}.npz").absolute()
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        arrays = {
            f"{x}_{part}": rows for part, pair in make(photos).items() for x, rows in zip("xy", pair, strict=True)
        }
        np.savez(path, allow_pickle=False, **arrays)
    return str(path)


def few_of(data: Dataset) -> Dataset:
    return dataclasses.replace(data, train=Part(data.train.images[:FEW], data.train.labels[:FEW]))


def patches(num_classes: int, recipe: Recipe) -> nn.Module:
    """Patches, a linear layer on each, a layer norm, one hidden layer on all: no convolutional net, no batch norm."""
    image_size = recipe.data.image_size
    side = 4 if image_size % 4 == 0 else 7
    places = (image_size // side) ** 2
    return nn.Sequential(
        nn.Conv2d(3, 16, side, side), nn.Flatten(2), nn.LayerNorm(places), nn.Flatten(), nn.GELU(),
        nn.Linear(16 * places, 32), nn.GELU(), nn.Linear(32, num_classes),
    )  # fmt: skip


def plain(num_classes: int, recipe: Recipe) -> nn.Module:
    """Three convolutions and a linear layer: no norm, no shortcut."""
    del recipe
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(),
        nn.Conv2d(16, 24, 3, 1, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(96, num_classes),
    )  # fmt: skip


def grouped(num_classes: int, recipe: Recipe) -> nn.Module:
    """Two convolutions with group norm, and a linear layer."""
    del recipe
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, 2, 1), nn.GroupNorm(3, 12), nn.ReLU(), nn.Conv2d(12, 24, 3, 2, 1), nn.GroupNorm(3, 24),
        nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(96, num_classes),
    )  # fmt: skip


def separable(num_classes: int, recipe: Recipe) -> nn.Module:
    """Depthwise separable convolutions with batch norm, as in MobileNet; no shortcut."""
    del recipe

    def block(there: int, made: int, stride: int) -> list[nn.Module]:
        deep = nn.Conv2d(there, there, 3, stride, 1, groups=there, bias=False)
        return [
            deep,
            nn.BatchNorm2d(there),
            nn.ReLU(),
            nn.Conv2d(there, made, 1, bias=False),
            nn.BatchNorm2d(made),
            nn.ReLU(),
        ]

    first = [nn.Conv2d(3, 12, 3, 2, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU()]
    return nn.Sequential(
        *first, *block(12, 24, 1), *block(24, 32, 2), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, num_classes)
    )


def pooled(num_classes: int, recipe: Recipe) -> nn.Module:
    """Convolutions of 5 x 5, tanh, maxima, a hidden layer: as LeNet."""
    del recipe
    return nn.Sequential(
        nn.Conv2d(3, 8, 5, 1, 2), nn.Tanh(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 5, 1, 2), nn.Tanh(),
        nn.AdaptiveMaxPool2d(4), nn.Flatten(), nn.Linear(256, 48), nn.Tanh(), nn.Linear(48, num_classes),
    )  # fmt: skip


class Concatenated(nn.Module):
    """Four convolutions, each of all that came before it (batch norm first), as DenseNet."""

    def __init__(self, num_classes: int, grown: int = 8) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, grown, 3, 2, 1)
        widths = [grown * number for number in range(1, 5)]
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(w), nn.ReLU(), nn.Conv2d(w, grown, 3, 1, 1, bias=False)) for w in widths
        )
        self.head = nn.Sequential(nn.BatchNorm2d(5 * grown), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.tell = nn.Linear(20 * grown, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits, (N, classes), of images, (N, 3, S, S)."""
        x = self.first(images)
        for layer in self.layers:
            x = torch.cat((x, layer(x)), 1)
        return self.tell(self.head(x))  # type: ignore[no-any-return]


def concatenated(num_classes: int, recipe: Recipe) -> nn.Module:
    """See `Concatenated`."""
    del recipe
    return Concatenated(num_classes)


class Shortcuts(nn.Module):
    """A convolution and three residual blocks of two, without any norm."""

    def __init__(self, num_classes: int, width: int = 16) -> None:
        super().__init__()

        def block() -> nn.Module:
            return nn.Sequential(nn.Conv2d(width, width, 3, 1, 1), nn.ReLU(), nn.Conv2d(width, width, 3, 1, 1))

        self.first = nn.Conv2d(3, width, 3, 2, 1)
        self.blocks = nn.ModuleList(block() for _ in range(3))
        self.head = nn.Linear(4 * width, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits, (N, classes), of images, (N, 3, S, S)."""
        x = self.first(images)
        for block in self.blocks:
            x = x + block(x.relu())
        return self.head(nn.functional.adaptive_avg_pool2d(x.relu(), 2).flatten(1))  # type: ignore[no-any-return]


def shortcuts(num_classes: int, recipe: Recipe) -> nn.Module:
    """See `Shortcuts`."""
    del recipe
    return Shortcuts(num_classes)


class Attention(nn.Module):
    """Patches of 4 px as tokens with learned places, two layers of attention (layer norm first), their mean."""

    def __init__(self, num_classes: int, image_size: int, width: int = 32) -> None:
        super().__init__()
        self.tokens = nn.Conv2d(3, width, 4, 4)
        self.places = nn.Parameter(torch.zeros(1, (image_size // 4) ** 2, width))
        layer = nn.TransformerEncoderLayer(width, 2, 2 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits, (N, classes), of images, (N, 3, S, S)."""
        tokens = self.tokens(images).flatten(2).mT + self.places
        return self.head(self.layers(tokens).mean(1))  # type: ignore[no-any-return]


def attention(num_classes: int, recipe: Recipe) -> nn.Module:
    """See `Attention`."""
    return Attention(num_classes, recipe.data.image_size)


OWN = ("patches", "plain", "grouped", "separable", "shortcuts", "attention", "pooled", "concatenated")
MODELS: dict[str, dict[str, Any]] = {
    "small_resnet": {"model.name": "small_resnet", "model.width": 4},
    **{name: {"model.name": f"python:health_sets:{name}"} for name in OWN},
}
