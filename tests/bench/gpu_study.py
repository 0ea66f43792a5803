"""One GPU: whole studies under Ray, by how many trials share it: as `resources.gpu=auto` decides, and given numbers.

    uv run python tests/bench/gpu_study.py --shares 1 auto 0.125

Each share is one `cvtune run` of the study below, on made-up images of 32 px or a folder's (`--data`): trial-epochs per
hour from the first report to the last one, reports, checkpoints and changes of trial included, start and measurement
apart. Works without a GPU too, to see that it runs (`--shares 0 --images 300 --trials 2`).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cvtune import FIFO, Budget, Confirm, LogUniform, Recipe, Source, Study, Uniform, space
from cvtune.history import load
from cvtune.journal import read

HERE = Path(__file__).resolve().parent
IMAGES = "CVTUNE_BENCH_IMAGES"  # how many `images` makes
SIZE, CLASSES = 32, 10


def images() -> dict[str, Any]:
    """Noise, a fifth of it for validation."""
    count, rng = int(os.environ.get(IMAGES, "20000")), np.random.default_rng(0)
    sizes = {"train": count, "val": count // 5, "test": 100}
    return {
        part: (rng.integers(0, 256, (size, SIZE, SIZE, 3), np.uint8), rng.integers(0, CLASSES, size))
        for part, size in sizes.items()
    }


def study() -> Study:
    return Study(
        name="gpu_study",
        data=Source(source="python:gpu_study:images"),
        recipe=Recipe().replace({"data.image_size": SIZE, "data.batch_size": 128, "max_epochs": 15}),
        space=space(
            {
                "augment.strength": Uniform(0, 1),
                "regularize.strength": Uniform(0, 1),
                "optim.lr": LogUniform(1e-3, 3e-2),
            }
        ),
        scheduler=FIFO(),
        budget=Budget(trials=16),
        noise_seeds=0,
        confirm=Confirm(top=0),
    )


def run(share: str, given: argparse.Namespace, folder: Path) -> Iterator[str]:
    """One study; what is to be said of it."""
    values = {
        "resources.gpu": share,
        "budget.trials": given.trials,
        "max_epochs": given.epochs,
        "tracking.mode": "off",
        **({"data.source": given.data, "data.image_size": given.image_size} if given.data else {}),
    }
    settings = [part for name, value in values.items() for part in ("--set", f"{name}={value}")]
    folders = ["--storage", str(folder / "studies"), "--cache", str(folder / "cache")]
    command = [sys.executable, "-m", "cvtune.cli", "run", str(Path(__file__)), *folders, *settings]
    paths = [str(HERE), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, IMAGES: str(given.images), "PYTHONPATH": os.pathsep.join(paths)}
    began = time.time()
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        yield f"share {share}: exit {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return
    told = load(folder / "studies" / "gpu_study")
    times = sorted(event["t"] for trial in told.trials.values() for event in trial.epochs)
    rate = 3600 * (len(times) - 1) / (times[-1] - times[0])
    ends = sorted({str(trial.reason) for trial in told.trials.values()})
    yield (
        f"share {share}: {rate:.0f} trial-epochs per hour, {len(times)} epochs of {len(told.trials)} trials "
        f"({', '.join(ends)}), first report after {times[0] - began:.1f} s, whole run {time.time() - began:.1f} s"
    )
    for event in read(folder / "studies" / "gpu_study"):
        if event["kind"] == "share":
            yield f"  {event['trials']} on each GPU, said after {event['t'] - began:.1f} s: {event['why']}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shares", nargs="*", default=["1", "auto", "0.125"], help="values of resources.gpu")
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--images", type=int, default=20_000, help="made-up ones to train on")
    parser.add_argument("--data", help="what to train on instead, as data.source")
    parser.add_argument("--image-size", type=int, default=64, help="px, of --data")
    given = parser.parse_args()
    for share in given.shares:
        with tempfile.TemporaryDirectory() as folder:
            for line in run(share, given, Path(folder)):
                print(line, flush=True)


if __name__ == "__main__":
    main()
