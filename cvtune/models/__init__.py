"""Networks by name, with handles to what may change during training: noise and freezing.

Noise is put in by forward hooks, so the keys of `state_dict` stay those of the plain architecture and a
trained file loads into plain torchvision.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cvtune.data.listing import Task
from cvtune.errors import ConfigError, did_you_mean
from cvtune.models.families import Family, build_plain, find_family, names_for
from cvtune.models.norms import replace_norms
from cvtune.models.weights import load_weights
from cvtune.recipe import Recipe, Regularize
from cvtune.regularize import explicit, number, resolve

__all__ = ["Network", "build_model", "check_model"]


class Noise:
    """Hook that passes a module's output (as pre-hook: its input) through noise of probability `p` in train mode."""

    def __init__(self, kind: Callable[[Tensor, float], Tensor]) -> None:
        self.kind, self.p = kind, 0.0

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor | None = None) -> Tensor | None:
        if not (self.p and module.training):
            return None
        return self.kind(inputs[0] if output is None else output, self.p)


class Freeze:
    """Pre-hook of the whole network: while on, norm layers use and keep their statistics despite `train()`."""

    def __init__(self, norms: list[nn.Module]) -> None:
        self.norms, self.on = norms, False

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        for norm in self.norms if self.on else ():
            norm.training = False


@dataclass
class Network:
    """A module and what of it may change during training.

    Attributes:
        module: float (N, C, H, W) -> float logits (N, K), to segment (N, K, H, W).
        head: the last layer, of a segmentation model all that comes after the encoder; the rest is the backbone.
        task: what the logits are for.
        channels: C.
    """

    module: nn.Module
    head: nn.Module
    task: Task = "classify"
    channels: int = 3
    _dropout: list[Any] = field(default_factory=list)  # whatever has a settable probability `p`
    _channels: list[Any] = field(default_factory=list)
    _branches: list[list[Any]] = field(default_factory=list)  # one list per block, from first to deepest

    def __post_init__(self) -> None:
        inside = set(self.head.modules())
        outside = [m for m in self.module.modules() if m not in inside]
        norms: list[nn.Module] = [m for m in outside if isinstance(m, nn.modules.batchnorm._NormBase)]
        self._freeze = Freeze(norms)
        head = {id(p) for p in self.head.parameters()}
        self._backbone = [p for p in self.module.parameters() if p.requires_grad and id(p) not in head]
        self.module.register_forward_pre_hook(self._freeze)

    def set_noise(self, regularize: Regularize) -> None:
        """Sets dropout, spatial_dropout and drop_path; at any time, in force from the next forward pass.

        The branch of block i of n is skipped with probability drop_path x i / (n - 1), i from 0 (linear
        rule of Huang et al. 2016). A network from user code has no such places: nothing happens.
        """
        for site in self._dropout:
            site.p = number(regularize.dropout)
        for site in self._channels:
            site.p = number(regularize.spatial_dropout)
        deepest = max(1, len(self._branches) - 1)
        for i, block in enumerate(self._branches):
            for site in block:
                site.p = number(regularize.drop_path) * i / deepest

    def in_force(self) -> Iterator[tuple[str, float]]:
        """Dotted name and value of the noise at every single place, read back: what `set_noise` has set.

        A branch tells the drop_path of the deepest one that its own probability stands for.
        """
        for site in self._dropout:
            yield "regularize.dropout", site.p
        for site in self._channels:
            yield "regularize.spatial_dropout", site.p
        for i, block in enumerate(self._branches[1:], 1):
            for site in block:
                yield "regularize.drop_path", site.p * (len(self._branches) - 1) / i

    def freeze_backbone(self, frozen: bool) -> None:
        """Stops (or resumes) the training of all but the head.

        While frozen the backbone's parameters take no gradient and its batch norms stay in eval mode, even
        after `module.train()`; so drop_path of a ResNet, which acts there, rests too.
        """
        for p in self._backbone:
            p.requires_grad_(not frozen)
            p.grad = None
        self._freeze.on = frozen
        for norm in self._freeze.norms:
            norm.train(self.module.training and not frozen)


