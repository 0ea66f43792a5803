"""A trained model as one file: weights with what is needed to use them. Neither the study nor torch is.

`model.safetensors` holds the plain weights (the keys of the architecture's own `state_dict`) and, as metadata under the
key "cvtune", what `About` says as JSON.
"""

from __future__ import annotations

import dataclasses
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from cvtune.checkpoint import Packed
from cvtune.errors import ConfigError
from cvtune.printable import first_line
from cvtune.recipe import Recipe

if TYPE_CHECKING:
    from cvtune.data.listing import Task

FORMAT = 1  # of the metadata; a reader accepts its own and every lower number
FILE, KEY = "model.safetensors", "cvtune"


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


def save(path: Path, about: About, weights: Mapping[str, Packed]) -> None:
    """Write a file of weights. Not whole or not at all: that is the caller's to see to.

    Source: the format of safetensors, whose own writer for packed tensors takes pointers.

    Raises:
        OSError: the disk is full or the folder cannot be written.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt", KEY: json.dumps(about.to_json())}}
    start = 0
    for name, packed in weights.items():
        stop = start + len(packed.data)
        header[name] = {"dtype": packed.dtype, "shape": packed.shape, "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8
    with path.open("wb") as file:
        file.writelines((struct.pack("<Q", len(text)), text, *(packed.data for packed in weights.values())))


def read(path: Path) -> About:
    """What a file of weights says of itself.

    Raises:
        ConfigError: it is missing or broken, not one of cvtune's, or of a newer version.
    """
    try:
        with safe_open(path, "np") as file:
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
