"""What health and strips cost: CPU-seconds of the quickstart's training with and without them.

    uv run python tests/bench/health_cost.py [--rounds 3] [--epochs 9]

Trains the quickstart's recipe in this process, on one thread, without Ray: without, with, with, without, in each round.
With: the loss before the first step, what is said of the probe set at each report, and a strip of each report as
`cvtune run` draws it. The validation images are evaluated in both.
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from cvtune import probe_set
from cvtune import train as training
from cvtune.actor import draw_strip
from cvtune.data import Dataset, open_dataset
from cvtune.recipe import Recipe

NOTHING = dict.fromkeys(("probe_flips", "probe_confidence", "probe_entropy", "probe_area"))
QUICKSTART = Path(__file__).resolve().parents[2] / "workflows" / "quickstart.py"


def seconds(recipe: Recipe, data: Dataset, strip: int, folder: Path | None) -> float:
    """CPU-seconds of one training; without health and strips where there is no folder for these."""
    run = training.Run(recipe, data, device="cpu")
    began = time.process_time()
    for _ in training.train(run):
        if folder:
            draw_strip(run, strip, folder)
    return time.process_time() - began


def without(recipe: Recipe, data: Dataset) -> float:
    said: Any = mock.patch.object(type(training.RULES[data.task]), "said", lambda *_: None)
    look = mock.patch.object(probe_set.ProbeSet, "look", lambda *_: NOTHING)
    with said, look, mock.patch.object(training, "clean_loss", lambda *_: None):
        return seconds(recipe, data, 0, None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=9)
    arguments = parser.parse_args()
    spec = importlib.util.spec_from_file_location("quickstart", QUICKSTART)
    assert spec and spec.loader
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    study, shares = module.study(), []
    recipe = study.recipe.replace({"max_epochs": arguments.epochs})
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        data = open_dataset(study.data, recipe.data, Path(folder) / "cache", None, 1)
        seconds(recipe.replace({"max_epochs": 1}), data, study.tracking.strip, Path(folder))  # what is slow once
        for _ in range(arguments.rounds):
            a = without(recipe, data)
            b, c = (seconds(recipe, data, study.tracking.strip, Path(folder)) for _ in range(2))
            d = without(recipe, data)
            shares.append((b + c) / (a + d) - 1)
            print(f"without {a:.2f} {d:.2f}, with {b:.2f} {c:.2f} CPU-s: {shares[-1]:+.1%}", flush=True)
    print(f"median {np.median(shares):+.1%}")


if __name__ == "__main__":
    main()
