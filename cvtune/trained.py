"""A trained model as one file: weights with what is needed to use them, on images prepared as for validation.

`model.safetensors` holds the plain weights (the keys of the architecture's own `state_dict`) and, as metadata under the
key "cvtune", what `About` says as JSON. It needs neither the study nor its images.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from safetensors.torch import save as pack
from torch import Tensor

from cvtune.data import Dataset, Part
from cvtune.data.dataset import kept_side
from cvtune.data.decode import check_kind, load, resize_keep
from cvtune.data.listing import Item, Pixels, Task
from cvtune.data.loader import evaluation_batch
from cvtune.errors import ConfigError
from cvtune.evaluation import never, predictions
from cvtune.fields import USER_CODE
from cvtune.kinds import from_json
from cvtune.models.weights import expect_inputs
from cvtune.normalize import normalizer_of
from cvtune.printable import first_line
from cvtune.recipe import Recipe
from cvtune.train import Run
from cvtune.usercode import source_hash

FORMAT = 1  # of the metadata; a reader accepts its own and every lower number
FILE, KEY = "model.safetensors", "cvtune"
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


@dataclass(frozen=True)
class About:
    """What a file of weights says of itself.

    Attributes:
        task: what the logits are for.
        classes: K names, in the order of the logits.
        recipe: that it was trained by, at the end of training.
        fingerprint: of the images that it was trained on.
        code: 'python:module:function' -> SHA-256 of its source, of what the study had of the user's own.
        study: where it comes from: name of the study, trial, step.
        pixels: of images that are no photos what `kinds.to_json` says of them.
    """

    task: Task
    classes: tuple[str, ...]
    recipe: Recipe
    fingerprint: str = ""
    code: Mapping[str, str] = dataclasses.field(default_factory=dict)
    study: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    pixels: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """All of it as plain JSON, with the format's version."""
        kept = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {"format": FORMAT, **kept, "classes": list(self.classes), "recipe": self.recipe.model_dump(mode="json")}


def save(path: Path, about: About, weights: Mapping[str, Tensor]) -> None:
    """Write a file of weights, tensors on the CPU. Not whole or not at all: that is the caller's to see to.

    Raises:
        OSError: the disk is full or the folder cannot be written.
    """
    apart = {name: tensor.contiguous().clone() for name, tensor in weights.items()}  # safetensors shares no memory
    # Not `save_file`, whose files nobody but their owner may read.
    path.write_bytes(pack(apart, {"format": "pt", KEY: json.dumps(about.to_json())}))


def read(path: Path) -> About:
    """What a file of weights says of itself.

    Raises:
        ConfigError: it is missing or broken, not one of cvtune's, or of a newer version.
    """
    try:
        with safe_open(path, "pt") as file:
            content = json.loads((file.metadata() or {}).get(KEY, "null"))
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:  # RuntimeError: there is none
        raise ConfigError(f"{path} cannot be read as weights ({first_line(error)}). Copy the file anew.") from None
    if content is None:
        raise ConfigError(f"{path} holds weights, but not what cvtune notes beside them. Give a study's best folder.")
    try:
        return _about(path, content)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        told = f"{type(error).__name__}: {first_line(error)}"
        raise ConfigError(f"{path} was not written by cvtune ({told}). Give a study's best folder.") from None


def _about(path: Path, content: dict[str, Any]) -> About:
    """What a file says of itself; what cvtune has not written makes it raise anything."""
    if content.pop("format") > FORMAT:
        raise ConfigError(f"{path} was written by a newer cvtune. Update cvtune.")
    classes = tuple(content["classes"])
    if not classes or not all(isinstance(name, str) for name in classes):
        raise TypeError("classes have to be names")
    return About(**content | {"recipe": Recipe.model_validate(content["recipe"]), "classes": classes})


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
