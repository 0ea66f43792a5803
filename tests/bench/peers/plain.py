"""The peers' training as a plain loop: their model and pipeline on images decoded once, one process, one thread."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).resolve().parent))

import stamps
from textbook_ray import pipeline, small_resnet
from tuned_ray import load as load_part

BATCH = 64
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Images(NamedTuple):
    """uint8 (N, S, S, 3) and labels int64 (N,) of both parts, and the number of classes."""

    train: npt.NDArray[np.uint8]
    train_labels: npt.NDArray[np.int64]
    val: npt.NDArray[np.uint8]
    val_labels: npt.NDArray[np.int64]
    classes: int


@dataclass(frozen=True)
class Settings:
    """What the peers search."""

    lr: float
    weight_decay: float
    strength: float
    dropout: float
    seed: int


def load(data: Path, size: int) -> Images:
    """All images of a folder with train/<class>/* and val/<class>/*, decoded and resized once."""
    (x, y, classes), (xv, yv, _) = (load_part(data, part, size) for part in ("train", "val"))
    return Images(x, y, xv, yv, classes)


def train(images: Images, settings: Settings, epochs: int, look_at: int = 0) -> Iterator[float]:
    """Validation accuracy after each epoch.

    Args:
        look_at: training images whose loss is taken without augmentation as well, as cvtune does.
    """
    import cv2
    import torch
    import torch.nn.functional as F

    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    torch.manual_seed(settings.seed)
    stamps.watch()
    rng, layout = np.random.default_rng(settings.seed), torch.channels_last
    augment = pipeline(settings.strength, images.train.shape[1])
    augment.transforms = augment.transforms[:-2]  # normalized by batch, below
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) * 255 for values in (MEAN, STD))
    model = small_resnet(images.classes, settings.dropout).to(memory_format=layout)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay, fused=True
    )

    def batch(pictures: npt.NDArray[np.uint8]) -> Any:
        x = torch.from_numpy(pictures).permute(0, 3, 1, 2).float()
        return x.sub_(mean).div_(std).contiguous(memory_format=layout)

    def hits(pictures: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64]) -> int:
        at = range(0, len(labels), 256)
        with torch.inference_mode():
            guesses = [model(batch(pictures[i : i + 256])).argmax(1).numpy() for i in at]
        return int((np.concatenate(guesses) == labels).sum())

    for _ in range(epochs):
        model.train()
        order = rng.permutation(len(images.train_labels))
        for start in range(0, len(order) - 1, BATCH):  # a last single image makes no batch
            rows = order[start : start + BATCH]
            x = batch(np.stack([augment(image=images.train[i])["image"] for i in rows]))
            F.cross_entropy(model(x), torch.from_numpy(images.train_labels[rows])).backward()
            optimizer.step()
            optimizer.zero_grad()
        model.eval()
        if look_at:
            hits(images.train[:look_at], images.train_labels[:look_at])
        accuracy = hits(images.val, images.val_labels) / len(images.val_labels)
        stamps.reported()
        yield accuracy
