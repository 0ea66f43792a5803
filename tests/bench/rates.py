"""Full trainings at nine learning rates, a line of JSON each: the best one is what `cvtune lr` should suggest.

    uv run python tests/bench/rates.py sign_digits --epochs 8
    uv run cvtune lr sign_digits --set data.image_size=32 --set model.width=8

A small ResNet with AdamW and the built-in study's other values; validation scores after the last epoch.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import cv2
import numpy as np
import torch

from cvtune import study
from cvtune.data import open_dataset
from cvtune.train import Run, train

RATES = np.geomspace(1e-4, 0.2, 9)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("data", help="images, as `cvtune run` takes them")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    small = {"data.image_size": 32, "model.width": 8, "max_epochs": args.epochs}
    chosen = study.for_data(args.data).set(small)
    with tempfile.TemporaryDirectory() as cache:
        data = open_dataset(chosen.data, chosen.recipe.largest, Path(cache), None, 1)
        for seed in range(args.seeds):
            for rate in map(float, RATES):
                *_, last = train(Run(chosen.recipe.replace({"optim.lr": rate, "seed": seed}), data))
                scores = {"val_loss": last.val_loss, "val_accuracy": last.val_accuracy}
                print(json.dumps({"rate": rate, "seed": seed, **scores}), flush=True)


if __name__ == "__main__":
    main()
