"""One GPU: several small trials at once, in processes, in threads with streams, or fused; all beside a serial textbook.

    PYTHONPATH=. python tests/bench/gpu_pack.py --model small_resnet --at-once 1 2 4 8 16

Trial-epochs per hour of so many trials together, everything but the start included: augmentation, training, evaluation.
Processes are what cvtune offers (`resources.gpu=auto`), once as they are and once under NVIDIA's MPS (where it is
installed), which lets kernels of several processes run at the same time. Threads (each with a stream of its own)
train in one process. Fused trials are measured without augmentation and evaluation: stacked parameters under vmap, one
recorded step for all, beside that of one, in trial-steps per second and all in bfloat16: more than a trial could get.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.nn.functional as F
from gpu_loop import BATCH, CLASSES, DEVICE, SIZE, made_up, network, recipe_of, textbook
from torch import Tensor

from cvtune import mps
from cvtune.models import build_model
from cvtune.on_gpu import OnGpu
from cvtune.packing import ENOUGH
from cvtune.recorded import Recording
from cvtune.regularize import resolve
from cvtune.train import Run, train

FOREVER = 10**5  # epochs


def epochs_of(model: str, images: int) -> Iterator[Any]:
    recipe = recipe_of(model, "families", FOREVER)
    return iter(train(Run(recipe, made_up(images), DEVICE, 0, on_gpu=OnGpu(graph="on"))))


def rate(epochs: Iterator[Any], seconds: float) -> float:
    """Epochs per hour, for at least so many seconds and two epochs."""
    began, count = time.perf_counter(), 0
    while count < 2 or time.perf_counter() - began < seconds:
        next(epochs)
        count += 1
    return 3600 * count / (time.perf_counter() - began)


def beside(model: str, images: int, channel: Connection) -> None:
    """A process that trains when told to, for the seconds that it is told."""
    torch.set_num_threads(1)
    epochs = epochs_of(model, images)
    for _ in range(2):
        next(epochs)
    channel.send(0.0)
    while seconds := channel.recv():
        channel.send(rate(epochs, seconds))


def processes(model: str, images: int, numbers: list[int], seconds: float) -> dict[int, list[float]]:
    """Epochs per hour of so many at once, twice each."""
    context, found = get_context("spawn"), dict[int, list[float]]()
    pipes = [context.Pipe() for _ in range(max(numbers))]
    crowd = [context.Process(target=beside, args=(model, images, end), daemon=True) for _, end in pipes]
    for process in crowd:
        process.start()
    channels = [mine for mine, _ in pipes]
    for channel in channels:
        channel.recv()
    for number in [*numbers, *numbers[::-1]]:
        for channel in channels[:number]:
            channel.send(seconds)
        found.setdefault(number, []).append(sum(channel.recv() for channel in channels[:number]))
    for channel in channels:
        channel.send(0.0)
    for process in crowd:
        process.join()
    return found


def threads(model: str, images: int, numbers: list[int], seconds: float) -> dict[int, list[float]]:
    """The same in one process: a thread and a stream for each."""
    streams = [torch.cuda.Stream() for _ in range(max(numbers))]
    runs = [epochs_of(model, images) for _ in streams]
    for stream, epochs in zip(streams, runs, strict=True):
        with torch.cuda.stream(stream):  # one after the other: recording does not bear work beside it
            for _ in range(2):
                next(epochs)
    found = dict[int, list[float]]()

    def work(number: int, rates: list[float]) -> None:
        with torch.cuda.stream(streams[number]):
            rates.append(rate(runs[number], seconds))

    for number in [*numbers, *numbers[::-1]]:
        rates: list[float] = []
        crowd = [threading.Thread(target=work, args=(i, rates)) for i in range(number)]
        for thread in crowd:
            thread.start()
        for thread in crowd:
            thread.join()
        found.setdefault(number, []).append(sum(rates))
    return found


def fused(model: str, numbers: list[int], seconds: float) -> dict[int, float]:
    """Trial-steps per second of so many trials in one recorded step, images given."""
    recipe = recipe_of(model, "families", 1)

    def build() -> torch.nn.Module:
        if model == "resnet18":
            return network().to(DEVICE, torch.bfloat16)
        return build_model(resolve(recipe), CLASSES, SIZE).module.to(DEVICE, torch.bfloat16)

    found = {}
    for number in numbers:
        modules = [build().train() for _ in range(number)]
        params, buffers = torch.func.stack_module_state(modules)
        shape = (number, BATCH, 3, SIZE, SIZE)
        x, y = torch.rand(shape, device=DEVICE, dtype=torch.bfloat16), torch.randint(CLASSES, shape[:2], device=DEVICE)
        momentum = {name: torch.zeros_like(p) for name, p in params.items()}
        step = _fused_step(modules[0], params, buffers, momentum)
        for _ in range(4):
            step(x, y)
        recording = Recording(step, (x, y))
        torch.cuda.synchronize()
        began, count = time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            for _ in range(10):
                recording(x, y)
            torch.cuda.synchronize()
            count += 10
        found[number] = number * count / (time.perf_counter() - began)
    return found


def _fused_step(module: torch.nn.Module, params: Any, buffers: Any, momentum: Any) -> Callable[..., tuple[Tensor, ...]]:
    def loss_of(params: Any, buffers: Any, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(module, (params, buffers), (x,)).float(), y)

    together = torch.func.vmap(loss_of, randomness="different")

    def step(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        losses = together(params, buffers, x, y)
        grads = torch.autograd.grad(losses.sum(), list(params.values()))
        with torch.no_grad():
            slow = list(momentum.values())
            torch._foreach_mul_(slow, 0.9)
            torch._foreach_add_(slow, grads)
            torch._foreach_add_(list(params.values()), slow, alpha=-1e-3)
        return (losses.detach(),)

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="small_resnet", help="'resnet18', or a name that cvtune knows")
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--at-once", type=int, nargs="*", default=[1, 2, 4, 8])
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--ways", nargs="*", default=["textbook", "processes", "mps", "threads", "fused"])
    given = parser.parse_args()
    print(torch.cuda.get_device_name() if DEVICE == "cuda" else "no GPU: only to see that it runs", given.model)
    args = given.model, given.images, given.at_once, given.seconds
    for way in given.ways:
        if way == "textbook":
            epochs = textbook(given.images, FOREVER, given.model)
            next(epochs)
            print(f"textbook, serial: {rate(epochs, 2 * given.seconds):.0f} epochs per hour", flush=True)
        elif way == "fused":
            for number, steps in fused(given.model, given.at_once, given.seconds).items():
                print(f"fused {number}: {steps:.0f} trial-steps per second", flush=True)
        else:
            if way == "mps" and not mps.join():
                print("mps: it is not installed here", flush=True)
                continue
            found = (threads if way == "threads" else processes)(*args)
            mps.leave()
            mean = {number: sum(rates) / len(rates) for number, rates in found.items()}
            for number, rates in found.items():
                print(f"{way} {number}: {', '.join(f'{r:.0f}' for r in rates)} epochs per hour together", flush=True)
            chosen = min(n for n in found if found[n][0] >= ENOUGH * max(rates[0] for rates in found.values()))
            share = mean[chosen] / max(mean.values())
            print(f"{way}: the rule of resources.gpu=auto takes {chosen}: {share:.2f} of the best", flush=True)


if __name__ == "__main__":
    main()
