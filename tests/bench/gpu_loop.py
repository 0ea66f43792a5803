"""One GPU: a trial of ours beside a textbook mixed-precision loop.

    PYTHONPATH=. python tests/bench/gpu_loop.py --rounds 3

A ResNet-18 for images of 32 px (3 x 3 stem, no pooling after it) and made-up images, so that nothing is downloaded; the
same batch size and optimizer on all sides, validation images scored after each epoch. The textbook augments by padding,
crop and flip, ours by the policy "families" of strength 0.5, which does more, or by the textbook's pipeline. The first
epoch of a run does not count: it fills caches and chooses kernels. Works on a CPU too, to see that it runs (`--images
64`).
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import albumentations as A
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import resnet18

from cvtune.data import Dataset, Part
from cvtune.models import build_model
from cvtune.on_gpu import OnGpu
from cvtune.recipe import Recipe
from cvtune.regularize import resolve
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


def textbook(images: int, epochs: int, model: str = "resnet18") -> Iterator[None]:
    """The loop of PyTorch's recipe for automatic mixed precision, with the loader's workers of its tutorials."""

    plain = A.Compose([A.Normalize(), A.pytorch.ToTensorV2()])
    options: dict[str, Any] = {"batch_size": BATCH, "num_workers": 4, "pin_memory": DEVICE == "cuda"}
    batches = torch.utils.data.DataLoader(Images(part(images, 0), pipeline()), shuffle=True, drop_last=True, **options)
    held_out = torch.utils.data.DataLoader(Images(part(images // 5, 1), plain), **options)
    net = (
        network()
        if model == "resnet18"
        else build_model(resolve(recipe_of(model, "families", 1)), CLASSES, SIZE).module
    )
    net = net.to(DEVICE)
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


def made_up(images: int) -> Dataset:
    names = tuple(map(str, range(CLASSES)))
    return Dataset(names, part(images, 0), part(images // 5, 1), part(0, 2), "made up", (), (), None)


def recipe_of(model: str, policy: str, epochs: int) -> Recipe:
    """The textbook's settings; `model` is "resnet18" (the network above) or a name that cvtune knows."""
    values = {
        "model.name": "python:gpu_loop:network" if model == "resnet18" else model,
        "augment.policy": policy,
        "augment.strength": 0.5,
        "data.image_size": SIZE,
        "data.batch_size": BATCH,
        "regularize.strength": None,
        "max_epochs": epochs,
        "optim.name": "sgd",
        "optim.lr": RATE,
        "optim.momentum": 0.9,
        "regularize.l2": 5e-4,
    }
    return Recipe().replace(values)


def ours(policy: str, on_gpu: OnGpu, images: int, epochs: int, workers: int = 4) -> Iterator[None]:
    for _ in train(Run(recipe_of("resnet18", policy, epochs), made_up(images), DEVICE, workers, on_gpu=on_gpu)):
        yield


SAME = "python:gpu_loop:pipeline"
SIDES: dict[str, Callable[[int, int], Iterator[None]]] = {
    "ours": partial(ours, "families", OnGpu(graph="on")),
    "ours, augmented by the CPU": partial(ours, "families", OnGpu(augment="off", graph="on")),
    "ours, kernel by kernel": partial(ours, "families", OnGpu(graph="off")),
    "ours, neither": partial(ours, "families", OnGpu(augment="off", graph="off")),
    "ours, the textbook's pipeline": partial(ours, SAME, OnGpu(graph="on")),
    "textbook": textbook,
}


def seconds(side: str, images: int, epochs: int) -> float:
    """Median seconds of an epoch, the first left out."""
    marks = [time.perf_counter() for _ in SIDES[side](images, epochs + 1)]
    return statistics.median(np.diff(marks))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000, help="for training; a fifth of that for validation")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sides", nargs="*", choices=list(SIDES), default=list(SIDES))
    given = parser.parse_args()
    print(torch.cuda.get_device_name() if DEVICE == "cuda" else "no GPU: only to see that it runs")
    found: dict[str, list[float]] = {side: [] for side in given.sides}
    for number in range(given.rounds):
        for side in given.sides if number % 2 == 0 else given.sides[::-1]:
            found[side].append(seconds(side, given.images, given.epochs))
    for side, values in found.items():
        ratio = statistics.median(found["textbook"]) / statistics.median(values) if "textbook" in found else math.nan
        between = f"{min(values):.3f} to {max(values):.3f}"
        print(
            f"{side}: {statistics.median(values):.3f} s per epoch ({between}), {ratio:.2f} times faster than textbook"
        )


if __name__ == "__main__":
    main()
