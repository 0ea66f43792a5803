"""A rehearsal of a study on one node: its images, its code and weights, and whether augmentation keeps up.

Runs as a Ray actor with the share of a trial, so that it sees what a trial there would see.
"""

from __future__ import annotations

import contextlib
import math
import os
import platform
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cvtune.checks import Check, judged
from cvtune.errors import CvtuneError, DataError, told
from cvtune.study import Study, make

MEASURE_S = 2.0  # of augmentation, and of training
ENOUGH = 0.9  # share of the model's own speed at which augmentation keeps up

Facts = dict[str, Any]  # plain JSON


class Rehearsal:
    """What a trial of a study finds on this node.

    Args:
        study: as plain JSON.
        roots: as in `engine.run_study`.
        cwd: the driver's working directory, for relative paths; where it does not exist this process stays in its own.
    """

    def __init__(self, study: Mapping[str, Any], cache: str | None, roots: tuple[str, ...], cwd: str) -> None:
        with contextlib.suppress(OSError):
            os.chdir(cwd)
        sys.path[:0] = [root for root in roots if root not in sys.path]
        self._study, self._cache = make(study), cache and Path(cache)

    def ready(self) -> str:
        """The name of this node; answers once Ray has found room for the process."""
        return platform.node()

    def run(self) -> Facts:
        """`code` (reference -> SHA-256), `fingerprint`, `images` and `speed`; `error` where it came no further."""
        facts: Facts = {}
        try:
            facts["code"] = _code(self._study)
            data = self._open()
            facts |= {"fingerprint": data.fingerprint, "images": len(data.train.labels)}
            _load_weights(self._study, data)
            facts["speed"] = measure(self._study, data)
        except CvtuneError as error:
            facts["error"] = str(error)
        except Exception as error:  # whatever user code or an unlucky machine may raise
            facts["error"] = told(error)
        return facts

    def _open(self) -> Any:
        from cvtune.actor import limit_threads
        from cvtune.data import cache_folder, open_dataset

        limit_threads(self._study.resources.cpu)
        threads = max(1, int(self._study.resources.cpu))
        return open_dataset(
            self._study.data,
            self._study.recipe.largest,
            cache_folder(self._cache or None),
            self._study.resources.cache_bytes,
            threads,
        )


def measure(study: Study, data: Any, seconds: float = MEASURE_S) -> Facts:
    """Images per second: `made` by one CPU that augments, `needed` by the model when batches cost nothing."""
    from cvtune import device
    from cvtune.evaluation import never
    from cvtune.regularize import resolve
    from cvtune.train import Run, one_pass

    recipe = study.recipe.replace(
        {"data.report_images": None, "changes": (), "data.image_size": study.recipe.largest.image_size}
    )
    run, now = Run(recipe, data, on_gpu=study.resources.on_gpu), resolve(recipe)
    batches: list[Any] = []
    began, count = time.perf_counter(), 0
    fewest = recipe.optim.accumulate + 1  # one step of the optimizer, and the loader's first batch is slow
    while time.perf_counter() - began < seconds or len(batches) < fewest:
        before = count
        for batch in run.loader.batches(run.used, recipe.data.batch_size, run.pipeline, seed=len(batches)):
            count += len(batch.targets)
            batches = [*batches, batch._replace(images=batch.images.clone())][-fewest:]  # a GPU reuses that memory
            if time.perf_counter() - began >= seconds and len(batches) >= fewest:
                break
        if count == before:
            raise DataError(f"{len(run.used)} training images make no batch: at least two are needed.")
    device.wait()
    made = count / (time.perf_counter() - began)
    again: Any = _Again(batches)
    run.loader = again
    one_pass(run, now, 0, never)  # a GPU tries kernels at first
    again.until = time.perf_counter() + seconds
    began = time.perf_counter()
    done = one_pass(run, now, 0, never)
    needed = done.images / (time.perf_counter() - began)
    return {"made": made, "needed": needed, "device": run.device.type, "batch": recipe.data.batch_size}


