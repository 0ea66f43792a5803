"""What training has to know of a task: one module each, which all offer what `Rules` says.

Targets are those of `data.loader.Batch`: labels int64 (N,), tags float32 (N, K), or masks uint8 (N, H, W).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from PIL import Image
from torch import Tensor

from cvtune.data.dataset import Part
from cvtune.data.listing import Labels, Task
from cvtune.epoch import Score
from cvtune.errors import ConfigError, did_you_mean
from cvtune.loss import Loss
from cvtune.probe_set import Said
from cvtune.recipe import Recipe
from cvtune.tasks.classify import Classify
from cvtune.tasks.multilabel import Multilabel
from cvtune.tasks.segment import Segment


class Sums(Protocol):
    """What the batches of one evaluation add up to."""

    def add(self, logits: Tensor, targets: Tensor) -> None:
        """Take in a batch: logits float32 on the device, targets on the CPU."""

    def scores(self) -> dict[str, Score]:
        """The metrics by name, without `val_`."""

    def stored(self) -> dict[str, np.ndarray[Any, Any]]:
        """What is kept of each test image, arrays of N rows; `bootstrap.py` compares models by it."""


class Rules(Protocol):
    """A task. `scores` names its metrics, without `val_`."""

    scores: tuple[str, ...]

    def count(self, part: Part, rows: Labels, classes: int) -> Tensor:
        """How often each class occurs among the images at `rows`, for `loss.class_weight`."""

    def build_loss(self, recipe: Recipe, counts: Tensor | None) -> Loss:
        """The training loss of a resolved recipe; `counts` on the device, None where class_weight is 0."""

    def hits(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor | int]:
        """How many of the targets were told right, and how many there are, on the device."""

    def sums(self) -> Sums:
        """The sums of an evaluation that begins."""

    def said(self, logits: Tensor, targets: Tensor) -> Said:
        """What a model says of images of the probe set; targets on the CPU."""

    def strip(
        self, images: np.ndarray[Any, Any], targets: Tensor, logits: Tensor, classes: Sequence[str]
    ) -> Image.Image:
        """What a model makes of a few images, uint8 (N, S, S, 3); see `strips.py`."""


RULES: Mapping[Task, Rules] = {"classify": Classify(), "multilabel": Multilabel(), "segment": Segment()}


def check_objective(objective: str, task: Task, limits: Iterable[str] = ()) -> None:
    """Whether a task has the metric that a study compares its trials by, and those that it limits.

    Raises:
        ConfigError: it has not.
    """
    own = [f"val_{name}" for name in RULES[task].scores]
    if objective.startswith("val_") and objective not in own:
        raise ConfigError(
            f"objective = {objective!r} has no value where the task is {task!r}: {did_you_mean(objective, own)} "
            "Set another one with --set objective=NAME."
        )
    for name in limits:
        if name.startswith("val_") and name not in own:
            raise ConfigError(
                f"limits.{name} could never be broken: it has no value where the task is {task!r}. "
                f"{did_you_mean(name, own)} Limit another one, or none."
            )
