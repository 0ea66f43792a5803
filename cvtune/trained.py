"""A trained model that is ready to use, on images prepared as for validation, from its file alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from cvtune.data import Dataset, Part
from cvtune.data.dataset import kept_side
from cvtune.data.decode import check_kind, load, resize_keep
from cvtune.data.listing import Item, Pixels
from cvtune.data.loader import evaluation_batch
from cvtune.errors import ConfigError
from cvtune.evaluation import never, predictions
from cvtune.fields import USER_CODE
from cvtune.kinds import from_json
from cvtune.model_file import FILE, About, read
from cvtune.models.weights import expect_inputs
from cvtune.normalize import normalizer_of
from cvtune.train import Run
from cvtune.usercode import source_hash

# What of a recipe only training needs: left at what costs nothing and asks for no file and no code.
UNUSED: Mapping[str, Any] = {
    "augment.policy": "families",
    "data.report_images": None,
    "data.train_fraction": 1.0,
    "loss.class_weight": 0.0,
    "loss.name": "cross_entropy",
    "model.pretrained": None,
    "optim.ema": 0.0,
}


class Kept(NamedTuple):
    """An image as the store would keep it, (h, w, C), and the height and width of the upright original, px."""

    pixels: Pixels
    size: tuple[int, int]


class Model:
    """A trained model that is ready to use.

    Args:
        path: the file of weights, or the `best/` folder that holds it.
        device: "cuda" or "cpu"; None: a GPU where there is one.

    Attributes:
        about: what the file says of itself.
        module: the network in eval mode on its device: float (N, C, S, S), normalized, -> logits as `logits` gives.

    Raises:
        ConfigError: the file cannot be used, the user's own code that builds the network cannot be imported or is
            another one than the model was trained with, or the weights do not fit.
    """

    def __init__(self, path: Path, device: str | None = None) -> None:
        file = path / FILE if path.is_dir() else path
        self.about = read(file)
        _check_code(self.about)
        nothing = Part([], np.zeros(1, np.int64))  # a Run is made for data; here it comes later
        data = Dataset(self.about.classes, nothing, nothing, nothing, self.about.fingerprint, (), (), None)
        kind, stats = from_json(self.about.pixels)
        data = dataclasses.replace(data, task=self.about.task, kind=kind, stats=stats)
        self._run = Run(self.about.recipe.replace(UNUSED), data, device)
        self._run.normalized = normalizer_of(data, self.about.recipe, self._run.device, self._run.layout)  # as trained
        self.module = self._run.stepper.evaluated
        expect_inputs(self.module, self.about.recipe.model.pretrained)
        try:
            self.module.load_state_dict(load_file(file))
        except RuntimeError as error:
            raise ConfigError(f"{file}: the weights do not fit {self.about.recipe.model.name!r}: {error}") from None
        self.module.eval()

    @property
    def side(self) -> int:
        """Side of the square that the network sees, px."""
        return self._run.final.image_size

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self._run.device

    def kept(self, item: Item) -> Kept:
        """An image file (or an array) decoded and resized as the store keeps it for validation.

        Raises:
            DataError: it cannot be decoded, or is of another kind than the images that the model knows.
        """
        whole, largest = check_kind(load(item), self._run.data.kind, item), self.about.recipe.largest
        return Kept(resize_keep(whole, kept_side(largest), largest.fit), whole.shape[:2])

    def logits(self, images: Sequence[Pixels]) -> Tensor:
        """Logits float32 on the CPU, (N, K), of segmentation (N, K, S, S), of images as `kept` gives them, N >= 1."""
        part = Part(images, np.zeros(len(images), np.int64))
        return torch.cat([logits.cpu() for logits, _ in predictions(self._run, part, never, None)])

    def batch(self, images: Sequence[Pixels]) -> Tensor:
        """Squares (N, S, S, C) on the CPU as evaluation sees them, of images as `kept` gives them."""
        final = self._run.final
        return torch.from_numpy(evaluation_batch(images, range(len(images)), final.image_size, final.fit))

    def normalized(self, batch: Tensor) -> Tensor:
        """What the network is given of a `batch`: float32 (N, C, S, S) on its device."""
        return self._run.normalized(batch)


def _check_code(about: About) -> None:
    """Refuse a network of the user's own that is built by another source than when it was trained."""
    name = about.recipe.model.name
    if not USER_CODE.match(name):
        return
    before, now = about.code.get(name), source_hash(name)
    if before is not None and before != now:
        raise ConfigError(
            f"model.name = {name!r}: its source is another one than the model was trained with (SHA-256 {now[:12]}, "
            f"then {before[:12]}). Take the file as it was, from version control for example."
        )
