"""Batches in parts: what comes of them is what the whole batch gives, and memory that runs out is met once."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cvtune.microbatch import MicroBatches, parts


class Tight(nn.Module):
    """A device with room for `room` images at once. It has no say on what it holds, so that fewer images fit."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room, self.calls = room, list[int]()

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append(len(x))
        if len(x) > self.room:
            raise torch.OutOfMemoryError(f"CUDA out of memory: {len(x)} images")
        return x


def network(room: int = 1000, norm: Callable[[int], nn.Module] = lambda c: nn.GroupNorm(2, c)) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), norm(8), nn.ReLU(), Tight(room), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 4),
    )  # fmt: skip


IMAGES = torch.randn(22, 3, 8, 8, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(22) % 4


def step(module: nn.Module, batches: MicroBatches, times: float = 1.0) -> tuple[Tensor, Tensor]:
    def forward(rows: slice) -> tuple[Tensor, Tensor]:
        logits = module(IMAGES[rows])
        return F.cross_entropy(logits, LABELS[rows]), logits

    return batches.backward(module, len(IMAGES), forward, lambda loss: loss * times)


def gradients(module: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in module.parameters() if p.grad is not None]


@pytest.mark.parametrize(("count", "size", "sizes"), [
    (22, 22, [22]), (22, 99, [22]),
    (22, 8, [7, 7, 8]), (22, 21, [11, 11]), (9, 4, [3, 3, 3]), (3, 2, [3]), (4, 2, [2, 2]),
])  # fmt: skip
def test_parts_are_even_and_none_is_a_single_image(count: int, size: int, sizes: list[int]) -> None:
    rows = parts(count, size)
    assert [part.stop - part.start for part in rows] == sizes
    assert [i for part in rows for i in range(count)[part]] == list(range(count))


@pytest.mark.parametrize("size", [2, 5, 8, 21])
def test_the_gradient_of_parts_is_that_of_the_whole_batch(size: int) -> None:
    whole, divided = network(), network()
    loss, logits = step(whole, MicroBatches(None), 0.5)
    in_parts, too = step(divided, MicroBatches(size), 0.5)
    torch.testing.assert_close(in_parts, loss)
    torch.testing.assert_close(too, logits)
    assert not logits.requires_grad and not loss.requires_grad
    for one, other in zip(gradients(whole), gradients(divided), strict=True):
        torch.testing.assert_close(other, one)


def test_a_whole_batch_is_differentiated_as_it_is() -> None:
    """Bit for bit what a plain backward pass gives."""
    plain, ours = network(), network()
    F.cross_entropy(plain(IMAGES), LABELS).backward()
    step(ours, MicroBatches(None))
    assert all(torch.equal(*pair) for pair in zip(gradients(plain), gradients(ours), strict=True))


def test_memory_that_runs_out_halves_the_parts_until_they_fit_and_nothing_counts_twice(
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole, tight = network(), network(room=6)
    for module in (whole, tight):  # gradients of an earlier batch of the same optimizer step
        step(module, MicroBatches(2))
    step(whole, MicroBatches(None))
    batches = MicroBatches(None)
    step(tight, batches)
    for one, other in zip(gradients(whole), gradients(tight), strict=True):
        torch.testing.assert_close(other, one)
    assert (batches.size, batches.used) == (5, 5)  # 22, 11, 5
    said = capsys.readouterr().out.splitlines()
    assert said == [
        "out of memory with 22 images at once: from here on 11 (data.micro_batch)",
        "out of memory with 11 images at once: from here on 5 (data.micro_batch)",
    ]


def test_batch_norms_averages_count_a_batch_that_did_not_fit_once() -> None:
    tight, small = network(room=11, norm=nn.BatchNorm2d), network(norm=nn.BatchNorm2d)
    step(tight, MicroBatches(None))
    step(small, MicroBatches(11))
    for one, other in zip(small.buffers(), tight.buffers(), strict=True):
        assert torch.equal(one, other)


def test_a_part_that_fails_half_way_through_leaves_no_gradient_behind() -> None:
    """The first part of a batch fits and is differentiated, the second does not."""
    whole, tight = network(), network()
    calls = 0

    def forward(rows: slice) -> tuple[Tensor, Tensor]:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        logits = tight(IMAGES[rows])
        return F.cross_entropy(logits, LABELS[rows]), logits

    MicroBatches(11).backward(tight, len(IMAGES), forward, lambda loss: loss)
    step(whole, MicroBatches(None))
    for one, other in zip(gradients(whole), gradients(tight), strict=True):
        torch.testing.assert_close(other, one)


def test_memory_that_runs_out_again_later_ends_the_run() -> None:
    tight, batches = network(room=11), MicroBatches(None)
    step(tight, batches)
    assert batches.size == 11
    step(tight, batches)
    tight[3].room = 4
    with pytest.raises(torch.OutOfMemoryError, match="11 images"):
        step(tight, batches)
    tight[3].room, fewest = 1, MicroBatches(None)
    with pytest.raises(torch.OutOfMemoryError, match="2 images"):
        step(tight, fewest)


def test_parts_may_count_by_something_else_than_their_images() -> None:
    """A mean over labelled pixels: a part with more of them counts for more."""
    labelled = torch.zeros(22, dtype=torch.bool)
    labelled[:5] = True
    whole, divided = network(), copy.deepcopy(network())

    def forward_of(module: nn.Module) -> Callable[[slice], tuple[Tensor, Tensor]]:
        def forward(rows: slice) -> tuple[Tensor, Tensor]:
            logits = module(IMAGES[rows])
            losses = F.cross_entropy(logits, LABELS[rows], reduction="none") * labelled[rows]
            return losses.sum() / labelled[rows].sum().clamp(min=1), logits

        return forward

    def share(rows: slice) -> Tensor:
        return labelled[rows].sum() / labelled.sum()

    MicroBatches(None).backward(whole, 22, forward_of(whole), lambda loss: loss, share)
    MicroBatches(4).backward(divided, 22, forward_of(divided), lambda loss: loss, share)
    for one, other in zip(gradients(whole), gradients(divided), strict=True):
        torch.testing.assert_close(other, one)
