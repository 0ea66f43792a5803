"""What the peers' epochs cost with nothing around them: a process per core, each training one recipe after the other.

Same model, pipeline and space; images decoded once; evaluated as cvtune does, on the validation images and on 256
training images. No search, no tuner, nothing written: every recipe is trained for a third of --max-epochs.

    python pure_loop.py DATA_DIR --samples 16 --max-epochs 9 --image-size 64 --seed 0 --out result.json
"""

from __future__ import annotations

import json
import multiprocessing
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from peers.optuna_pool import arguments
from peers.plain import Settings, load, train

LOOK_AT = 256


def recipes(samples: int, seed: int) -> list[Settings]:
    """Draws from the peers' space."""
    rng = np.random.default_rng(seed)
    return [
        Settings(
            lr=float(np.exp(rng.uniform(np.log(3e-4), np.log(3e-2)))),
            weight_decay=float(np.exp(rng.uniform(np.log(1e-5), np.log(1e-1)))),
            strength=float(rng.uniform(0, 1)),
            dropout=float(rng.uniform(0, 0.6)),
            seed=seed,
        )
        for _ in range(samples)
    ]


def work(data: Path, size: int, share: list[Settings], epochs: int) -> list[float]:
    """The validation accuracy after every epoch of a share of the recipes."""
    images = load(data, size)
    return [accuracy for settings in share for accuracy in train(images, settings, epochs, LOOK_AT)]


def main() -> None:
    args = arguments()
    drawn, epochs = recipes(args.samples, args.seed), -(-args.max_epochs // 3)
    shares = [(args.data, args.image_size, drawn[i :: args.cpus], epochs) for i in range(args.cpus)]
    with multiprocessing.get_context("spawn").Pool(args.cpus) as pool:
        told = [accuracy for share in pool.starmap(work, shares, chunksize=1) for accuracy in share]
    result = {"trials": len(drawn), "epochs": len(told), "best_val_accuracy": max(told), "errors": 0}
    args.out.write_text(json.dumps(result))


if __name__ == "__main__":
    main()
