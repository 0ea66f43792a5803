"""Which option of ASHA finds the better recipe with the same epochs? Answered on recorded curves.

    uv run python tests/bench/fair_asha.py DATA --trials 48 --epochs 9 --set data.image_size=16

Records, once with the raw and once with the averaged weights (`optim.ema`), the full curves of random recipes that
nothing stops (a FIFO study each; run again, it continues). Then lets each variant of ASHA go through them in many
random orders until a third of all epochs is used. The regret of one order is the final score of the best recorded
recipe minus that of the trial which looked best. Printed are the mean regret per variant, and the difference to the
present default with a 95 % bootstrap interval over the orders; an option that does not lower it is no default.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from cvtune import ASHA
from cvtune.controls import simulate

ORDERS = 400
VARIANTS: dict[str, tuple[str, ASHA]] = {
    "default": ("raw", ASHA()),
    "grace_by_strength=1": ("raw", ASHA(grace_by_strength=1)),
    "grace_by_strength=2": ("raw", ASHA(grace_by_strength=2)),
    "strata=2": ("raw", ASHA(strata=2)),
    "strata=3": ("raw", ASHA(strata=3)),
    "grace_epochs=3": ("raw", ASHA(grace_epochs=3)),
    "optim.ema": ("averaged", ASHA()),
}


def record(data: str, trials: int, epochs: int, settings: list[str], storage: Path, which: str) -> Path:
    """Run the study of one kind of curves to its end; its folder."""
    fixed = [f"budget.trials={trials}", f"max_epochs={epochs}", "scheduler.name=fifo", "noise_seeds=0", "confirm.top=0"]
    fixed += ["optim.ema=0.98"] if which == "averaged" else []
    options = [part for setting in (*fixed, *settings) for part in ("--set", setting)]
    line = [sys.executable, "-m", "cvtune.cli", "run", data, "--name", f"curves-{which}", "--storage", str(storage)]
    subprocess.run([*line, *options], check=True, stdout=subprocess.DEVNULL)
    return storage / f"curves-{which}"


def curves_of(study: Path) -> tuple[np.ndarray, np.ndarray]:
    """Scores (trials, epochs) and mean strengths (trials,) of the trials that ran to their end."""
    table = pq.read_table(study / "tables" / "epochs.parquet").to_pandas().sort_values(["trial", "step"])
    scores = table.pivot(index="trial", columns="step", values="val_accuracy").dropna()
    first = table.groupby("trial").first().loc[scores.index]
    return scores.to_numpy(), first[["augment.strength", "regularize.strength"]].mean(axis=1).to_numpy()


def regrets(curves: np.ndarray, strengths: np.ndarray, scheduler: ASHA) -> np.ndarray:
    """Regret (ORDERS,) of one variant; the same orders for every variant."""
    rng, budget = np.random.default_rng(0), curves.size // 3
    best = curves[:, -1].max()
    orders = [rng.permutation(len(curves)) for _ in range(ORDERS)]
    return np.array(
        [best - simulate(curves, strengths, scheduler, budget, order).best_final_score_found for order in orders]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--trials", type=int, default=48)
    parser.add_argument("--epochs", type=int, default=9)
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE")
    parser.add_argument("--storage", type=Path, default=Path("studies/bench-fair-asha"))
    given = parser.parse_args()
    recorded = {
        which: curves_of(record(given.data, given.trials, given.epochs, given.set, given.storage, which))
        for which in ("raw", "averaged")
    }
    found = {name: regrets(*recorded[which], scheduler) for name, (which, scheduler) in VARIANTS.items()}
    rng = np.random.default_rng(1)
    for name, values in found.items():
        differences = values - found["default"]
        means = rng.choice(differences, (2000, ORDERS)).mean(axis=1)
        low, high = np.quantile(means, [0.025, 0.975])
        compared = (
            "" if name == "default" else f"  against the default {differences.mean():+.4f} ({low:+.4f} to {high:+.4f})"
        )
        print(f"{name:22} regret {values.mean():.4f}{compared}")


if __name__ == "__main__":
    main()
