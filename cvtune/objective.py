"""Which metric a study compares by when its author does not say: decided once, from its images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cvtune.epoch import OBJECTIVES

AUTO = "auto"
IMBALANCE = 3.0
"""Largest by smallest class above which accuracy no longer decides.

From two classes at 3 : 1 on a recipe that always names the larger one is right on three images of four, and an error in
the smaller class counts a third. It is a convention, not a measurement: of two classes, minorities below 20 to 40 %
count as mildly imbalanced (Google, Machine Learning Crash Course), and 3 : 1 are 25 %.
"""

OF_TASK: Mapping[str, str] = {"segment": "val_mean_iou", "multilabel": "val_map"}


def choose(task: str, images: Mapping[str, int]) -> tuple[str, str]:
    """The objective of a task on training `images` (class -> how many), and why, in words.

    Mean IoU and mean average precision average over classes, so they need no second rule.
    """
    if (name := OF_TASK.get(task)) in OBJECTIVES:
        return str(name), f"the task is {task}, where it counts every class alike"
    present = {label: count for label, count in images.items() if count}
    most, least = max(present, key=present.__getitem__), min(present, key=present.__getitem__)
    ratio = present[most] / present[least]
    if ratio == 1:
        return "val_accuracy", f"every class has {present[most]} training images"
    shown = f"class {most!r} has {ratio:.3g} times the training images of class {least!r}"
    if ratio > IMBALANCE:
        return "val_balanced_accuracy", f"{shown}, above {IMBALANCE:g}: accuracy would hardly see the small classes"
    return "val_accuracy", f"{shown}, not above {IMBALANCE:g}"


def is_exhausted(scores: Sequence[float], patience: int | None) -> bool:
    """Whether the last `patience` of the `scores`, of which more is better, hold none above all before them."""
    return patience is not None and len(scores) > patience and max(scores[:-patience]) >= max(scores[-patience:])