def build_model(
    recipe: Recipe, num_classes: int, image_size: int, task: Task = "classify", channels: int = 3
) -> Network:
    """The network that a recipe (resolved or not) asks for, on the CPU, its noise set.

    Args:
        recipe: `model` decides the architecture, `regularize` the noise.
        num_classes: number of logits K, >= 2.
        image_size: side of the square input in px.
        task: what the logits are for: "classify" and "multilabel" want (N, K), "segment" (N, K, H, W).
        channels: of the images. Pretrained weights for 3 are fitted to others, see `weights.fit_channels`.

    Raises:
        ConfigError: the name, task, norm, weights or image size does not fit, a knob set by hand above 0 has no
            place in this architecture, or the user's function fails.
    """
    name, norm = recipe.model.name, recipe.model.norm
    if name.startswith("python:"):
        return _user_network(recipe, num_classes, image_size, task, channels)
    family = find_family(name)
    _refuse_other_task(name, family, task)
    if norm is not None and family.own_norm:
        raise ConfigError(
            f"model.norm = {norm!r} does not fit model.name = {name!r}: {family.name} knows only its own norm layers. "
            "Leave model.norm at None."
        )
    module = build_plain(family, name, num_classes, image_size, recipe.model.width, channels)
    replace_norms(module, family.branches, name, norm)
    head = nn.ModuleList(family.head(module)) if family.head else _last_linear(module)
    stages, branches = family.stage_ends(module), family.branches(module)
    dropouts = [m for m in module.modules() if type(m) is nn.Dropout and m.p]
    _refuse_missing_places(recipe, family, {"spatial_dropout": bool(stages), "drop_path": bool(branches)})
    load_weights(module, head, name, recipe.model.pretrained, image_size)
    network = Network(
        module,
        head,
        task,
        channels,
        _dropout=dropouts or [_before(_layers(head)[-1], F.dropout)],
        _channels=[_after(stage, F.dropout2d) for stage in stages],
        _branches=[[_after(branch, drop_rows) for branch in block] for block in branches],
    )
    network.set_noise(resolve(recipe).regularize)
    return network


def check_model(network: Network, num_classes: int, image_size: int) -> None:
    """Runs two random images through the network in eval mode; its mode is restored.

    Raises:
        ConfigError: the pass fails or the result is not of shape (2, num_classes), to segment (2, num_classes,
            image_size, image_size).
    """
    module, training = network.module, network.module.training
    images = torch.rand(2, network.channels, image_size, image_size, generator=torch.Generator().manual_seed(0))
    try:
        with torch.no_grad():
            logits = module.eval()(images.to(next(module.parameters()).device))
    except Exception as error:
        sides = ", ".join(f"{side}" for side in _sides_taken(module, network.channels))
        of = f" with {network.channels} channels" if network.channels != 3 else ""
        raise ConfigError(
            f"The model cannot take images{of} of data.image_size = {image_size} px: {type(error).__name__}: {error}. "
            + (f"It takes {sides} px. " if sides else "")
            + "Choose another image size or another model.name."
        ) from error
    finally:
        module.train(training)
    expected = (2, num_classes, image_size, image_size) if network.task == "segment" else (2, num_classes)
    shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if shape != expected:
        raise ConfigError(
            f"The model returns {shape} for 2 images; it must return logits of shape {expected}, one per "
            f"class{' and pixel' if network.task == 'segment' else ''}. Make its last layer num_classes wide."
        )


def _sides_taken(module: nn.Module, channels: int) -> list[int]:
    """Which of the usual image sizes a network takes, tried without computing anything."""

    def takes(side: int) -> bool:
        try:
            twin(torch.empty(2, channels, side, side, device="meta"))
        except Exception:  # whatever a layer may raise
            return False
        return True

    try:
        twin = copy.deepcopy(module).to("meta").eval()
        with torch.no_grad():
            return [side for side in (32, 64, 96, 128, 224, 256, 299, 384) if takes(side)]
    except Exception:  # user code that cannot be copied: the message goes without
        return []


