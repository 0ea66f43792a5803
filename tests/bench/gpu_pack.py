"""One GPU: several small trials at once, in processes, in streams of one process, or fused; beside a serial textbook.

    PYTHONPATH=. python tests/bench/gpu_pack.py --model small_resnet --at-once 1 2 4 8 16

Trial-epochs per hour of so many trials together, everything but the start included: augmentation, training, evaluation.
Processes are what cvtune offers (`resources.gpu=auto`), once as they are and once under NVIDIA's MPS (where it is
installed), which lets kernels of several processes run at the same time. `launching` is the most steps that one process
launches, whatever the GPU: several trials in one process share that.

    PYTHONPATH=. python tests/bench/gpu_pack.py --steps --ways processes mps streams fused

compares what else there is by training steps alone, images given, all in bfloat16 and recorded: processes in turns and
under MPS, one process that launches each trial's step in a stream of its own, and fused trials, whose parameters are
stacked so that one recorded step under vmap trains all. Trial-steps per second of so many together.
"""

from __future__ import annotations

import argparse
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
HALF = torch.bfloat16 if DEVICE == "cuda" else torch.float32
TURNS = ("processes", "mps")
WHOLE, STEPS = ("textbook", *TURNS, "launching"), (*TURNS, "streams", "fused")

Step = Callable[[Tensor, Tensor], tuple[Tensor, ...]]


def pieces_of(model: str, images: int) -> Iterator[Any]:
    """A trial, piece by piece: epochs of so many images, or ten steps at a time where `images` is 0."""
    if not images:
        return tens(step_of_one(model))
    recipe = recipe_of(model, "families", FOREVER)
    return iter(train(Run(recipe, made_up(images), DEVICE, 0, on_gpu=OnGpu(graph="on"))))


def rate(pieces: Iterator[Any], seconds: float) -> float:
    """Pieces per hour, for at least so many seconds and two pieces."""
    began, count = time.perf_counter(), 0
    while count < 2 or time.perf_counter() - began < seconds:
        next(pieces)
        count += 1
    return 3600 * count / (time.perf_counter() - began)


def beside(model: str, images: int, channel: Connection) -> None:
    """A process that trains when told to, for the seconds that it is told."""
    torch.set_num_threads(1)
    pieces = pieces_of(model, images)
    for _ in range(2):
        next(pieces)
    channel.send(0.0)
    while seconds := channel.recv():
        channel.send(rate(pieces, seconds))


def processes(model: str, images: int, numbers: list[int], seconds: float) -> dict[int, list[float]]:
    """Pieces per hour of so many at once, twice each."""
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


def network_of(model: str) -> torch.nn.Module:
    """In bfloat16, in training mode."""
    if model == "resnet18":
        return network().to(DEVICE, HALF).train()
    net = build_model(resolve(recipe_of(model, "families", 1)), CLASSES, SIZE).module
    return net.to(DEVICE, HALF).train()


def given_images(*lead: int) -> tuple[Tensor, Tensor]:
    shape = (*lead, BATCH, 3, SIZE, SIZE)
    images = torch.rand(shape, device=DEVICE, dtype=HALF)
    return images, torch.randint(CLASSES, (*lead, BATCH), device=DEVICE)


def recorded(step: Step, *given: Tensor) -> Callable[[], object]:
    """Launches a step as a whole, for images that stay where they are."""
    for _ in range(4):
        step(*given)
    if DEVICE == "cpu":
        return lambda: step(*given)
    recording = Recording(step, given)
    return lambda: recording(*given)


def updated(params: list[Tensor], slow: list[Tensor], grads: tuple[Tensor, ...]) -> None:
    """SGD with momentum."""
    with torch.no_grad():
        torch._foreach_mul_(slow, 0.9)
        torch._foreach_add_(slow, list(grads))
        torch._foreach_add_(params, slow, alpha=-1e-3)


