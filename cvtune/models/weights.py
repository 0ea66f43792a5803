"""Pretrained weights: published ones or a file; all layers but the head must fit."""

from __future__ import annotations

import hashlib
import pickle
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import torch
from torch import Tensor, nn

from cvtune import checkpoint
from cvtune.errors import ConfigError
from cvtune.fields import USER_CODE
from cvtune.models import extras

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and standard deviation of its images, in 0..1
SUFFIXES = (".safetensors", ".pth", ".pt")
_UNREADABLE = (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError, checkpoint.CheckpointError)


@dataclass(frozen=True)
class Published:
    """The best weights that are published for an architecture.

    Attributes:
        url: where they come from.
        hub: repository, file and revision on the Hugging Face hub; None: torch.hub keeps the file.
    """

    url: str
    hub: tuple[str, str, str | None] | None = None

    @property
    def variable(self) -> str:
        """The environment variable that decides where they are kept."""
        return "HF_HOME" if self.hub else "TORCH_HOME"

    @property
    def file(self) -> Path:
        """Where they are, or would be."""
        if self.hub is None:
            return Path(torch.hub.get_dir(), "checkpoints", PurePosixPath(urlsplit(self.url).path).name)
        from huggingface_hub import constants, try_to_load_from_cache

        repository, file, revision = self.hub
        found = try_to_load_from_cache(repository, file, cache_dir=constants.HF_HUB_CACHE, revision=revision)
        folder = f"models--{repository.replace('/', '--')}"
        return Path(found) if isinstance(found, str) else Path(constants.HF_HUB_CACHE, folder, file)

    def required(self) -> Path:
        """The file. It is never downloaded here: many nodes would do so at once, and most have no network.

        Raises:
            ConfigError: it is not there.
        """
        if self.file.is_file():
            return self.file
        by_hand = f"give the path of {self.url} as model.pretrained" if self.hub else f"put {self.url} there"
        raise ConfigError(
            f"model.pretrained = 'default': {self.file.name} is not in {self.file.parent} (${self.variable} decides "
            "where). A run downloads nothing: call `cvtune fetch TARGET` with this run's TARGET and --set on a machine "
            f"with a network that shares this folder, or {by_hand}."
        )

    def sha256(self) -> str:
        """The hex digest of the file."""
        return sha256(self.file)

    def is_whole(self) -> bool:
        """Whether the file is there with the digest whose first digits are part of its name."""
        return self.file.is_file() and self.sha256().startswith(self._digits)

    def download(self) -> None:
        """Get the file whole or not at all, whatever OSError or RuntimeError the library raises."""
        if self.hub is not None:
            from huggingface_hub import hf_hub_download

            repository, file, revision = self.hub
            broken = self.file.is_file()
            hf_hub_download(repository, file, revision=revision, force_download=broken)
            return
        self.file.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(self.url, str(self.file), self._digits, progress=sys.stderr.isatty())

    @property
    def _digits(self) -> str:
        if self.hub is not None:  # a link to a file that is named by its digest
            found = re.fullmatch(r"[0-9a-f]{64}", self.file.resolve().name)
            return found[0] if found else ""
        found = re.search(r"-([0-9a-f]{8,})$", self.file.stem)  # resnet18-f37072fd.pth
        return found[1] if found else ""


def published(name: str) -> Published:
    """The published weights of an architecture, `model.name`.

    Raises:
        ConfigError: there are none.
    """
    from torchvision.models import get_model_weights, list_models

    if name.startswith((extras.TIMM, extras.SMP)):
        extras.check_name(name)
        if hub := extras.hub_file(name):
            repository, file, revision = hub
            return Published(f"https://huggingface.co/{repository}/resolve/{revision or 'main'}/{file}", hub)
    plain = name.removeprefix("torchvision:")
    if plain in list_models() and len(get_model_weights(plain)):
        best: Any = get_model_weights(plain)
        return Published(best.DEFAULT.url)
    raise ConfigError(
        f"model.pretrained = 'default': no weights are published for {name}. Give a .safetensors or .pth file or "
        "a torchvision:NAME, leave it at None, or let it depend on model.name in the space."
    )


