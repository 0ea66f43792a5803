"""Seconds of a training step with channels last and without, of some networks, in turns.

PYTHONPATH=. python tests/bench/layouts.py [NAME...]
"""

from __future__ import annotations

import copy
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from cvtune import Recipe
from cvtune.actor import keep_memory, limit_threads
from cvtune.models import build_model
from cvtune.models.layout import arrange

NAMES = ("small_resnet", "torchvision:resnet18", "torchvision:mobilenet_v3_small", "torchvision:efficientnet_b0")
IMAGES, SIDE, ROUNDS, STEPS = 64, 64, 5, 3


def seconds(module: nn.Module, layout: torch.memory_format) -> float:
    """CPU-seconds of one step: forward, backward and AdamW, the mean of a few after one that does not count."""
    optimizer = torch.optim.AdamW(module.parameters(), fused=True)
    images = torch.randn(IMAGES, 3, SIDE, SIDE).contiguous(memory_format=layout)
    labels = torch.arange(IMAGES) % 6
    begun = 0.0
    for step in range(STEPS + 1):
        if step == 1:
            begun = time.process_time()
        F.cross_entropy(module(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    return (time.process_time() - begun) / STEPS


def main() -> None:
    keep_memory()
    limit_threads(1)
    for name in sys.argv[1:] or NAMES:
        plain = build_model(Recipe().replace({"model.name": name}), 6, SIDE).module
        arranged = copy.deepcopy(plain)
        layout = arrange(arranged, torch.device("cpu"))
        sides = ((arranged, layout), (plain, torch.contiguous_format))
        times = np.array([[seconds(*side) for side in sides] for _ in range(ROUNDS)])
        last, first = np.median(times, 0)
        print(f"{name:36}{layout!s:24}{last:.4f} s, plain {first:.4f} s, ratio {last / first:.2f}", flush=True)


if __name__ == "__main__":
    main()
