"""A search against TrivialAugment with default regularization, at equal compute: who is better on the test images?

    uv run python tests/bench/trivial.py DATA OUT.jsonl [--seeds 5] [--trials 16] [--set max_epochs=9]

Per seed, a search of the built-in study (its default scheduler and searcher, four trials at once by the replay's clock,
without noise trials and confirmation) trains for some epochs in all. Its best trial, as it stands, is compared with
two uses of as many epochs for TrivialAugment (Mueller & Hutter 2021), everything else at its default: one training
that takes them all, and as many trainings of max_epochs with seeds of their own as fit, of which the best by
validation counts. Training is real, in this process, on one thread; the same command goes on where it was broken off.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cvtune import study
from cvtune.data import Dataset, open_dataset
from cvtune.evaluation import score_test
from cvtune.forecast import Game, on_paper
from cvtune.history import TrialRecord
from cvtune.recipe import Recipe, Regularize
from cvtune.study import Study, parse_assignment
from cvtune.train import Run, train

WORKERS = 4


class Trained:
    """A world in which trials are trained, each epoch of them taking one unit of time."""

    def __init__(self, data: Dataset) -> None:
        self.runs: dict[str, Run] = {}
        self._data, self._reports = data, dict[str, Any]()

    def opening(self, record: TrialRecord) -> float:
        return 1.0

    def between(self, record: TrialRecord) -> float:
        return 1.0

    def report(self, record: TrialRecord, step: int) -> dict[str, Any]:
        if step == 1:
            self.runs[record.trial] = Run(record.recipe, self._data, device="cpu")
            self._reports[record.trial] = train(self.runs[record.trial])
        return dict(next(self._reports[record.trial]).numbers())


def study_of(source: str, seed: int, trials: int, settings: dict[str, Any]) -> Study:
    """The built-in study, the search alone."""
    alone = {"noise_seeds": 0, "confirm.top": 0, "seed": seed, "budget.trials": trials}
    return study.for_data(source).set({**alone, **settings}).settled("val_accuracy")


def search(asked: Study, data: Dataset) -> tuple[int, float, float]:
    """Epochs that a search trains, and the best trial's best validation accuracy and its test accuracy."""
    world = Trained(data)
    with tempfile.TemporaryDirectory(prefix="cvtune-trivial-") as folder:
        ledger = on_paper(asked, Path(folder))
        Game(ledger, WORKERS, world).play()
    best = ledger.history.best(asked)
    assert best is not None
    record, epoch = best
    return ledger.history.epochs, epoch["val_accuracy"], tested(world.runs[record.trial])


def alone(recipe: Recipe, data: Dataset) -> tuple[float, float]:
    """Last validation accuracy and test accuracy of one recipe that is trained to its end."""
    run = Run(recipe, data, device="cpu")
    *_, last = train(run)
    return last.val_accuracy, tested(run)


def tested(run: Run) -> float:
    scores, _ = score_test(run)
    assert isinstance(scores["test_accuracy"], float)
    return scores["test_accuracy"]


def compared(asked: Study, data: Dataset) -> dict[str, float]:
    """Test accuracies of one seed."""
    epochs, _, found = search(asked, data)
    plain = asked.recipe.model_copy(update={"regularize": Regularize()}).replace({"augment.policy": "trivial"})
    _, long = alone(plain.replace({"max_epochs": epochs}), data)
    seeds = [asked.trial(index, {}).seed for index in range(epochs // plain.max_epochs)]
    short = max(alone(plain.replace({"seed": seed}), data) for seed in seeds)
    return {"seed": asked.recipe.seed, "epochs": epochs, "search": found, "one_long": long, "best_of_short": short[1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE")
    given = parser.parse_args()
    torch.set_num_threads(1)
    settings = {"max_epochs": 9, **dict(map(parse_assignment, given.set))}
    rows = list(map(json.loads, given.out.read_text().splitlines())) if given.out.exists() else []
    first = study_of(given.source, 0, given.trials, settings)
    data = open_dataset(first.data, first.recipe.largest, None, None, 1)
    for seed in range(len(rows), given.seeds):
        rows.append(compared(study_of(given.source, seed, given.trials, settings), data))
        with given.out.open("a") as file:
            file.write(json.dumps(rows[-1]) + "\n")
    print(f"{len(data.test.labels)} test images, {len(rows)} seeds, {np.mean([r['epochs'] for r in rows]):.0f} epochs")
    for name in ("search", "one_long", "best_of_short"):
        values = np.array([row[name] for row in rows])
        error = values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else np.nan
        print(f"{name:14} {values.mean():.4f} +- {error:.4f}")


if __name__ == "__main__":
    main()
