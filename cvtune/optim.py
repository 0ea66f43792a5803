"""One optimizer step: rate, decay, penalties, clipping and the moving average of the weights."""

from __future__ import annotations

import copy
import functools
import inspect
import math
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Adam, RMSprop

from cvtune.models import Network
from cvtune.recipe import Recipe, Value
from cvtune.regularize import number

_TINY = 1e-12  # instead of momentum 0: buffers then exist from the start and momentum can be raised later


@functools.cache
def _uncompiled(kind: type[torch.optim.Optimizer]) -> Callable[..., torch.optim.Optimizer]:
    """This optimizer without what keeps torch's compiler out of its methods: that imports the compiler.

    Measured: 2.7 CPU-seconds and 145 MB in every process that trains, and nothing here compiles an optimizer.
    """
    shut_out = ("step", "zero_grad", "add_param_group", "state_dict", "load_state_dict")
    plain = {name: inspect.unwrap(getattr(kind, name)) for name in shut_out}
    return type(kind.__name__, (kind,), {**plain, "step": torch.no_grad()(plain["step"])})


# Adam and AdamW differ only in how they decay, and decay is ours. `Stepper.apply` sets what is set by the recipe.
OPTIMIZERS: Mapping[str, Callable[[Any], torch.optim.Optimizer]] = types.MappingProxyType(
    {
        "sgd": lambda groups: _uncompiled(SGD)(groups, lr=1.0, momentum=_TINY, nesterov=True, fused=True),
        "adam": lambda groups: _uncompiled(Adam)(groups, lr=1.0, fused=True),
        "adamw": lambda groups: _uncompiled(Adam)(groups, lr=1.0, fused=True),
        "adagrad": lambda groups: _uncompiled(Adagrad)(groups, lr=1.0, foreach=True),
        "rmsprop": lambda groups: _uncompiled(RMSprop)(groups, lr=1.0, momentum=_TINY, foreach=True),
    }
)


