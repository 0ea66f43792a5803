"""Forward and backward pass of one batch: mixed, recorded or in parts where it has to be, shared out in a team."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING

import torch
from torch import nn

from cvtune.data.loader import Batch
from cvtune.loss import Loss
from cvtune.microbatch import Share, counted, share_of
from cvtune.mixing import Mixed, mix_batch
from cvtune.recipe import Recipe
from cvtune.recorded import Forward

if TYPE_CHECKING:
    from cvtune.train import Run


def mixed_of(run: Run, batch: Batch, size: int, generator: torch.Generator) -> Mixed:
    """This process's rows of a batch of `size` images, as it trains on them. Images are mixed with all of the batch."""
    mixup, cutmix = run.pipeline.augment.mixup, run.pipeline.augment.cutmix
    targets = batch.targets.to(run.device, non_blocking=True)
    weights = None if batch.weights is None else batch.weights.to(run.device, non_blocking=True)
    if run.team.size == 1 or not (mixup or cutmix):
        return mix_batch(run.normalized(batch.images), targets, mixup, cutmix, generator, weights)
    images = run.team.whole(batch.images.to(run.device, non_blocking=True), size)
    targets = run.team.whole(targets, size)
    weights = None if weights is None else run.team.whole(weights, size)
    mixed = mix_batch(run.normalized(images), targets, mixup, cutmix, generator, weights)
    return mixed.rows(run.team.rows(size))


def forward_of(module: nn.Module, loss_of: Loss, autocast: torch.autocast) -> Forward:
    """Mean training loss (scalar) and logits of a batch, or of a part of it. Keeps alive all that it reads."""

    def forward(mixed: Mixed) -> tuple[torch.Tensor, torch.Tensor]:
        with autocast:
            logits = module(mixed.x)
            return loss_of(logits, *mixed[1:]), logits

    return forward


def there_and_back(
    run: Run, now: Recipe, mixed: Mixed, size: int, setting: Hashable, left: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean loss (scalar) and logits of a batch; its gradients are added to those that the parameters have.

    `size` counts the images of the whole batch, `left` the whole batches to come; `setting` is that of `Run.setting`.
    """
    accumulate, micro, scaler = now.optim.accumulate, run.micro, run.scaler

    def scaled(loss: torch.Tensor) -> torch.Tensor:  # the run keeps what is recorded, which must not keep the run
        mean = loss / accumulate
        return scaler.scale(mean) if scaler else mean

    if micro.size is None or len(mixed.x) <= micro.size:
        done = run.recorded(mixed, setting, left, run.forward, scaled, accumulate > 1)
        if done is not None:
            return done
    share = _share(run, now, mixed, size)

    def part(rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
        return run.forward(mixed.rows(rows))

    return micro.backward(run.model.module, len(mixed.x), part, scaled, share, run.team.size > 1)


def _share(run: Run, now: Recipe, mixed: Mixed, size: int) -> Share | None:
    """What some of this process's rows count for in the loss of the batch; None: their share of its rows.

    A user's loss is a mean over images, whatever is labelled of them; see `loss.user_loss`.
    """
    factor, by_labels = float(run.team.counts(size)), now.loss.name == "cross_entropy"
    if run.team.size == 1:
        return (lambda rows: share_of(mixed, counted(mixed), rows)) if by_labels else None
    if not by_labels:
        return lambda rows: factor * (rows.stop - rows.start) / size
    of = counted(mixed) * factor
    run.team.add(of)
    return lambda rows: factor * share_of(mixed, of, rows)
