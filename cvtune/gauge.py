"""Measures for `resources.gpu = "auto"` what the hungriest recipe of a study takes on a GPU, alone and beside others.

`measure` runs as a Ray task that has a GPU to itself. What runs beside others are processes of this module
(`python -m cvtune.gauge`, job on the first line of standard input), each as a trial would be: same data, same CPUs.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from itertools import product
from typing import Any, Protocol

from cvtune import actor, errors, mps, packing
from cvtune.domains import Choice
from cvtune.errors import ClusterError, CvtuneError, told
from cvtune.packing import Need, Packing
from cvtune.recipe import Recipe, Value
from cvtune.study import Study, make

SECONDS = 3.0  # of training, for each number of trials at once
WARM, WARM_GPU = 4, 30  # batches that are not counted: workers start, kernels are tried, a step is recorded
KINDS = ("model.name", "model.norm", "optim.name")  # each of them may be the hungriest
SIZES = ("data.image_size", "data.batch_size", "data.micro_batch", "model.width", "optim.ema")  # more takes more


class Meter(Protocol):
    """What is asked of a GPU's memory; see `device.Cuda`."""

    def begin(self) -> None: ...
    def held(self) -> tuple[int, int, int]: ...


def hungry(study: Study) -> Iterator[tuple[str, Recipe]]:
    """Recipes of which one takes most memory, each with its name: base, candidates, the space's ends that take most."""
    yield "the base recipe", study.recipe
    for name, recipe in study.candidates.items():
        yield f"the candidate {name!r}", recipe
    domains = study.space.plain()
    kinds = [name for name in KINDS if isinstance(domains.get(name), Choice)]
    sizes = {name: max(domains[name].edges(), key=_large) for name in SIZES if name in domains}
    quantiles = {name: 1.0 if name in SIZES else 0.5 for name in study.space.domains}
    for values in product(*(domains[name].edges() for name in kinds)):
        given = dict(zip(kinds, values, strict=True)) | sizes
        point = {k: v for k, v in study.space.pick(quantiles, given).items() if k in (*KINDS, *SIZES)}
        if point:
            yield ", ".join(f"{name} = {value}" for name, value in point.items()), study.recipe.replace(point)


def measure(job: dict[str, Any], raw: Mapping[str, Any], cores: float) -> dict[str, Any]:
    """How many trials should share a GPU like the one here.

    Args:
        job: what every trial's process is told, see `engine.Setting.job`.
        raw: the study, as plain JSON.
        cores: CPU cores of a node for each of its GPUs.

    Returns:
        `trials` and `why` of a `Packing`; or `error` (a class of `errors`) and `message`.
    """
    try:
        return asdict(_measure(job, make(raw), cores))
    except CvtuneError as error:
        return {"error": type(error).__name__, "message": str(error)}
    except Exception as error:  # whatever user code or a GPU may raise
        return {"error": "ClusterError", "message": f"resources.gpu = 'auto' could not be measured: {told(error)}"}


def answer(found: Mapping[str, Any]) -> Packing:
    """The `Packing` that `measure` came to.

    Raises:
        CvtuneError: what it said.
    """
    if "error" in found:
        raise getattr(errors, found["error"], CvtuneError)(found["message"])
    return Packing(**found)


def _measure(job: dict[str, Any], study: Study, cores: float) -> Packing:
    import torch

    from cvtune.device import Cuda

    if not torch.cuda.is_available():
        raise ClusterError(
            "resources.gpu = 'auto': Ray offers a GPU on a node where torch finds none. `cvtune doctor` says more; "
            "--set resources.gpu=0 trains on CPUs."
        )
    actor.settle(job)
    actor.limit_threads(job["cpu"])
    need, recipe = hungriest(job, study, Cuda())
    most = packing.most_at_once(need, cores, job["cpu"])
    rates = together(job, recipe, packing.to_try(most))
    return packing.choose(need, rates, cores, job["cpu"])


def hungriest(job: dict[str, Any], study: Study, meter: Meter) -> tuple[Need, Recipe]:
    """What the recipe of `hungry` that takes most memory takes, and that recipe."""
    found = []
    for name, recipe in hungry(study):
        run = _run(job, recipe)
        meter.begin()
        batches_per_second(run, seconds=0.0)
        _evaluate_once(run)
        found.append((Need(name, *meter.held()), recipe))
    return max(found, key=lambda pair: pair[0].peak)


