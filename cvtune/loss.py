"""Training losses: cross-entropy with smoothing, class weights and focal exponent, or the user's own."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from cvtune.errors import ConfigError
from cvtune.recipe import Recipe
from cvtune.regularize import number

PerSample = Callable[[Tensor, Tensor], Tensor]
Loss = Callable[[Tensor, Tensor, Tensor, float], Tensor]


def build_loss(recipe: Recipe, class_counts: Tensor) -> Loss:
    """The training loss of a resolved recipe. Cheap: build it anew whenever the recipe changes.

    Args:
        recipe: resolved (`regularize.resolve`).
        class_counts: int64 (K,), training images per class, on the device of the logits.

    Returns:
        loss(logits (N, K), y_a int64 (N,), y_b int64 (N,), lam in 0..1) -> float32 scalar: the mean over
        samples of lam x l(y_a) + (1 - lam) x l(y_b), the loss of mixed images (Zhang et al. 2018). Each
        l(y) is weighted by (1 / frequency of y) ** class_weight, scaled to mean 1 over the classes.

    Raises:
        ConfigError: the user's loss cannot be loaded, fails, or does not return one number per sample.
    """
    per_sample = _cross_entropy(recipe) if recipe.loss.name == "cross_entropy" else _user_loss(recipe)
    weight = class_weights(class_counts, recipe.loss.class_weight) if recipe.loss.class_weight else None

    def one(logits: Tensor, y: Tensor) -> Tensor:
        losses = per_sample(logits, y)
        return (losses if weight is None else losses * weight[y]).mean()

    def loss(logits: Tensor, y_a: Tensor, y_b: Tensor, lam: float) -> Tensor:
        logits = logits.float()
        if lam == 1:
            return one(logits, y_a)
        return lam * one(logits, y_a) + (1 - lam) * one(logits, y_b)

    return loss


def class_weights(class_counts: Tensor, exponent: float) -> Tensor:
    """float32 (K,): (1 / frequency) ** exponent, mean 1; a class without images counts as having one."""
    weight = class_counts.clamp(min=1).float() ** -exponent
    return weight / weight.mean()


def _cross_entropy(recipe: Recipe) -> PerSample:
    """Cross-entropy, times (1 - p of the label) ** gamma (focal loss, Lin et al. 2017) where gamma > 0."""
    smoothing, gamma = number(recipe.regularize.label_smoothing), recipe.loss.focal_gamma

    def plain(logits: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(logits, y, reduction="none", label_smoothing=smoothing)

    def focal(logits: Tensor, y: Tensor) -> Tensor:
        miss = -torch.expm1(-F.cross_entropy(logits, y, reduction="none"))
        return miss.clamp(min=1e-6) ** gamma * plain(logits, y)  # the power has no gradient at 0 when gamma < 1

    return focal if gamma else plain


def _user_loss(recipe: Recipe) -> PerSample:
    from cvtune.usercode import load_function

    ref = recipe.loss.name
    if recipe.loss.focal_gamma:
        raise ConfigError(
            f"loss.focal_gamma = {recipe.loss.focal_gamma} changes cross_entropy only, and loss.name is {ref!r}. "
            "Set loss.focal_gamma to 0 and weigh hard samples in your function."
        )
    function = load_function(ref, "loss.name")

    def user(logits: Tensor, y: Tensor) -> Tensor:
        try:
            losses = function(logits, y, recipe)
        except Exception as error:
            raise ConfigError(f"loss.name = {ref!r} failed: {type(error).__name__}: {error}. Correct it.") from error
        if not isinstance(losses, Tensor) or losses.shape != y.shape:
            got = f"shape {tuple(losses.shape)}" if isinstance(losses, Tensor) else type(losses).__name__
            raise ConfigError(
                f"loss.name = {ref!r} returned {got}; it must return one loss per sample, a tensor of shape "
                f"{tuple(y.shape)}. Leave out the mean over the batch."
            )
        return losses

    return user
