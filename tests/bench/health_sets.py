"""The images and networks that `health.py` trains, small enough for hundreds of runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import nn

from cvtune.data import Dataset, Part, open_dataset
from cvtune.recipe import Recipe
from cvtune.sections import Source

TRAIN, VAL, HELD = 192, 150, 200  # images
FEW = 48  # training images where there are to be few
SHAPES = ("disk", "square", "stripes", "bars", "checks")
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


def shapes(photos: Path) -> dict[str, Arrays]:
    """One of `SHAPES` in a random place, size and color on another color, under noise; PHOTOS is not looked at."""
    rng, made = np.random.default_rng(0), {}
    for part, count in (("train", TRAIN), ("val", VAL), ("test", HELD)):
        labels = rng.integers(len(SHAPES), size=count)
        made[part] = np.stack([drawn(int(label), rng) for label in labels]), labels
    return made


def drawn(label: int, rng: np.random.Generator) -> np.ndarray:
    """One picture, uint8 (16, 16, 3)."""
    y, x = np.mgrid[:SIDE, :SIDE] - rng.uniform(5, 11, 2)[:, None, None]
    radius, period = rng.uniform(3, 5), rng.uniform(3, 5)
    box = np.maximum(abs(x), abs(y)) < radius
    rows, columns = np.sin(2 * np.pi * y / period) > 0, np.sin(2 * np.pi * x / period) > 0
    inside = [np.hypot(x, y) < radius, box, box & rows, box & columns, box & (rows ^ columns)][label]
    ground, color = rng.uniform(60, 190, (2, 3))
    picture = np.where(inside[..., None], color, ground) + rng.normal(0, 12, (SIDE, SIDE, 3))
    return picture.clip(0, 255).astype(np.uint8)


SETS: dict[str, tuple[str | Callable[[Path], dict[str, Arrays]] | None, int]] = {
    # name: source within --photos (None: embedded), or what makes it; side in px
    "digits": (None, 8),
    "trashnet": ("trashnet", 16),
    "fashion": ("fashion_mnist_mini/fashion_mnist_mini.npz", 14),
    "signs": ("sign_digits", 16),
    "trashnet24": ("trashnet", 24),
    "nuclei": (nuclei, SIDE),
    "shapes": (shapes, SIDE),
}


def opened(name: str, photos: Path, cache: Path) -> Dataset:
    """The set with `TRAIN`, `VAL` and `HELD` images, drawn once, in memory."""
    source, side = SETS[name]
    if callable(source):
        source = made(name, source, photos, cache)
    found = open_dataset(
        Source(source="digits" if source is None else str(photos / source)),
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


MODELS: dict[str, dict[str, Any]] = {
    "small_resnet": {"model.name": "small_resnet", "model.width": 4},
    **{name: {"model.name": f"python:health_sets:{name}"} for name in ("patches", "plain", "grouped")},
}
