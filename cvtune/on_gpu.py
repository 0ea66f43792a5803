"""How a trial is told to use its GPU beside training on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cvtune.recipe import Recipe

When = Literal["auto", "on", "off"]


@dataclass(frozen=True)
class OnGpu:
    """What changes how fast a trial trains on a GPU: `resources.gpu_augment` and `resources.gpu_graph`.

    Attributes:
        augment: whether images are augmented there, see `device_loader.py`.
        graph: whether a step is launched as a whole, see `recorded.py`.
        shared: whether other trials train on it meanwhile.
    """

    augment: When = "auto"
    graph: When = "auto"
    shared: bool = False

    def graphs(self, recipe: Recipe) -> bool:
        """Whether to try it for a recipe: code of a user's own may decide something anew for each batch."""
        own = recipe.model.name.startswith("python:") or recipe.loss.name != "cross_entropy"
        return self.graph == "on" or (self.graph == "auto" and not own)


DEFAULT = OnGpu()