def step_of_one(model: str) -> Callable[[], object]:
    net = network_of(model).to(memory_format=torch.channels_last)
    params = list(net.parameters())
    slow = [torch.zeros_like(p) for p in params]

    def step(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        loss = F.cross_entropy(net(x).float(), y)
        updated(params, slow, torch.autograd.grad(loss, params))
        return (loss.detach(),)

    x, y = given_images()
    return recorded(step, x.contiguous(memory_format=torch.channels_last), y)


def fused_step(model: str, number: int) -> Callable[[], object]:
    """One step of so many trials, whose parameters are stacked."""
    modules = [network_of(model) for _ in range(number)]
    params, buffers = torch.func.stack_module_state(modules)
    slow = [torch.zeros_like(p) for p in params.values()]

    def loss_of(params: Any, buffers: Any, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(modules[0], (params, buffers), (x,)).float(), y)

    together = torch.func.vmap(loss_of, randomness="different")

    def step(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        losses = together(params, buffers, x, y)
        stacked = list(params.values())
        updated(stacked, slow, torch.autograd.grad(losses.sum(), stacked))
        return (losses.detach(),)

    return recorded(step, *given_images(number))


def streams(model: str, number: int) -> Callable[[], object]:
    """One step of each of so many trials, each launched in a stream of its own by this one process."""
    steps = [step_of_one(model) for _ in range(number)]
    if DEVICE == "cpu":
        return lambda: [step() for step in steps]
    lanes = [torch.cuda.Stream() for _ in range(number)]

    def once() -> None:
        for lane, step in zip(lanes, steps, strict=True):
            with torch.cuda.stream(lane):
                step()

    return once


def tens(step: Callable[[], object]) -> Iterator[None]:
    """Ten steps at a time, until they are through."""
    while True:
        for _ in range(10):
            step()
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        yield


def launching(model: str, seconds: float) -> float:
    """Steps per second of a trial whose batches are so small that the GPU waits for the process that launches them."""
    steps, size = 500, 4
    recipe = recipe_of(model, "families", FOREVER).replace({"data.batch_size": size})
    epochs = iter(train(Run(recipe, made_up(steps * size), DEVICE, 0, on_gpu=OnGpu(graph="on"))))
    for _ in range(2):
        next(epochs)
    return steps * rate(epochs, seconds) / 3600


def by_steps(ways: list[str], model: str, numbers: list[int], seconds: float) -> None:
    for way in ways:
        found: dict[int, list[float]] = {}
        try:
            if way in TURNS:
                rates = side_by_side(way, model, 0, numbers, seconds)
                found = {number: [10 * r / 3600 for r in rates[number]] for number in rates}
            else:
                for number in numbers:
                    pieces = tens((streams if way == "streams" else fused_step)(model, number))
                    next(pieces)
                    found[number] = [number * 10 * rate(pieces, seconds) / 3600 for _ in range(2)]
        except RuntimeError as error:
            print(f"{way}: {error}", flush=True)
        for number, rates in found.items():
            print(f"{way} {number}: {', '.join(f'{r:.0f}' for r in rates)} trial-steps per second", flush=True)


def by_epochs(ways: list[str], model: str, images: int, numbers: list[int], seconds: float) -> None:
    for way in ways:
        if way == "textbook":
            epochs = textbook(images, FOREVER, model)
            next(epochs)
            print(f"textbook, serial: {rate(epochs, 2 * seconds):.0f} epochs per hour", flush=True)
            continue
        if way == "launching":
            print(f"launching: {launching(model, seconds):.0f} steps per second by one process", flush=True)
            continue
        if not (found := side_by_side(way, model, images, numbers, seconds)):
            continue
        mean = {number: sum(rates) / len(rates) for number, rates in found.items()}
        for number, rates in found.items():
            print(f"{way} {number}: {', '.join(f'{r:.0f}' for r in rates)} epochs per hour together", flush=True)
        chosen = min(n for n in found if found[n][0] >= ENOUGH * max(rates[0] for rates in found.values()))
        share = mean[chosen] / max(mean.values())
        print(f"{way}: the rule of resources.gpu=auto takes {chosen}: {share:.2f} of the best", flush=True)


def side_by_side(way: str, model: str, images: int, numbers: list[int], seconds: float) -> dict[int, list[float]]:
    """`processes`, by MPS or not; empty where it is not installed."""
    if way == "mps" and not mps.join():
        print("mps: it is not installed here", flush=True)
        return {}
    found = processes(model, images, numbers, seconds)
    mps.leave()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="small_resnet", help="'resnet18', or a name that cvtune knows")
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--at-once", type=int, nargs="*", default=[1, 2, 4, 8])
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--steps", action="store_true", help="training steps alone")
    parser.add_argument("--ways", nargs="*", help=f"of {', '.join(WHOLE)}; with --steps of {', '.join(STEPS)}")
    given = parser.parse_args()
    print(torch.cuda.get_device_name() if DEVICE == "cuda" else "no GPU: only to see that it runs", given.model)
    if given.steps:
        by_steps(given.ways or list(STEPS), given.model, given.at_once, given.seconds)
    else:
        by_epochs(given.ways or list(WHOLE), given.model, given.images, given.at_once, given.seconds)


if __name__ == "__main__":
    main()
