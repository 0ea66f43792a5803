"""User code that fails: losses, transforms and a loop for the cases of `cases.py`, copied to where a study is run."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any

import albumentations as A
import torch

import cvtune
from cvtune import Report
from cvtune.own_loop import Run

calls = 0


def bad(recipe: Any, after: int = 60) -> bool:
    """Whether a trial is one of those that fail: about a third of them, none in the check before the first trial.

    `after`: so many batches of this process.
    """
    global calls
    calls += 1
    return bool(calls > after and recipe.optim.lr > 3e-3)


def _mean(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(logits, target, reduction="none")


def gpu_memory(logits: torch.Tensor, target: torch.Tensor, recipe: Any) -> torch.Tensor:
    """As if a GPU were too small for any batch of some trials."""
    if bad(recipe):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB (simulated)")
    return _mean(logits, target)


def host_memory(logits: torch.Tensor, target: torch.Tensor, recipe: Any) -> torch.Tensor:
    """Asks the system for more memory than it gives to anybody."""
    if bad(recipe):
        torch.empty(2**46, dtype=torch.uint8)
    return _mean(logits, target)


def eats_memory(logits: torch.Tensor, target: torch.Tensor, recipe: Any) -> torch.Tensor:
    """Takes memory, and uses it, until somebody ends the process."""
    held = []
    while bad(recipe, after=12):  # within two epochs, also in a process that takes a trial up again
        held.append(torch.ones(2**26, dtype=torch.uint8))
    return _mean(logits, target)


class Stuck(A.ImageOnlyTransform):  # type: ignore[misc]
    """A transform that never returns, once some images have passed it: a loader that hangs."""

    passed = 0

    def apply(self, img: Any, **params: Any) -> Any:
        Stuck.passed += 1
        while Stuck.passed > 1000:
            time.sleep(1)
        return img


def stuck(strength: float, image_size: int) -> A.Compose:
    return A.Compose([Stuck(p=1 if strength > 0.6 else 0), A.Resize(image_size, image_size)])


# What every study here is given, or searches by itself; the two loops below read the learning rate alone.
HONORED = {"optim.lr", "model.width", "regularize.strength", *cvtune.BATCHES}


@cvtune.loop(honors=HONORED)
def unwell(run: Run) -> Iterator[Report]:
    """Learns by `optim.lr`; above 3e-3 its objective is NaN, above 1e-2 infinite, above 3e-2 missing."""
    lr, count = run.recipe.optim.lr, 0 if run.state is None else int(run.state["count"])
    while not run.stop():
        count += 1
        score = min(1.0, 0.1 * count) - lr  # so that some of those that will be ill take over a sound one in time
        wrong = math.nan if lr > 3e-3 else score
        wrong = math.inf if lr > 1e-2 else wrong
        known = {} if lr > 3e-2 and run.step > 0 else {"val_accuracy": wrong if run.step else score}
        yield cvtune.report_epoch(train_loss=1.0, val_loss=1.0, state={"count": count}, **known)


@cvtune.loop(honors=HONORED)
def twentieth(run: Run) -> Iterator[Report]:
    """Trains nothing, and fails in one of twenty trials."""
    while not run.stop():
        if run.recipe.seed % 20 == 7 and run.step == 1:  # not 0: so are the trials of the check before the first one
            raise RuntimeError("one of twenty")
        yield cvtune.report_epoch(train_loss=1.0, val_loss=1.0, val_accuracy=run.recipe.optim.lr, state={"step": 1})
