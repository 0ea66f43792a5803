"""Training losses: cross-entropy with smoothing, class weights and focal exponent, or the user's own.

Each task has its own: one class per image, a yes or no for each class, one class per pixel. What they share stands
here: mixed targets, weights of classes, the user's function.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from cvtune.data.listing import IGNORE
from cvtune.errors import ConfigError
from cvtune.recipe import Recipe
from cvtune.regularize import number

PerSample = Callable[[Tensor, Tensor], Tensor]
Weighed = Callable[[Tensor, Tensor, Tensor | None], Tensor]  # (logits, targets, weights of samples) -> mean loss


class Loss(Protocol):
    """The training loss of a mixed batch, a float32 scalar: lam x l(y_a, w_a) + (1 - lam) x l(y_b, w_b).

    See `augment.Mixed`, and Zhang et al. 2018. `l` is a mean over samples, each times its weight where there are any.
    """

    def __call__(
        self,
        logits: Tensor,
        y_a: Tensor,
        y_b: Tensor,
        lam: float | Tensor,
        w_a: Tensor | None = None,
        w_b: Tensor | None = None,
        /,
    ) -> Tensor: ...


def build_loss(recipe: Recipe, class_counts: Tensor | None) -> Loss:
    """The training loss of a resolved recipe for images of one class. Cheap: build it anew when the recipe changes.

    Logits are (N, K), targets int64 (N,) or soft labels float32 (N, K). Each l(y) is weighted by
    (1 / frequency of y) ** class_weight, scaled to mean 1 over the classes.

    Args:
        recipe: resolved (`regularize.resolve`).
        class_counts: int64 (K,), training images per class, on the device of the logits; needed for class_weight.

    Raises:
        ConfigError: the user's loss cannot be loaded, fails, or does not return one number per sample.
    """
    per_sample = _cross_entropy(recipe) if recipe.loss.name == "cross_entropy" else user_loss(recipe)
    weight = weights_of(recipe, class_counts)

    def one(logits: Tensor, y: Tensor, w: Tensor | None) -> Tensor:
        losses = per_sample(logits, y)
        if weight is not None:
            losses = losses * (weight[y] if y.ndim == 1 else y @ weight)
        return (losses if w is None else losses * w).mean()

    return mixed(one)


def build_tag_loss(recipe: Recipe, tag_counts: Tensor | None) -> Loss:
    """Binary cross-entropy of each class (logits and tags (N, K)), the mean over the tags that are not NaN.

    Each class is a problem of two sides: smoothing moves tags towards 1/2, class_weight weighs the rarer side as
    `class_weights` does, and the focal factor is |tag - p| ** gamma.

    Args:
        recipe: resolved.
        tag_counts: (K, 2), how often each class is absent and there, on the device of the logits; for class_weight.

    Raises:
        ConfigError: see `build_loss`; or class_weight is set beside a user's loss, which knows no single tags.
    """
    if recipe.loss.name != "cross_entropy":
        return _by_sample(recipe)
    smoothing, gamma = number(recipe.regularize.label_smoothing), recipe.loss.focal_gamma
    weight = weights_of(recipe, tag_counts)

    def one(logits: Tensor, tags: Tensor, w: Tensor | None) -> Tensor:
        known = ~tags.isnan()
        tags = tags.nan_to_num(0.0)
        losses = F.binary_cross_entropy_with_logits(logits, tags * (1 - smoothing) + smoothing / 2, reduction="none")
        if gamma:
            losses = (tags - logits.sigmoid()).abs().clamp(min=1e-6) ** gamma * losses
        if weight is not None:
            losses = losses * torch.lerp(weight[:, 0], weight[:, 1], tags)
        if w is not None:
            losses = losses * w[:, None]
        return (losses * known).sum() / known.sum().clamp(min=1)

    return mixed(one)


def build_mask_loss(recipe: Recipe, pixel_counts: Tensor | None) -> Loss:
    """Cross-entropy of each pixel (logits (N, K, H, W), masks uint8 (N, H, W)), the mean over those not `IGNORE`.

    Smoothing, class_weight and focal_gamma work as in `build_loss`, on pixels. Weights are (N,) or (N, H, W).

    Args:
        recipe: resolved.
        pixel_counts: int64 (K,), pixels per class, on the device of the logits; for class_weight.

    Raises:
        ConfigError: see `build_tag_loss`.
    """
    if recipe.loss.name != "cross_entropy":
        return _by_sample(recipe)
    per_pixel = _cross_entropy(recipe)
    weight = weights_of(recipe, pixel_counts)
    if weight is not None:
        weight = F.pad(weight, (0, IGNORE + 1 - len(weight)))  # so that ignored pixels have a place to look up

    def one(logits: Tensor, masks: Tensor, w: Tensor | None) -> Tensor:
        y = masks.long()
        losses = per_pixel(logits, y)  # 0 where ignored
        if weight is not None:
            losses = losses * weight[y]
        if w is not None:
            losses = losses * w.view(*w.shape, *[1] * (losses.ndim - w.ndim))
        return losses.sum() / (y != IGNORE).sum().clamp(min=1)

    return mixed(one)


def mixed(one: Weighed) -> Loss:
    """The loss of mixed batches from that of plain ones; in float32 whatever the logits are."""

    def loss(
        logits: Tensor,
        y_a: Tensor,
        y_b: Tensor,
        lam: float | Tensor,
        w_a: Tensor | None = None,
        w_b: Tensor | None = None,
        /,
    ) -> Tensor:
        logits = logits.float()
        if not isinstance(lam, Tensor) and lam == 1:  # a tensor's value would have to be waited for
            return one(logits, y_a, w_a)
        return lam * one(logits, y_a, w_a) + (1 - lam) * one(logits, y_b, w_b)

    return loss


def class_weights(counts: Tensor, exponent: float) -> Tensor:
    """float32 (..., K): (1 / frequency) ** exponent, mean 1 over K; what never occurs counts as occurring once."""
    weight = counts.clamp(min=1).float() ** -exponent
    return weight / weight.mean(-1, keepdim=True)


def weights_of(recipe: Recipe, counts: Tensor | None) -> Tensor | None:
    """The weights of the classes that a recipe asks for, if it does."""
    if not recipe.loss.class_weight:
        return None
    assert counts is not None, "loss.class_weight needs the counts"
    return class_weights(counts, recipe.loss.class_weight)


def _cross_entropy(recipe: Recipe) -> PerSample:
    """Cross-entropy, times (1 - p of the label) ** gamma (focal loss, Lin et al. 2017) where gamma > 0.

    Of images or pixels, 0 where the label is `IGNORE`; of soft labels p is exp(-cross-entropy).
    """
    smoothing, gamma = number(recipe.regularize.label_smoothing), recipe.loss.focal_gamma

    def entropy(logits: Tensor, y: Tensor, smoothing: float) -> Tensor:
        if y.is_floating_point():
            return F.cross_entropy(logits, y, reduction="none", label_smoothing=smoothing)
        return F.cross_entropy(logits, y, reduction="none", label_smoothing=smoothing, ignore_index=IGNORE_OF[y.ndim])

    def plain(logits: Tensor, y: Tensor) -> Tensor:
        return entropy(logits, y, smoothing)

    def focal(logits: Tensor, y: Tensor) -> Tensor:
        miss = -torch.expm1(-entropy(logits, y, 0.0))
        return miss.clamp(min=1e-6) ** gamma * plain(logits, y)  # the power has no gradient at 0 when gamma < 1

    return focal if gamma else plain


IGNORE_OF = {1: -100, 3: IGNORE}  # by dimensions of the labels: a class of images may well have the number 255


def _by_sample(recipe: Recipe) -> Loss:
    """The user's loss of each sample of a task in which a sample has many labels."""
    per_sample = user_loss(recipe)
    if recipe.loss.class_weight:
        raise ConfigError(
            f"loss.class_weight = {recipe.loss.class_weight} weighs single pixels or tags, of which loss.name = "
            f"{recipe.loss.name!r} gives the sum. Set loss.class_weight to 0 and weigh classes in your function."
        )

    def one(logits: Tensor, y: Tensor, w: Tensor | None) -> Tensor:
        losses = per_sample(logits, y if y.is_floating_point() else y.long())
        if w is None:
            return losses.mean()
        return (losses * w.flatten(1).mean(1) if w.ndim > 1 else losses * w).mean()

    return mixed(one)


def user_loss(recipe: Recipe) -> PerSample:
    """The user's function as (logits, targets) -> one loss per sample (N,).

    Raises:
        ConfigError: it cannot be loaded, or `loss.focal_gamma` is set beside it; when called: it fails or returns
            something else.
    """
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
        except torch.OutOfMemoryError:  # no mistake of the function: the batch is done again in parts
            raise
        except Exception as error:
            raise ConfigError(f"loss.name = {ref!r} failed: {type(error).__name__}: {error}. Correct it.") from error
        if not isinstance(losses, Tensor) or losses.shape != y.shape[:1]:
            got = f"shape {tuple(losses.shape)}" if isinstance(losses, Tensor) else type(losses).__name__
            raise ConfigError(
                f"loss.name = {ref!r} returned {got}; it must return one loss per sample, a tensor of shape "
                f"{tuple(y.shape[:1])}. Leave out the mean over the batch."
            )
        return losses

    return user