class _Again:
    """Stands in for a Loader: the same batches over and over until a moment, at least once each."""

    def __init__(self, batches: list[Any]) -> None:
        self._batches, self.until, self.waited = batches, 0.0, 0.0

    def batches(self, *_: Any) -> Iterator[Any]:
        yield from self._batches
        while time.perf_counter() < self.until:
            yield from self._batches


def data_check(facts: Mapping[str, Facts]) -> Check:
    """Every node reads the same images and finds the same code, weights included. `facts`: node -> what `run` gave."""
    red = [f"{node}: {found['error']}" for node, found in facts.items() if "error" in found]
    for what, key in (("images", "fingerprint"), ("code", "code")):
        seen = {node: str(found[key]) for node, found in facts.items() if key in found}
        usual = Counter(seen.values()).most_common(1)[0][0] if seen else ""
        red += [f"{node} has other {what} than the other nodes" for node, value in seen.items() if value != usual]
    images = max((found.get("images", 0) for found in facts.values()), default=0)
    code = max((len(found.get("code", {})) for found in facts.values()), default=0)
    own = f", {code} functions of your own" if code else ""
    fine = f"{images} training images{own}, on {len(facts)} node{'s' if len(facts) > 1 else ''}"
    remedy = "Give every node the same images, weights files and modules under the same paths"
    return judged("data and code", fine, red, remedy)


def speed_check(study: Study, facts: Mapping[str, Facts]) -> Check:
    """Whether `resources.cpu` CPUs augment as fast as the model trains, on the node where they are furthest behind."""
    measured = {node: found["speed"] for node, found in facts.items() if "speed" in found}
    if not measured:
        return Check("images per second", "skipped", "nothing could be measured")
    node = min(measured, key=lambda name: reached(measured[name], study.resources.cpu) / measured[name]["needed"])
    speed = measured[node]
    made, needed, cpus = speed["made"], speed["needed"], study.resources.cpu
    found = f"{node}: one CPU augments {made:.0f} images/s, the model trains {needed:.0f} images/s on {speed['device']}"
    if speed["device"] == "cpu":  # both share the CPUs of the trial
        return Check(
            "images per second", "ok", f"{found}; augmentation takes {needed / (made + needed):.0%} of the time"
        )
    rate = reached(speed, cpus)
    if rate >= ENOUGH * needed:
        return Check("images per second", "ok", f"{found}; {cpus:g} CPUs keep up")
    enough = enough_cpus(speed)
    return Check(
        "images per second",
        "note",
        f"{found}; with {cpus:g} CPUs a trial reaches {rate:.0f} images/s",
        f"Give a trial more CPUs: --set resources.cpu={enough} would suffice",
    )


def reached(speed: Mapping[str, Any], cpus: float) -> float:
    """Images per second of a trial on a GPU with so many CPUs: one trains, the others augment beside it."""
    workers = max(0, int(cpus) - 1)  # as in `actor`
    made, needed = float(speed["made"]), float(speed["needed"])
    return min(workers * made, needed) if workers else 1 / (1 / made + 1 / needed)


def enough_cpus(speed: Mapping[str, Any]) -> int:
    """The fewest CPUs with which augmentation keeps up with a GPU."""
    return math.ceil(ENOUGH * float(speed["needed"]) / float(speed["made"])) + 1


def _code(study: Study) -> dict[str, str]:
    from cvtune.usercode import load_function, source_hash

    for reference in study.user_code:
        load_function(reference, "user code")
    return {reference: source_hash(reference) for reference in study.user_code}


def _load_weights(study: Study, data: Any) -> None:
    """Build each architecture that the study may ask for, with its weights, so that a missing file shows here."""
    from cvtune.models import build_model
    from cvtune.preflight import corners
    from cvtune.regularize import resolve

    recipes = {repr(recipe.model): recipe for _, recipe in corners(study) if recipe.model.pretrained}
    for recipe in recipes.values():
        build_model(resolve(recipe), len(data.classes), recipe.largest.image_size, data.task, data.kind.channels)
