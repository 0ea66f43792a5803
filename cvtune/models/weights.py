"""Pretrained weights: from torchvision or a file, all layers but the head must fit."""

from __future__ import annotations

import hashlib
import pickle
import re
import sys
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import torch
from torch import Tensor, nn

from cvtune.errors import ConfigError

SUFFIXES = (".safetensors", ".pth", ".pt")


@dataclass(frozen=True)
class Published:
    """The best weights that torchvision publishes for an architecture, and the file where torch.hub keeps them."""

    url: str
    file: Path

    def required(self) -> Path:
        """The file. It is never downloaded here: many nodes would do so at once, and most have no network.

        Raises:
            ConfigError: it is not there.
        """
        if self.file.is_file():
            return self.file
        raise ConfigError(
            f"model.pretrained = 'default': {self.file.name} is not in {self.file.parent} ($TORCH_HOME decides where). "
            "A run downloads nothing: call `cvtune fetch TARGET` with this run's TARGET and --set on a machine with a "
            f"network that shares this folder, or put {self.url} there."
        )

    def sha256(self) -> str:
        """The hex digest of the file."""
        with self.file.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def is_whole(self) -> bool:
        """Whether the file is there with the digest whose first digits are part of its name."""
        return self.file.is_file() and self.sha256().startswith(self._digits)

    def download(self) -> None:
        """Get the file whole or not at all, whatever OSError or RuntimeError torch.hub raises."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(self.url, str(self.file), self._digits, progress=sys.stderr.isatty())

    @property
    def _digits(self) -> str:
        found = re.search(r"-([0-9a-f]{8,})$", self.file.stem)  # resnet18-f37072fd.pth
        return found[1] if found else ""


def published(name: str) -> Published:
    """The published weights of a torchvision architecture (its name without 'torchvision:').

    Raises:
        ConfigError: there are none.
    """
    from torchvision.models import get_model_weights, list_models

    if name not in list_models():
        raise ConfigError(
            f"model.pretrained = 'default': no weights are published for {name}. Give a .safetensors or .pth file or "
            "a torchvision:NAME, leave it at None, or let it depend on model.name in the space."
        )
    best: Any = get_model_weights(name).DEFAULT
    file = PurePosixPath(urlsplit(best.url).path).name
    return Published(best.url, Path(torch.hub.get_dir(), "checkpoints", file))


def load_weights(module: nn.Module, head: nn.Module, name: str, pretrained: str | None) -> None:
    """Loads `pretrained` (see `recipe.Model`) into `module`; None: leaves it as it is.

    A head of another shape, or none, in the file leaves the module's head fresh. Position embeddings of a
    ViT trained at another image size are interpolated.

    Raises:
        ConfigError: the weights are not there, cannot be read, or do not belong to this architecture.
    """
    if pretrained is None:
        return
    state = _read(published(name).required() if pretrained == "default" else Path(pretrained))
    state = _fit_positions(module, state)
    prefix = next(key for key, m in module.named_modules() if m is head)
    misfits = _load(module, {f"{prefix}.{key}".lstrip(".") for key in head.state_dict()}, state)
    if misfits:
        raise ConfigError(
            f"model.pretrained = {pretrained!r} does not fit {name}: {misfits}. All but the last layer must match. "
            "Choose the model.name, model.norm and model.width that these weights were trained with."
        )


def _load(module: nn.Module, head: set[str], state: dict[str, Tensor]) -> str:
    """Loads `state`, but of the keys in `head` only what fits; says what else does not, "" when all does."""
    own = module.state_dict()
    state = {k: v for k, v in state.items() if k not in head or v.shape == own[k].shape}
    kinds = {"of another shape": [k for k, v in state.items() if k in own and v.shape != own[k].shape]}
    if not kinds["of another shape"]:  # torch raises on these; and it may rename keys of older files on its own
        missing, unexpected = module.load_state_dict(state, strict=False)
        kinds = {"missing": [k for k in missing if k not in head], "unexpected": list(unexpected)}
    return "; ".join(f"{len(keys)} {kind}: {', '.join(keys[:5])}" for kind, keys in kinds.items() if keys)


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix not in SUFFIXES:
        raise ConfigError(
            f"model.pretrained = {str(path)!r} is neither 'default' nor a file that ends in {', '.join(SUFFIXES)}."
        )
    if not path.is_file():
        raise ConfigError(f"model.pretrained = {str(path)!r} is not a file. Give a path that every node can read.")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError, _safetensor_error()) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"model.pretrained = {str(path)!r} cannot be read: {reason}") from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ConfigError(
            f"model.pretrained = {str(path)!r} holds no plain weights. Save module.state_dict(): names to tensors."
        )
    return state


def _safetensor_error() -> type[Exception]:
    from safetensors import SafetensorError

    error: type[Exception] = SafetensorError
    return error


def _fit_positions(module: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    key = "encoder.pos_embedding"
    if key not in state or type(module).__name__ != "VisionTransformer":
        return state
    from torchvision.models.vision_transformer import interpolate_embeddings

    vit: Any = module
    fitted: dict[str, Tensor] = interpolate_embeddings(vit.image_size, vit.patch_size, dict(state))
    return fitted
