"""One GPU: a trial of ours beside a textbook mixed-precision loop, and several trials at once beside one after another.

    PYTHONPATH=. python tests/bench/gpu_loop.py --rounds 3                   # the loop
    PYTHONPATH=. python tests/bench/gpu_loop.py --rounds 3 --at-once 1 2 4 8 # trial-epochs per hour

A ResNet-18 for images of 32 px (3 x 3 stem, no pooling after it) and made-up images, so that nothing is downloaded; the
same pipeline, batch size and optimizer on both sides, validation images scored after each epoch. The first epoch of a
run does not count: it fills caches and chooses kernels. Works on a CPU too, to see that it runs (`--images 64`).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import albumentations as A
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import resnet18

from cvtune.data import Dataset, Part
from cvtune.recipe import Recipe
from cvtune.train import Run, train

SIZE, CLASSES, BATCH, RATE = 32, 10, 128, 0.05
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def network(num_classes: int = CLASSES, recipe: Recipe | None = None) -> nn.Module:
    """The usual change of ResNet-18 for CIFAR: float (N, 3, 32, 32) -> logits (N, classes)."""
    net: nn.Module = resnet18(num_classes=num_classes)
    net.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    net.maxpool = nn.Identity()
    return net


def pipeline(strength: float = 0.5, image_size: int = SIZE) -> A.Compose:
    """uint8 (32, 32, 3) -> float (3, 32, 32)."""
    steps = [A.Pad(4), A.RandomCrop(image_size, image_size), A.HorizontalFlip(), A.Normalize(), A.pytorch.ToTensorV2()]
    return A.Compose(steps)


def part(images: int, seed: int) -> Part:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (images, SIZE, SIZE, 3), np.uint8)
    return Part(list(pixels), rng.integers(0, CLASSES, images))


class Images(torch.utils.data.Dataset[Any]):
    def __init__(self, known: Part, transform: A.Compose) -> None:
        self.known, self.transform = known, transform

    def __len__(self) -> int:
        return len(self.known.labels)

    def __getitem__(self, i: int) -> Any:
        return self.transform(image=self.known.images[i])["image"], int(self.known.labels[i])


def textbook(images: int, epochs: int) -> Iterator[None]:
    """The loop of PyTorch's recipe for automatic mixed precision, with the loader's workers of its tutorials."""

    plain = A.Compose([A.Normalize(), A.pytorch.ToTensorV2()])
    options: dict[str, Any] = {"batch_size": BATCH, "num_workers": 4, "pin_memory": DEVICE == "cuda"}
    batches = torch.utils.data.DataLoader(Images(part(images, 0), pipeline()), shuffle=True, drop_last=True, **options)
    held_out = torch.utils.data.DataLoader(Images(part(images // 5, 1), plain), **options)
    net = network().to(DEVICE)
    optimizer = torch.optim.SGD(net.parameters(), RATE, momentum=0.9, weight_decay=5e-4)
    scaler = torch.amp.GradScaler(DEVICE, enabled=DEVICE == "cuda")
    for _ in range(epochs):
        net.train()
        for x, y in batches:
            optimizer.zero_grad()
            with torch.autocast(DEVICE, torch.float16, enabled=DEVICE == "cuda"):
                loss = F.cross_entropy(net(x.to(DEVICE)), y.to(DEVICE))
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        net.eval()
        with torch.no_grad(), torch.autocast(DEVICE, torch.float16, enabled=DEVICE == "cuda"):
            sum((net(x.to(DEVICE)).argmax(1) == y.to(DEVICE)).sum().item() for x, y in held_out)
        yield


def ours(images: int, epochs: int) -> Iterator[None]:
    recipe = Recipe().replace(
        {
            "model.name": "python:gpu_loop:network",
            "augment.policy": "python:gpu_loop:pipeline",
            "data.image_size": SIZE,
            "data.batch_size": BATCH,
            "regularize.strength": None,
            "max_epochs": epochs,
            "optim.name": "sgd",
            "optim.lr": RATE,
            "optim.momentum": 0.9,
            "regularize.l2": 5e-4,
        }
    )
    names = tuple(map(str, range(CLASSES)))
    data = Dataset(names, part(images, 0), part(images // 5, 1), part(0, 2), "made up", (), (), None)
    for _ in train(Run(recipe, data, DEVICE, workers=4)):
        yield


SIDES = {"ours": ours, "textbook": textbook}


def seconds(side: str, images: int, epochs: int) -> float:
    """Median seconds of an epoch, the first left out."""
    marks = [time.perf_counter() for _ in SIDES[side](images, epochs + 1)]
    return statistics.median(np.diff(marks))


def rate(side: str, images: int, epochs: int, at_once: int) -> float:
    """Epochs per hour of all trials, `at_once` in processes of their own; start and first epochs included for all."""
    with ProcessPoolExecutor(at_once, get_context("spawn")) as pool:
        begun = time.perf_counter()
        list(pool.map(seconds, [side] * at_once, [images] * at_once, [epochs] * at_once))
        return 3600 * at_once * (epochs + 1) / (time.perf_counter() - begun)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000, help="for training; a fifth of that for validation")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--at-once", type=int, nargs="*", default=[], help="trials in processes of their own")
    given = parser.parse_args()
    print(torch.cuda.get_device_name() if DEVICE == "cuda" else "no GPU: only to see that it runs")
    todo = [("ours", n) for n in given.at_once] + [("textbook", 1)] if given.at_once else [(s, 0) for s in SIDES]
    found: dict[tuple[str, int], list[float]] = {which: [] for which in todo}
    for number in range(given.rounds):
        for side, at_once in todo if number % 2 == 0 else todo[::-1]:
            args = side, given.images, given.epochs
            found[side, at_once].append(rate(*args, at_once) if at_once else seconds(*args))
    for (side, at_once), values in found.items():
        told = f"{at_once} at once: {{:.0f}} epochs per hour" if at_once else "{:.3f} s per epoch"
        print(f"{side}, {told.format(statistics.median(values))} ({min(values):.3g} to {max(values):.3g})")


if __name__ == "__main__":
    main()
