"""Several processes that train one trial together, each with a GPU of its own: data parallel by the rows of a batch.

Each process has the whole model, augments and trains its rows of every batch, and the gradients are added before a
step: what comes of it is the step of the whole batch. As with `data.micro_batch`, what is computed over images differs:
batch norm takes mean and variance of a process's rows, dropout draws other features. A process without rows of its own
(a last, small batch) repeats those of the first and counts nothing.

Built on torch.distributed: NCCL between GPUs, gloo between CPUs and for what is agreed on.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cvtune.microbatch import parts

PATIENCE = timedelta(days=365)  # a trial waits as long as its scheduler likes; who died is noticed at once all the same


class Team:
    """The processes of a trial, as one of them sees it. A team of one agrees with itself and adds nothing.

    Attributes:
        rank: of this process, from 0. The first reports and evaluates, the others follow it.
        size: processes.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    @property
    def device(self) -> str | None:
        """Of this process, for `train.Run`; None: it chooses."""
        return f"cuda:{self.rank}" if self.size > 1 and torch.cuda.is_available() else None

    def rows(self, count: int) -> slice:
        """The rows of a batch of `count` images that this process trains."""
        shares = parts(count, -(-count // self.size))
        return shares[self.rank if self.rank < len(shares) else 0]

    def counts(self, count: int) -> bool:
        """Whether these rows are this process's own."""
        return self.rank < len(parts(count, -(-count // self.size)))

    def order(self, *words: Any) -> None:
        """Of the first process: tell the others what comes next; see `follow`."""
        if self.size > 1:
            dist.broadcast_object_list([words], src=0)

    def heard(self) -> tuple[Any, ...]:
        """What the first process ordered; waits for it."""
        said: list[Any] = [None]
        dist.broadcast_object_list(said, src=0)
        return tuple(said[0])

    def agreed(self, stop: bool) -> bool:
        """What the first process says, so that all break off at the same batch. Does not wait for a GPU."""
        if self.size == 1:
            return stop
        flag = torch.tensor([stop], dtype=torch.uint8)
        dist.broadcast(flag, src=0)
        return bool(flag)

    def add(self, *sums: Tensor) -> None:
        """Make each tensor the sum of those of all processes, in place."""
        if self.size > 1:
            for one in sums:
                dist.all_reduce(one)

    def whole(self, rows: Tensor, count: int) -> Tensor:
        """(count, ...) of which each process has its own rows."""
        if self.size == 1:
            return rows
        full = torch.zeros((count, *rows.shape[1:]), dtype=rows.dtype, device=rows.device)
        if self.counts(count):
            full[self.rows(count)] = rows
        dist.all_reduce(full.view(-1).view(torch.uint8))  # all but one of them are zeros, so bytes add up exactly
        return full

    def add_gradients(self, module: nn.Module) -> None:
        """Make every gradient the sum of those of all processes."""
        if self.size > 1:
            _together([p.grad for p in module.parameters() if p.grad is not None])

    def average_buffers(self, *modules: nn.Module) -> None:
        """Make what modules have measured of their rows (batch norm's mean and variance) that of all rows."""
        if self.size > 1:
            buffers = [b for module in modules for b in module.buffers() if b.is_floating_point()]
            if buffers:
                _together(buffers)
                torch._foreach_div_(buffers, self.size)

    def same(self, module: nn.Module) -> None:
        """Give every process the weights and buffers of the first: user code may have drawn others."""
        if self.size > 1:
            for value in (*module.parameters(), *module.buffers()):
                sent = value.detach().contiguous()  # weights may lie channels last
                dist.broadcast(sent, src=0)
                value.detach().copy_(sent)


ALONE = Team()


def join(rank: int, size: int, folder: Path) -> Team:
    """Meet the other processes of a team in `folder`, which is empty before."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # all are on this machine, whose name may not resolve
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(rank)
    backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
    dist.init_process_group(backend, f"file://{folder / 'meet'}", timeout=PATIENCE, rank=rank, world_size=size)
    return Team(rank, size)


def leave() -> None:
    """End what `join` began."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _together(tensors: list[Any]) -> None:
    """Sums over all processes, in place, of many tensors at once."""
    for alike in _by_type(tensors):
        flat = torch.cat([one.reshape(-1) for one in alike])
        dist.all_reduce(flat)
        for one, summed in zip(alike, torch.split(flat, [one.numel() for one in alike]), strict=True):
            one.copy_(summed.view(one.shape))


def _by_type(tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    for dtype in dict.fromkeys(one.dtype for one in tensors):
        yield [one for one in tensors if one.dtype == dtype]
