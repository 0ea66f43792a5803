"""Test accuracy of the recipe that a study of ours confirmed, beside the textbook search's winner trained as long.

    uv run cvtune run workflows/photos.py --set data.source=DATA
    uv run python tests/bench/accuracy.py DATA studies/photos --seeds 5 --scratch accuracy

DATA holds train/<class>/*, val/<class>/* and test/<class>/*; both sides train on the same images and choose by the same
validation images. What is done lies in the scratch folder, so that the same command goes on after an interruption. The
peer's file is used as it is, see README.md.

Whether both train to the same accuracy shows without a search, with one recipe of the peer's model on both sides:

    uv run python tests/bench/accuracy.py DATA studies/peer_study --same 0.005 0.3 0.1 0.01

are the rate, the strength of augmentation, dropout and weight decay that the study was given; see README.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ruler import CPUS, HERE, Plan, copy_peers, environment, peer_command

from cvtune.history import load

sys.path.insert(0, str(HERE / "peers"))
IMAGE_SIZE = 64  # px
SEARCHED = ("lr", "strength", "dropout", "weight_decay")  # by the peer


def ours(study: Path) -> dict[str, Any]:
    """The winner of a confirmed study: its recipe's epochs and the test accuracy of each of its seeds.

    Raises:
        SystemExit: the study is not confirmed, or was compared by another metric.
    """
    told = study / "best" / "comparison.json"
    if not told.is_file():
        sys.exit(f"{told} is missing. Let the study end first, with a confirmation.")
    comparison, recipe = json.loads(told.read_text()), json.loads((study / "best" / "recipe.json").read_text())
    if comparison["metric"] != "accuracy":
        sys.exit(f"{study} compares by {comparison['metric']}. Run it with --set objective=val_accuracy.")
    winner = next(entry for entry in comparison["recipes"] if entry["label"] == comparison["winner"])
    return {"label": winner["label"], "epochs": recipe["max_epochs"], "test": winner["seeds"]}


def textbook_winner(data: Path, samples: int, max_epochs: int, scratch: Path) -> dict[str, Any]:
    """The settings of the trial with the best validation accuracy of a search by the peer, over all of its epochs."""
    if not (scratch / "result.json").is_file():
        scratch.mkdir(parents=True, exist_ok=True)
        plan = Plan(data, ("textbook",), samples, max_epochs, IMAGE_SIZE)
        copy_peers(scratch)
        command = peer_command(plan, "textbook", 0, scratch)
        subprocess.run(command, check=True, env=environment(scratch / "bytecode"))
    best, settings = -1.0, {}
    for folder in sorted((scratch / "ray").glob("*/train_trial_*")):
        for line in (folder / "result.json").read_text().splitlines():
            if (score := json.loads(line)["val_accuracy"]) > best:
                best, settings = score, json.loads((folder / "params.json").read_text())
    return {"val_accuracy": best, "config": settings}


def retrain(config: dict[str, Any], max_epochs: int, scratch: Path, seed: int) -> list[tuple[float, float]]:
    """Trains the peer's settings anew; validation and test accuracy after each epoch.

    The peer's function reports and keeps no model, so the model is taken from it when it reports.
    """
    done = scratch / f"retrained_{max_epochs}_{seed}.json"
    if not done.is_file():
        from ray import tune
        from textbook_ray import train_trial

        rows: list[tuple[float, float]] = []
        loader = None

        def report(metrics: dict[str, float]) -> None:
            nonlocal loader
            inside = sys._getframe(1).f_locals
            loader = loader or _loader(inside)
            rows.append((metrics["val_accuracy"], _accuracy(inside["model"], loader)))

        tune.report = report
        train_trial({**config, "seed": seed, "max_epochs": max_epochs})
        done.write_text(json.dumps(rows))
    return [tuple(row) for row in json.loads(done.read_text())]


def _loader(inside: dict[str, Any]) -> Any:
    """The test images as the peer reads its validation images."""
    from torch.utils.data import DataLoader

    return DataLoader(inside["Images"]("test", inside["plain"]), 128)


def _accuracy(model: Any, loader: Any) -> float:
    import torch

    with torch.no_grad():  # the peer has put the model into eval mode
        hits = [(model(x).argmax(1) == y).float() for x, y in loader]
    return float(torch.cat(hits).mean())


def lines(own: dict[str, Any], last: list[float], best: list[float]) -> Iterator[str]:
    """Mean, spread and seeds of each side, and how far ours lies above the better of the peer's two."""
    rows = {
        f"ours ({own['label']})": own["test"],
        "textbook, last epoch": last,
        "textbook, epoch of the best validation accuracy": best,
    }
    for name, values in rows.items():
        seeds = ", ".join(f"{value:.4f}" for value in values)
        yield f"{name:50}{np.mean(values):.4f}, standard deviation {np.std(values, ddof=1):.4f} ({seeds})"
    yield f"ours - the better of the textbook's: {np.mean(own['test']) - max(np.mean(last), np.mean(best)):.4f}"


def beside(own: list[list[float]], peers: list[list[float]]) -> Iterator[str]:
    """Validation accuracy of both sides' trainings: mean and standard error over them, of one epoch or of five."""
    for epochs in (1, 5):
        for side, curves in {"ours": own, "textbook": peers}.items():
            means = [np.mean(curve[-epochs:]) for curve in curves]
            said = f"{np.mean(means):.4f} +- {np.std(means, ddof=1) / len(means) ** 0.5:.4f} of {len(means)} trainings"
            yield f"{side}, validation, last {epochs} epoch{'s' * (epochs > 1)}: {said}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("data", type=Path, help="folder with train/, val/ and test/")
    parser.add_argument("study", type=Path, help="folder of our confirmed study")
    parser.add_argument("--seeds", type=int, default=5, help="trainings of the peer's winner")
    parser.add_argument("--samples", type=int, default=16, help="trials of the peer's search")
    parser.add_argument("--search-epochs", type=int, default=9, help="epochs of the peer's search")
    parser.add_argument("--epochs", type=int, help="epochs of its winner; default: those of ours")
    parser.add_argument("--scratch", type=Path, default=Path("accuracy"))
    parser.add_argument("--same", type=float, nargs=len(SEARCHED), metavar=SEARCHED, help="no search, but these")
    args = parser.parse_args()
    if args.same is None:
        found = textbook_winner(args.data.resolve(), args.samples, args.search_epochs, args.scratch.resolve())
    else:
        args.scratch.mkdir(parents=True, exist_ok=True)
        given = dict(zip(SEARCHED, args.same, strict=True))
        found = {"config": {**given, "data": str(args.data.resolve()), "image_size": IMAGE_SIZE, "batch_size": 64}}
    print(json.dumps(found), flush=True)
    epochs = args.epochs or ours(args.study)["epochs"]
    seeds = range(1, args.seeds + 1)  # the search trained with 0
    with ProcessPoolExecutor(CPUS) as pool:
        curves = list(pool.map(partial(retrain, found["config"], epochs, args.scratch), seeds))
    last, best = [c[-1][1] for c in curves], [max(c, key=lambda row: row[0])[1] for c in curves]
    print("\n".join(lines(ours(args.study), last, best)))
    if args.same is not None:  # all trainings of ours are the same then, those of the search too
        trained = [[epoch["val_accuracy"] for epoch in trial.epochs] for trial in load(args.study).trials.values()]
        print("\n".join(beside(trained, [[row[0] for row in curve] for curve in curves])))


if __name__ == "__main__":
    main()
