"""A batch in parts, where it does not fit into memory as a whole: the step that comes of it is the whole batch's.

The gradients of the parts are added, each by the share of the batch that it holds, so the optimizer sees their mean
over the batch as before. What is computed over images differs: batch norm takes the mean and variance of a part. Group
norm or none (`model.norm`) knows no difference. Dropout draws other features, from the same generators.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from cvtune.data.listing import IGNORE
from cvtune.mixing import Mixed

FEWEST = 2  # images in a part: batch norm cannot train on one

Forward = Callable[
    [slice], tuple[Tensor, Tensor]
]  # rows of the batch -> mean loss (scalar) and logits (n, ...) of them
Share = Callable[[slice], Tensor | float]


class MicroBatches:
    """Runs batches forward and backward, in parts of at most `size` images.

    The first time that memory does not suffice the batch is done again in parts of half the size, and of half of that
    if need be, until it fits; the size then stays. Memory that runs out later in the run ends it: something grows.

    Attributes:
        size: most images of a part; None: a batch is not divided.
        used: images in the largest part of the last batch; 0 before the first.
    """

    def __init__(self, size: int | None, divides: bool = True) -> None:
        """`divides`: whether running out of memory makes the parts smaller; else it ends the run at once."""
        self.size, self.used = size, 0
        self._before, self._caught = _Before(), not divides

    def backward(
        self,
        module: nn.Module,
        count: int,
        forward: Forward,
        scaled: Callable[[Tensor], Tensor],
        share: Share | None = None,
        is_part: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Adds the gradients of one batch to those that the parameters have.

        Args:
            module: whose parameters take gradients. Its buffers (batch norm's averages) and gradients are put back
                before a batch is done again, so that nothing counts twice.
            count: images of the batch.
            forward: called for each part.
            scaled: what is differentiated in the place of a loss: divided by `optim.accumulate`, scaled for float16.
            share: of the batch's loss that a part's mean counts for; None: its share of the images. They add up to 1.
            is_part: these images are a part of the batch that `share` speaks of; other processes have the others.

        Returns:
            The batch's mean loss (scalar) and its logits (count, ...), both detached.

        Raises:
            torch.OutOfMemoryError: not even parts of two images fit, or memory ran out before in this run.
        """
        if not self._caught:
            self._before.keep(module)
        caught = False
        while True:
            try:
                made = self._in_parts(count, forward, scaled, share, is_part)
                self._caught = self._caught or caught
                return made
            except torch.OutOfMemoryError:
                if self._caught or self.used <= FEWEST:
                    raise
            # Here and not in the handler: until it ends, the exception keeps the tensors of the failed pass alive.
            caught = True
            self._before.restore(module)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self.size = max(FEWEST, self.used // 2)
            print(f"out of memory with {self.used} images at once: from here on {self.size} (data.micro_batch)")

    def _in_parts(
        self, count: int, forward: Forward, scaled: Callable[[Tensor], Tensor], share: Share | None, is_part: bool
    ) -> tuple[Tensor, Tensor]:
        rows = parts(count, self.size or count)
        self.used = max(part.stop - part.start for part in rows)
        losses, logits = [], []
        for part in rows:
            loss, made = forward(part)
            if len(rows) > 1 or is_part:
                loss = loss * (share(part) if share else (part.stop - part.start) / count)
            torch.autograd.backward(scaled(loss))
            losses.append(loss.detach())
            logits.append(made.detach())
        return torch.stack(losses).sum(), torch.cat(logits)


def share_of(mixed: Mixed, of: Tensor, rows: slice) -> Tensor:
    """What the mean loss of some rows counts for in the loss of a batch, 0..1, a scalar on its device.

    It is their share of the labels, of the tags that are known, or of the pixels that are not `IGNORE`. Where masks or
    tags are mixed, of both targets alike, which is exact if the two know as much.

    Args:
        of: `counted` of the whole batch.
    """
    a, b = counted(mixed.rows(rows)) / of.clamp(min=1)
    return torch.lerp(b, a, mixed.share)


def counted(mixed: Mixed) -> Tensor:
    """float64 (2,): how much is known of `y_a` and of `y_b`, see `share_of`."""
    return torch.stack([_counted(mixed.y_a), _counted(mixed.y_b)]).double()


def _counted(targets: Tensor) -> Tensor:
    if targets.is_floating_point():
        return (~targets.isnan()).sum()
    return (targets != IGNORE).sum() if targets.dtype == torch.uint8 else torch.ones_like(targets).sum()


class _Before:
    """Gradients and buffers before a batch. Gradients are there only where several batches make one step."""

    def __init__(self) -> None:
        self._grads: list[Tensor | None] = []
        self._buffers: list[Tensor] = []

    @torch.no_grad()
    def keep(self, module: nn.Module) -> None:
        self._grads = [None if p.grad is None else p.grad.clone() for p in module.parameters()]
        live = list(module.buffers())
        if not self._buffers:
            self._buffers = [torch.empty_like(buffer) for buffer in live]
        if live:
            torch._foreach_copy_(self._buffers, live)  # one kernel, not one for each of a batch norm's three

    @torch.no_grad()
    def restore(self, module: nn.Module) -> None:
        for parameter, grad in zip(module.parameters(), self._grads, strict=True):
            parameter.grad = grad
        if self._buffers:
            torch._foreach_copy_(list(module.buffers()), self._buffers)


def parts(count: int, size: int) -> list[slice]:
    """`count` images in as few parts of at most `size` as there can be, their sizes apart by one at most.

    None is of a single image: three images in parts of two stay together.
    """
    number = max(1, min(-(-count // size), count // FEWEST))
    edges = [i * count // number for i in range(number + 1)]
    return [slice(start, stop) for start, stop in itertools.pairwise(edges)]