def sha256(file: Path) -> str:
    """The hex digest of a file."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def digests(models: Iterable[tuple[str, str | None]]) -> dict[str, str]:
    """SHA-256 of every file of weights, by its `model.pretrained`, of published ones by the architecture.

    Args:
        models: pairs of `model.name` and `model.pretrained`. What user code loads by itself is not looked at.

    Raises:
        ConfigError: a file is not there.
    """
    asked = {(name, value) for name, value in models if value and not (value == "default" and USER_CODE.match(name))}
    files = {name if value == "default" else value: weights_of(name, value) for name, value in sorted(asked)}
    return {what: sha256(file) for what, file in files.items()}


def weights_of(name: str, pretrained: str) -> Path:
    """The file that `model.name` and `model.pretrained` ask for.

    Raises:
        ConfigError: there is no such file.
    """
    if pretrained == "default":
        return published(name).required()
    path = Path(pretrained)
    if (path / checkpoint.MANIFEST).is_file():
        return path / checkpoint.TENSORS
    if path.suffix not in SUFFIXES:
        raise ConfigError(
            f"model.pretrained = {pretrained!r} is neither 'default' nor a checkpoint of a trial "
            f"(studies/STUDY/trials/TRIAL/ATTEMPT/checkpoints/STEP) nor a file that ends in {', '.join(SUFFIXES)}."
        )
    if not path.is_file():
        raise ConfigError(f"model.pretrained = {pretrained!r} is not a file. Give a path that every node can read.")
    return path


def norm_of(name: str, pretrained: str | None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each of 3 channels, of values in 0..1, that `load_weights` finds weights for."""
    return (pretrained == "default" and extras.norm_of(name)) or IMAGENET


def load_weights(module: nn.Module, head: nn.Module, name: str, pretrained: str | None, image_size: int) -> None:
    """Loads `pretrained` (see `recipe.Model`) into `module`; None: leaves it as it is.

    What the file has not of the head, or of another shape, stays fresh. The head of a segmentation model is all that
    comes after the encoder: of a file of small_resnet small_unet takes the encoder.
    Position embeddings of a ViT trained at another image size are interpolated, a first convolution trained on another
    number of channels is fitted (see `fit_channels`).

    Raises:
        ConfigError: the weights are not there, cannot be read, or do not belong to this architecture.
    """
    if pretrained is None:
        return
    file = weights_of(name, pretrained)
    own = {id(value) for value in (*head.parameters(), *head.buffers())}
    fresh = {key for key, value in module.state_dict(keep_vars=True).items() if id(value) in own}
    if pretrained == "default" and name.startswith(extras.TIMM):
        state = extras.timm_weights(name, file, len(next(iter(head.parameters()))), image_size, _channels(module)[1])
    else:
        state = {key: value for key, value in _read(file).items() if not _is_of_auxiliary(module, key)}
    if pretrained == "default" and name.startswith(extras.SMP):  # its encoder
        state = {f"encoder.{key}": value for key, value in state.items() if f"encoder.{key}" in module.state_dict()}
    expect_inputs(module, pretrained)
    misfits = _load(module, fresh, _fit_positions(module, fit_channels(module, state)))
    if misfits:
        raise ConfigError(
            f"model.pretrained = {pretrained!r} does not fit {name}: {misfits}. All but the head must match. "
            "Choose the model.name, model.norm and model.width that these weights were trained with."
        )


def expect_inputs(module: nn.Module, pretrained: str | None) -> None:
    """Let a network take what its published weights know: those of GoogLeNet and Inception want images in -1..1."""
    if pretrained == "default" and hasattr(module, "transform_input") and _channels(module)[1] == 3:
        vars(module)["transform_input"] = True


def fit_channels(module: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """`state` with the weights of the first convolution, trained on RGB, for the channels of `module`; as timm does.

    They are repeated in order (R, G, B, R, ...) and scaled by 3 / channels, so that the output keeps its size; for one
    channel they are added up.
    """
    key, channels = _channels(module)
    weight = state.get(key)
    if weight is None or weight.ndim != 4 or weight.shape[1] != 3 or channels == 3:
        return state
    if channels == 1:
        return state | {key: weight.sum(1, keepdim=True)}
    return state | {key: weight[:, torch.arange(channels) % 3] * (3 / channels)}


def _channels(module: nn.Module) -> tuple[str, int]:
    """The key of the first convolution's weights, and the channels that it takes; "" and 3 without one."""
    first = next(((f"{k}.weight", m.in_channels) for k, m in module.named_modules() if isinstance(m, nn.Conv2d)), None)
    return first or ("", 3)


def _is_of_auxiliary(module: nn.Module, key: str) -> bool:
    """Whether a key belongs to a second head, which published files may have and our networks never do."""
    name = key.partition(".")[0]
    return name in ("aux1", "aux2", "AuxLogits", "aux_classifier") and getattr(module, name, None) is None


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
    try:
        if (path.parent / checkpoint.MANIFEST).is_file():
            return checkpoint.evaluated(path.parent)[0]
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (*_UNREADABLE, _safetensor_error()) as error:
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
