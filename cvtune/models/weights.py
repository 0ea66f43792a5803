"""Pretrained weights: from torchvision or a file, all layers but the head must fit."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cvtune.errors import ConfigError

SUFFIXES = (".safetensors", ".pth", ".pt")


def load_weights(module: nn.Module, head: nn.Module, name: str, pretrained: str | None) -> None:
    """Loads `pretrained` (see `recipe.Model`) into `module`; None: leaves it as it is.

    A head of another shape, or none, in the file leaves the module's head fresh. Position embeddings of a
    ViT trained at another image size are interpolated.

    Raises:
        ConfigError: the weights cannot be got or read, or do not belong to this architecture.
    """
    if pretrained is None:
        return
    state = _published(name) if pretrained == "default" else _read(Path(pretrained))
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


def _published(name: str) -> dict[str, Tensor]:
    if name == "small_resnet":
        raise ConfigError(
            "model.pretrained = 'default': no weights are published for small_resnet. Give a .safetensors or .pth "
            "file, a torchvision:NAME, or leave it at None."
        )
    from torchvision.models import get_model_weights

    best: Any = get_model_weights(name).DEFAULT
    try:
        state: dict[str, Tensor] = best.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (OSError, RuntimeError) as error:
        raise ConfigError(
            f"model.pretrained = 'default': {best.url} could not be fetched ({error}). Fetch it once on a node "
            "with network and a shared home (it is kept in $TORCH_HOME), or give its path instead of 'default'."
        ) from error
    return state


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