def drop_rows(x: Tensor, p: float) -> Tensor:
    """Stochastic depth per sample: each row is zeroed with probability p, the others grow by 1 / (1 - p)."""
    return x * F.dropout(x.new_ones(len(x), *[1] * (x.ndim - 1)), p)


def _after(module: nn.Module, kind: Callable[[Tensor, float], Tensor]) -> Noise:
    noise = Noise(kind)
    module.register_forward_hook(noise)
    return noise


def _before(module: nn.Module, kind: Callable[[Tensor, float], Tensor]) -> Noise:
    noise = Noise(kind)
    module.register_forward_pre_hook(noise)
    return noise


def _refuse_other_task(name: str, family: Family, task: Task) -> None:
    segments = task == "segment"
    if family.segments != segments:
        does, wanted = ("segments", "classifies") if family.segments else ("classifies", "segments")
        raise ConfigError(
            f"model.name = {name!r} {does} images, but the task of the data is {task!r}. Choose one that {wanted} "
            f"them. {did_you_mean(name, names_for(segments))}"
        )


def _refuse_missing_places(recipe: Recipe, family: Family, has_places: Mapping[str, bool]) -> None:
    """Only a knob set by hand is refused, now or in `changes`; in the bundle it is skipped."""
    lacks = {
        "spatial_dropout": ("channel maps between stages", "drop_path"),
        "drop_path": ("residual branches", "dropout"),
    }
    for values in (recipe, *(recipe.at(epoch) for epoch, _ in recipe.changes)):
        for knob, has in has_places.items():
            wanted = getattr(values.regularize, knob)
            if wanted and not has and knob in explicit(values):
                what, instead = lacks[knob]
                raise ConfigError(
                    f"regularize.{knob} = {wanted} has no place in model.name = {recipe.model.name!r}: {family.name} "
                    f"has no {what} that are known. Leave it at None or 0 and use regularize.{instead}."
                )


def _last_linear(module: nn.Module) -> nn.Module:
    """The last nn.Linear, else the last layer with parameters of its own."""
    layers = _layers(module)
    return ([m for m in layers if isinstance(m, nn.Linear)] or layers)[-1]


def _layers(module: nn.Module) -> list[nn.Module]:
    return [m for m in module.modules() if next(m.parameters(recurse=False), None) is not None]


def _user_network(recipe: Recipe, num_classes: int, image_size: int, task: Task, channels: int) -> Network:
    from cvtune.usercode import load_function

    ref = recipe.model.name
    function = load_function(ref, "model.name")
    told = {"channels": channels} if "channels" in inspect.signature(function).parameters else {}
    if channels != 3 and not told:
        raise ConfigError(
            f"model.name = {ref!r} does not ask for the number of channels, and the images have {channels}: give it a "
            "third argument, def build(num_classes, recipe, channels), which then gets it."
        )
    try:
        module = function(num_classes, resolve(recipe), **told)
    except Exception as error:
        raise ConfigError(f"model.name = {ref!r} failed: {type(error).__name__}: {error}. Correct it.") from error
    if not isinstance(module, nn.Module) or next(module.parameters(), None) is None:
        shape = "(N, num_classes, H, W)" if task == "segment" else "(N, num_classes)"
        raise ConfigError(
            f"model.name = {ref!r} returned a {type(module).__name__}; it must return a torch.nn.Module with "
            f"parameters that gives {shape} logits."
        )
    head = _layers(module)[-1] if task == "segment" else _last_linear(module)
    if recipe.model.pretrained != "default":  # which weights are the default of user code only it can know
        load_weights(module, head, ref, recipe.model.pretrained, image_size)
    return Network(module, head, task, channels)
