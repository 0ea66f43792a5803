"""Networks by name, with handles to what may change during training: noise and freezing.

Noise is put in by forward hooks, so the keys of `state_dict` stay those of the plain architecture and a
trained file loads into plain torchvision.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cvtune.data.listing import Task
from cvtune.errors import ConfigError
from cvtune.models.families import Family, build_plain, find_family, replace_norms
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
        module: float (N, 3, H, W) -> float logits (N, K).
        head: the last layer; everything else is the backbone.
        task: what the logits are for.
    """

    module: nn.Module
    head: nn.Module
    task: Task = "classify"
    _dropout: list[Any] = field(default_factory=list)  # whatever has a settable probability `p`
    _channels: list[Any] = field(default_factory=list)
    _branches: list[list[Any]] = field(default_factory=list)  # one list per block, from first to deepest

    def __post_init__(self) -> None:
        norms: list[nn.Module] = [m for m in self.module.modules() if isinstance(m, nn.modules.batchnorm._NormBase)]
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


def build_model(recipe: Recipe, num_classes: int, image_size: int, task: Task = "classify") -> Network:
    """The network that a recipe (resolved or not) asks for, on the CPU, its noise set.

    Args:
        recipe: `model` decides the architecture, `regularize` the noise.
        num_classes: number of logits K, >= 2.
        image_size: side of the square input in px.
        task: of "segment" the logits are (N, K, H, W), which only user code gives.

    Raises:
        ConfigError: the name, norm, weights or image size does not fit, a knob set by hand above 0 has no
            place in this architecture, or the user's function fails.
    """
    if recipe.model.name.startswith("python:"):
        return _user_network(recipe, num_classes, task)
    if task == "segment":
        raise ConfigError(
            f"model.name = {recipe.model.name!r} gives one class per image, and the data has masks. Name a model of "
            "your own that gives logits of shape (N, num_classes, H, W): 'python:module:function'."
        )
    family, name = find_family(recipe.model.name)
    _refuse_missing_places(recipe, family)
    module = build_plain(family, name, num_classes, image_size, recipe.model.width)
    replace_norms(module, family, name, recipe.model.norm)
    head = _last_linear(module)
    load_weights(module, head, name, recipe.model.pretrained)
    network = Network(
        module,
        head,
        task,
        _dropout=[m for m in module.modules() if type(m) is nn.Dropout and m.p] or [_before(head, F.dropout)],
        _channels=[_after(stage, F.dropout2d) for stage in family.stage_ends(module)],
        _branches=[[_after(branch, drop_rows) for branch in block] for block in family.branches(module)],
    )
    network.set_noise(resolve(recipe).regularize)
    return network


def check_model(network: Network, num_classes: int, image_size: int) -> None:
    """Runs two random images through the network in eval mode; its mode is restored.

    Raises:
        ConfigError: the pass fails or the result is not of shape (2, num_classes), or of the task "segment" (2,
            num_classes, image_size, image_size).
    """
    module, training = network.module, network.module.training
    images = torch.rand(2, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    try:
        with torch.no_grad():
            logits = module.eval()(images.to(next(module.parameters()).device))
    except Exception as error:
        raise ConfigError(
            f"The model cannot take images of data.image_size = {image_size} px: {type(error).__name__}: {error}. "
            "Choose a larger image size or another model.name."
        ) from error
    finally:
        module.train(training)
    shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    wanted = (2, num_classes, image_size, image_size) if network.task == "segment" else (2, num_classes)
    if shape != wanted:
        raise ConfigError(
            f"The model returns {shape} for 2 images; it must return logits of shape {wanted}, one per "
            "class. Make its last layer num_classes wide."
        )


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


def _refuse_missing_places(recipe: Recipe, family: Family) -> None:
    """Only a knob set by hand is refused, now or in `changes`; in the bundle it is skipped."""
    for values in (recipe, *(recipe.at(epoch) for epoch, _ in recipe.changes)):
        wanted = values.regularize.spatial_dropout
        if wanted and not family.has_maps and "spatial_dropout" in explicit(values):
            raise ConfigError(
                f"regularize.spatial_dropout = {wanted} has no place in model.name = {recipe.model.name!r}: "
                f"{family.name} has no channel maps between stages. Leave it at None or 0 and use regularize.drop_path."
            )


def _last_linear(module: nn.Module) -> nn.Module:
    """The last nn.Linear, else the last layer with parameters of its own."""
    layers = [m for m in module.modules() if next(m.parameters(recurse=False), None) is not None]
    return ([m for m in layers if isinstance(m, nn.Linear)] or layers)[-1]


def _user_network(recipe: Recipe, num_classes: int, task: Task) -> Network:
    from cvtune.usercode import load_function

    ref = recipe.model.name
    function = load_function(ref, "model.name")
    try:
        module = function(num_classes, resolve(recipe))
    except Exception as error:
        raise ConfigError(f"model.name = {ref!r} failed: {type(error).__name__}: {error}. Correct it.") from error
    if not isinstance(module, nn.Module) or next(module.parameters(), None) is None:
        raise ConfigError(
            f"model.name = {ref!r} returned a {type(module).__name__}; it must return a torch.nn.Module with "
            "parameters that gives (N, num_classes) logits."
        )
    head = _last_linear(module)
    if recipe.model.pretrained != "default":  # which weights are the default of user code only it can know
        load_weights(module, head, ref, recipe.model.pretrained)
    return Network(module, head, task)
