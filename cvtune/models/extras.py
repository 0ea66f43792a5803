"""Architectures of timm and segmentation_models_pytorch: optional libraries, `timm:NAME` and `smp:DECODER/ENCODER`."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from cvtune.errors import ConfigError, did_you_mean

TIMM, SMP = "timm:", "smp:"
_MODULES = {TIMM: "timm", SMP: "segmentation_models_pytorch"}


def library(prefix: str, name: str) -> Any:
    """The library behind `prefix`. `name` is the model.name that asks for it.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return importlib.import_module(_MODULES[prefix])
    except ImportError as error:
        extra = prefix.rstrip(":")
        raise ConfigError(
            f"model.name = {name!r} needs the extra {extra!r} ({error}). Install it on every node: "
            f"pip install 'cvtune[{extra}]'."
        ) from error


def check_name(name: str) -> None:
    """Checks a name of timm or smp; others pass.

    Raises:
        ConfigError: the library is not installed or has no such architecture.
    """
    if name.startswith(TIMM):
        timm = library(TIMM, name)
        known = [TIMM + other for other in (*timm.list_models(), *timm.list_models(pretrained=True))]
        if name not in known:
            raise ConfigError(f"model.name = {name!r} is not known. {did_you_mean(name, known)}")
    elif name.startswith(SMP):
        smp = library(SMP, name)
        decoder, _, encoder = name.removeprefix(SMP).partition("/")
        decoders, encoders = list(smp.MODEL_ARCHITECTURES_MAPPING), smp.encoders.get_encoder_names()
        if decoder not in decoders:
            raise ConfigError(f"model.name = {name!r}: {decoder!r} is no decoder. {did_you_mean(decoder, decoders)}")
        if encoder not in encoders and not encoder.startswith("tu-"):  # timm's encoders are known to smp alone
            raise ConfigError(f"model.name = {name!r}: {encoder!r} is no encoder. {did_you_mean(encoder, encoders)}")


def build(name: str, num_classes: int, image_size: int, channels: int = 3) -> nn.Module:
    """A checked name's architecture with fresh weights.

    Raises:
        ConfigError: the library cannot build it, for this image size or at all.
    """
    try:
        if name.startswith(TIMM):
            return _timm(name, num_classes, image_size, channels)
        decoder, _, encoder = name.removeprefix(SMP).partition("/")
        made: nn.Module = library(SMP, name).create_model(
            decoder, encoder, encoder_weights=None, classes=num_classes, in_channels=channels
        )
        return made
    except ConfigError:
        raise
    except Exception as error:  # whatever the library raises
        raise ConfigError(
            f"model.name = {name!r} cannot be built for data.image_size = {image_size} px: "
            f"{type(error).__name__}: {error}. Choose another size or architecture."
        ) from error


def timm_head(module: Any) -> nn.Module:
    """The classifier by timm's own account."""
    found = module.get_classifier()
    if isinstance(found, nn.Module) and next(found.parameters(), None) is not None:
        return found
    raise ConfigError(
        f"{type(module).__name__} of timm has not one last layer but {type(found).__name__}, so that nothing tells "
        "head from backbone. Choose another model.name."
    )


def timm_weights(name: str, file: Path, num_classes: int, image_size: int, channels: int = 3) -> dict[str, Tensor]:
    """The state of the architecture with published weights from `file`, the head fresh unless it fits.

    timm itself translates the names of foreign files, and fits position embeddings and the first convolution.
    """
    state: dict[str, Tensor] = _timm(name, num_classes, image_size, channels, file).state_dict()
    return state


def norm_of(name: str) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and standard deviation, of values in 0..1, that the default weights were trained with; None: not known."""
    if name.startswith(TIMM):
        found = library(TIMM, name).models.get_pretrained_cfg(name.removeprefix(TIMM))
        return None if found is None else (tuple(found.mean), tuple(found.std))
    encoder = library(SMP, name).encoders.encoders.get(name.partition("/")[2], {}) if name.startswith(SMP) else {}
    settings = encoder.get("pretrained_settings", {}).get("imagenet") or {}
    return (tuple(settings["mean"]), tuple(settings["std"])) if {"mean", "std"} <= settings.keys() else None


def hub_file(name: str) -> tuple[str, str, str | None] | None:
    """Where the Hugging Face hub keeps the default weights: repository, file, revision; None: nowhere.

    Of smp's models these are the encoder's.
    """
    if name.startswith(TIMM):
        found = library(TIMM, name).models.get_pretrained_cfg(name.removeprefix(TIMM))
        if found is None or not found.hf_hub_id:
            return None
        repository, _, revision = found.hf_hub_id.partition("@")
        return repository, found.hf_hub_filename or "model.safetensors", revision or None
    encoder = library(SMP, name).encoders.encoders.get(name.partition("/")[2], {})
    settings = encoder.get("pretrained_settings", {}).get("imagenet")
    return settings and (settings["repo_id"], "model.safetensors", settings["revision"])


def _timm(name: str, num_classes: int, image_size: int, channels: int, file: Path | None = None) -> nn.Module:
    timm, plain = library(TIMM, name), name.removeprefix(TIMM)
    cfg = timm.models.get_pretrained_cfg(plain)
    size = {"img_size": image_size} if cfg is not None and cfg.fixed_input_size else {}
    overlay = {"file": str(file)} if file else None
    made: nn.Module = timm.create_model(
        plain,
        pretrained=file is not None,
        pretrained_cfg_overlay=overlay,
        num_classes=num_classes,
        in_chans=channels,
        **size,
    )
    return made