def rate(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """Learning rate of the last layer at an optimizer step: a pure function, so resuming needs no state.

    Rises linearly during `warmup_epochs` (at most half of max_epochs), then falls to 0 by a half cosine
    (Loshchilov & Hutter 2017) or a line over what is left of `max_epochs`, or stays.

    Args:
        recipe: gives the peak rate (lr, scaled with the batch), schedule, warmup_epochs and max_epochs.
        step: optimizer steps made before this one, from 0.
        steps_per_epoch: optimizer steps (not batches) per epoch, >= 1.
    """
    optim = recipe.optim
    warmup = min(optim.warmup_epochs, recipe.max_epochs / 2) * steps_per_epoch
    if step < warmup:
        return recipe.peak_lr * (step + 1) / (warmup + 1)  # neither the first step nor the last is at rate 0
    left = max(0.0, 1 - (step - warmup) / (recipe.max_epochs * steps_per_epoch - warmup))
    factor = {"cosine": (1 - math.cos(math.pi * left)) / 2, "linear": left, "constant": 1.0}
    return recipe.peak_lr * factor[optim.schedule]


class Stepper:
    """Turns gradients into the next weights.

    Parameters fall into {backbone, head} x {decayed, plain}. Decayed are the weights of convolution,
    linear and attention layers; norm layers, biases and other vectors, class tokens and position
    embeddings are plain: no decay, l2 or l1. The backbone's rate is `backbone_lr_scale` times the head's.
    Every optimizer gets the same three ways to shrink a weight w:
      weight_decay  w *= 1 - lr x weight_decay before the update (decoupled, Loshchilov & Hutter 2019);
      l2            l2 x w is added to the gradient, so momentum and adaptive scaling see it;
      l1            w moves lr x l1 towards 0 after the update and stops there (proximal step; ISTA,
                    Daubechies et al. 2004), so weights become exactly 0.
    Parameters without a gradient (a frozen backbone) are left alone altogether.
    Nothing here waits for the GPU, except a GradScaler's own check.

    Attributes:
        optimizer: the torch optimizer.
        steps: optimizer steps made so far.
        lr: rate of the last layer in the last step; 0 before the first.
        weight_decay: decoupled decay in the last step; 0 before the first.
    """

    def __init__(self, network: Network, recipe: Recipe, steps_per_epoch: int) -> None:
        """`recipe` is resolved; `network` lies on its device; `steps_per_epoch` counts optimizer steps."""
        self.steps, self.steps_per_epoch = 0, steps_per_epoch
        self.lr = self.weight_decay = 0.0
        self._module = network.module
        self.optimizer = OPTIMIZERS[recipe.optim.name](_groups(network))
        self._average = copy.deepcopy(network.module).requires_grad_(False) if recipe.optim.ema else None
        self.apply(recipe)

    @property
    def evaluated(self) -> nn.Module:
        """The module to evaluate and keep: the moving average where `optim.ema` is on, else the raw one."""
        return self._module if self._average is None else self._average

    def apply(self, recipe: Recipe) -> None:
        """Sets every value that may change in mid-training, over whatever a restored state said."""
        self._recipe = recipe
        momentum, l2 = recipe.optim.momentum, number(recipe.regularize.l2)
        for group in self.optimizer.param_groups:
            group["weight_decay"] = l2 if group["decayed"] else 0.0
            if "betas" in group:
                group["betas"] = (momentum, group["betas"][1])
            elif "momentum" in group:
                group["momentum"] = max(momentum, _TINY)

    def in_force(self) -> Iterator[tuple[str, Value]]:
        """Dotted name and value of all that the next step will use, read back: what `apply` has set.

        What each parameter group has of its own comes once per group. Adagrad knows no momentum.
        """
        recipe = self._recipe
        yield "optim.lr", recipe.optim.lr
        yield "optim.clip_norm", recipe.optim.clip_norm
        yield "regularize.weight_decay", recipe.regularize.weight_decay
        yield "regularize.l1", recipe.regularize.l1
        for group in self.optimizer.param_groups:
            if group["decayed"]:
                yield "regularize.l2", group["weight_decay"]
            momentum = group["betas"][0] if "betas" in group else group.get("momentum")
            if momentum is not None:
                yield "optim.momentum", 0.0 if momentum == _TINY else momentum

    @torch.no_grad()
    def step(self, scaler: torch.amp.GradScaler | None = None) -> Tensor:
        """Uses up the gradients: one update, then they are cleared.

        Args:
            scaler: the scaler that scaled the loss (float16); an update that it skips still decays and counts.

        Returns:
            float32 scalar on the device: the norm of the whole gradient before clipping.
        """
        recipe = self._recipe
        self.lr = rate(recipe, self.steps, self.steps_per_epoch)
        if scaler is not None:
            scaler.unscale_(self.optimizer)
        norm = self._clip(recipe.optim.clip_norm)
        self.weight_decay = number(recipe.regularize.weight_decay)
        decayed = self._set_rates_and_decay()
        if scaler is None:
            self.optimizer.step()
        else:
            scaler.step(self.optimizer)
            scaler.update()
        if l1 := number(recipe.regularize.l1):
            for weights, lr in decayed:
                _shrink(weights, lr * l1)
        self.optimizer.zero_grad()
        self.steps += 1
        self._follow(recipe.optim.ema)
        return norm

    def zero_share(self) -> Tensor:
        """float32 scalar on the device: share of the decayed weights that are exactly 0."""
        weights = [p for group in self.optimizer.param_groups if group["decayed"] for p in group["params"]]
        zeros = torch.stack([p.numel() - torch.count_nonzero(p) for p in weights]).sum()
        share: Tensor = zeros / sum(p.numel() for p in weights)
        return share

    def weight_norm(self) -> Tensor:
        """float32 scalar on the device: L2 norm of all decayed weights together."""
        weights = [p.detach() for group in self.optimizer.param_groups if group["decayed"] for p in group["params"]]
        norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(weights)))
        return norm

    def state_dict(self) -> dict[str, Any]:
        """What resuming needs beside the module's weights."""
        average = None if self._average is None else self._average.state_dict()
        return {"optimizer": self.optimizer.state_dict(), "steps": self.steps, "ema": average}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores `state_dict()`, also a donor's; the present recipe's values stay. Load the module's weights before.

        A state without moving average lets it start from the module's present weights.
        """
        self.optimizer.load_state_dict(state["optimizer"])
        for weight, kept in self.optimizer.state.items():
            for name, value in kept.items():
                if isinstance(value, Tensor) and value.shape == weight.shape:
                    # A loaded state is contiguous; fused optimizers walk through memory and need the weight's layout.
                    kept[name] = torch.empty_like(weight).copy_(value)
        self.steps = state["steps"]
        if self._average is not None:
            self._average.load_state_dict(state["ema"] or self._module.state_dict())
        self.apply(self._recipe)

    def _clip(self, limit: float | None) -> Tensor:
        grads = [p.grad for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
        if limit is not None:
            torch._foreach_mul_(grads, (limit / (norm + 1e-6)).clamp(max=1.0))
        return norm

    def _set_rates_and_decay(self) -> list[tuple[list[Tensor], float]]:
        """Decays; returns the decayed weights that have a gradient, with their rate, for the l1 step."""
        decayed = []
        for group in self.optimizer.param_groups:
            group["lr"] = lr = self.lr * (1.0 if group["head"] else self._recipe.optim.backbone_lr_scale)
            weights = [p for p in group["params"] if p.grad is not None]
            if group["decayed"] and weights:
                decayed.append((weights, lr))
                if self.weight_decay:
                    torch._foreach_mul_(weights, max(0.0, 1 - lr * self.weight_decay))
        return decayed

    def _follow(self, decay: float) -> None:
        """Moves the average towards the weights; young averages faster, so that the start is forgotten soon."""
        if self._average is None:
            return
        decay = min(decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(list(self._average.parameters()), list(self._module.parameters()), 1 - decay)
        for mine, theirs in zip(self._average.buffers(), self._module.buffers(), strict=True):
            mine.copy_(theirs)


def _groups(network: Network) -> list[dict[str, Any]]:
    head = {id(p) for p in network.head.parameters()}
    split: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, p in network.module.named_parameters():
        decayed = p.ndim >= 2 and "weight" in name.rpartition(".")[2]
        split.setdefault((id(p) in head, decayed), []).append(p)
    return [{"params": params, "head": in_head, "decayed": decayed} for (in_head, decayed), params in split.items()]


def _shrink(weights: list[Tensor], by: float) -> None:
    """Soft threshold: each weight moves `by` towards 0 and stops there."""
    clipped = torch._foreach_clamp_min(weights, -by)
    torch._foreach_clamp_max_(clipped, by)
    torch._foreach_sub_(weights, clipped)