def together(job: dict[str, Any], recipe: Recipe, numbers: list[int]) -> dict[int, float]:
    """Batches per second of so many trials of a recipe at once, together; of one at least.

    Several share the GPU as trials will, by MPS where it is to be had; one has it to itself. What does not start (a GPU
    may serve one process only, or memory be short) is left out with all larger numbers.

    Raises:
        ClusterError: not even one trains.
    """
    rates = _together(job, recipe, [1])
    if not rates:
        raise ClusterError("resources.gpu = 'auto': no process could train on the GPU; give a number instead.")
    if several := [n for n in numbers if n > 1]:
        if job["mps"]:
            mps.join()
        try:
            rates |= _together({**job, "on_gpu": job["on_gpu"] | {"shared": True}}, recipe, several)
        finally:
            mps.leave()
    return rates


def _together(job: dict[str, Any], recipe: Recipe, numbers: list[int]) -> dict[int, float]:
    with contextlib.ExitStack() as open_processes:
        crowd = [open_processes.enter_context(_Beside(job, recipe)) for _ in range(max(numbers))]
        ready = [beside.ready() for beside in crowd]
        going = [beside for beside, is_ready in zip(crowd, ready, strict=True) if is_ready]
        return {n: sum(_rates(going[:n])) for n in numbers if n <= len(going)}


def batches_per_second(run: Any, seconds: float) -> float:
    """The rate at which a run trains, augmentation included; a few batches at least."""
    from cvtune import device
    from cvtune.evaluation import Stopped
    from cvtune.regularize import resolve
    from cvtune.train import one_pass

    asked, began, warm = 0, 0.0, WARM_GPU if run.device.type == "cuda" else WARM

    def stop() -> bool:
        nonlocal asked, began
        asked += 1
        if asked == warm + 1:
            device.wait()
            began = time.perf_counter()
        return asked > warm + 1 and time.perf_counter() - began >= seconds

    for seed in range(10**6):
        try:
            one_pass(run, resolve(run.recipe), seed, stop)
        except Stopped:
            break
    device.wait()
    return (asked - warm - 1) / (time.perf_counter() - began)


def _large(value: Value) -> float:
    return float(value) if isinstance(value, int | float) else float("inf")  # None: a batch is not divided


def _run(job: Mapping[str, Any], recipe: Recipe) -> Any:
    """A Run that trains as a trial of `recipe` would, at its largest size."""
    from cvtune.on_gpu import OnGpu
    from cvtune.train import Run

    alone = {"data.folds": None, "changes": (), "data.image_size": recipe.largest.image_size}
    once = recipe.replace({**alone, "data.report_images": None, "model.freeze_epochs": 0})
    data, workers = actor.opened(dict(job), once), max(0, int(job["cpu"]) - 1)
    return Run(once, data, workers=workers, on_gpu=OnGpu(**job["on_gpu"]))


def _evaluate_once(run: Any) -> None:
    """One batch of an evaluation, which may be larger than one of training."""
    from cvtune.evaluation import never, predictions

    next(predictions(run, run.data.val, never, None))


class _Beside:
    """A process that trains when told to."""

    def __init__(self, job: Mapping[str, Any], recipe: Recipe) -> None:
        line = json.dumps({"job": job, "recipe": recipe.model_dump(mode="json")})
        self._process = subprocess.Popen(
            [sys.executable, "-m", "cvtune.gauge"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.send(line)

    def __enter__(self) -> _Beside:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def send(self, line: str) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has died, which its answer tells
            print(line, file=self._process.stdin, flush=True)

    def ready(self) -> bool:
        return self.answer() is not None

    def answer(self) -> float | None:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        return float(line) if line else None


def _rates(crowd: list[_Beside]) -> list[float]:
    for beside in crowd:
        beside.send(str(SECONDS))
    return [beside.answer() or 0.0 for beside in crowd]


def main() -> None:
    """One of several trials at once: a number for each line, first 0 once it is ready."""
    with os.fdopen(os.dup(1), "w", buffering=1) as answers:
        os.dup2(2, 1)  # what user code prints is no answer
        given = json.loads(sys.stdin.readline())
        actor.settle(given["job"])
        actor.limit_threads(given["job"]["cpu"])
        run = _run(given["job"], Recipe.model_validate(given["recipe"]))
        batches_per_second(run, seconds=0.0)
        print(0.0, file=answers)
        for line in sys.stdin:
            print(batches_per_second(run, float(line)), file=answers)


if __name__ == "__main__":
    main()
