"""Tables and report of a large study: time, CPU time and memory, beside reading what Ray Tune leaves with pandas.

    uv run python tests/bench/large.py --trials 1000 --epochs 100 --rounds 3 tables ray
    uv run python tests/bench/large.py --trials 3000 --epochs 27 --stopped report

A stand-in is made first: stub trials that train nothing go through the real ledger and journal, at random points, with
every number that a classification trial reports. `--stopped`: under ASHA, else each to its end. Every step runs in a
process of its own, in turns; memory is the most that the process had (its imports and Python included).

- tables: journal -> Parquet, as at the end of a run and in `cvtune export`
- report: the same, the analysis, the page and its pictures, as in `cvtune report`
- ray: the `result.json` files that Ray Tune's default logger writes for the same numbers, read by pandas into one frame
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cvtune import ASHA, FIFO, Budget, Choice, Confirm, LogUniform, Recipe, Study, Uniform, compact, space
from cvtune.durable import write_whole
from cvtune.epoch import METRICS
from cvtune.journal import Journal

if TYPE_CHECKING:  # what measures memory should load no more than the step that it measures
    from cvtune.ledger import Ledger

CLASSES = 10
SLOTS = 16
SPACE = space(
    {
        "augment.strength": Uniform(0, 1),
        "regularize.strength": Uniform(0, 1),
        "optim.lr": LogUniform(1e-3, 1e-1),
        "augment.mixup": Uniform(0, 0.4),
        "optim.name": Choice(["adamw", "sgd"]),
    }
)


def study(trials: int, epochs: int, stopped: bool) -> Study:
    return Study(
        name="large",
        objective="val_accuracy",
        recipe=Recipe().replace({"max_epochs": epochs}),
        space=SPACE,
        scheduler=ASHA() if stopped else FIFO(),
        budget=Budget(trials=trials),
        confirm=Confirm(top=0),
    )


def made(trials: int, epochs: int, stopped: bool, storage: Path) -> Path:
    """The folder of a study whose trials report made-up numbers, each in its turn."""
    from cvtune.ledger import Ledger
    from cvtune.phases import Phases

    settings, folder = study(trials, epochs, stopped), storage / "large"
    (folder / "journal").mkdir(parents=True)
    told = {"created": 1.0, "classes": [f"class {i}" for i in range(CLASSES)], "task": "classify"}
    write_whole(folder / "study.json", settings.to_json({**told, "versions": {"cvtune": "0.1.0"}, "command": []}))
    ledger = Ledger(settings, folder, Journal(folder / "journal" / "0001.jsonl"), {"CPU": 1.0})
    ledger.note("open", {"term": 1, "saw_term": 0, "saw": 0, "host": "", "pid": 0, "resources": {}, "cluster": {}})
    phases, rng, running, more = Phases(ledger), np.random.default_rng(0), list[str](), True
    while running or more:
        while more and len(running) < SLOTS:
            record = phases.next(SLOTS, None)
            more = record is not None
            running += [record.trial] if record is not None else []
        for trial in list(running):
            if (
                ledger.report(trial, numbers(ledger, trial, rng), {"attempt": 1, "node": "here", "pid": 1}).answer
                != "go"
            ):
                running.remove(trial)
    ledger.close()
    compact.catch_up(folder)  # as the driver does while a study runs
    return folder


def numbers(ledger: Ledger, trial: str, rng: np.random.Generator) -> dict[str, Any]:
    """A report whose score rises to a height that falls off from a peak over the two strengths."""
    record = ledger.history.trials[trial]
    recipe, step = record.recipe, record.steps + 1
    off = (recipe.augment.strength - 0.4) ** 2 + ((recipe.regularize.strength or 0.0) - 0.5) ** 2
    height = 0.9 - 0.5 * off - 0.05 * abs(np.log(recipe.optim.lr / 0.01))
    score = float(np.clip(height * (1 - 0.6 * np.exp(-step / 4)) + rng.normal(0, 0.01), 0.01, 0.99))
    found: dict[str, Any] = {name: float(rng.random()) for name in METRICS}
    by_class = {name: [float(p) for p in rng.random(CLASSES)] for name in ("val_recall", "val_iou")}
    found |= by_class | {"val_iou": None, "val_mean_iou": None, "val_dice": None, "val_map": None}
    found |= {"fold": None, "folds": None, "folds_mean": None, "folds_sd": None, "fold_scores": None}
    return found | {"step": step, "epoch": step, "val_accuracy": score, "parameters": 1, "micro_batch": 64}


def ray_files(folder: Path, target: Path) -> None:
    """What Ray Tune's JSON logger leaves of the same study: a folder per trial, a line per report with the config."""
    from cvtune import history

    for record in history.load(folder).trials.values():
        config = record.recipe.flat()
        (target / record.trial).mkdir(parents=True)
        with (target / record.trial / "result.json").open("w") as file:
            for event in record.epochs:
                told = {name: event.get(name) for name in METRICS} | {"trial_id": record.trial, "config": config}
                file.write(json.dumps({**told, "timestamp": event["t"], "training_iteration": event["step"]}) + "\n")


def tables(folder: Path, _ray: Path) -> None:
    from cvtune.results import write_tables

    write_tables(folder)


def report(folder: Path, _ray: Path) -> None:
    from cvtune.report.write import write_report

    write_report(folder, with_images=False)


def ray(_folder: Path, files: Path) -> None:
    import pandas as pd

    lines = (json.loads(line) for path in sorted(files.glob("*/result.json")) for line in path.open())
    pd.json_normalize(list(lines)).to_parquet(files / "all.parquet")


STEPS: dict[str, Callable[[Path, Path], None]] = {"tables": tables, "report": report, "ray": ray}


def measured(step: Callable[[Path, Path], None], folder: Path, files: Path, pipe: Any) -> None:
    start, cpu = time.perf_counter(), time.process_time()
    step(folder, files)
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    pipe.send((wall, cpu, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


def rounds(names: list[str], number: int, folder: Path, files: Path) -> Iterator[tuple[str, float, float, float]]:
    context = multiprocessing.get_context("spawn")
    for index in range(number):
        for name in names if index % 2 == 0 else reversed(names):
            mine, theirs = context.Pipe()
            process = context.Process(target=measured, args=(STEPS[name], folder, files, theirs))
            process.start()
            yield name, *mine.recv()
            process.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("steps", nargs="+", choices=STEPS)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--stopped", action="store_true")
    given = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    with tempfile.TemporaryDirectory(prefix="large-") as scratch:
        folder = made(given.trials, given.epochs, given.stopped, Path(scratch))
        files = Path(scratch) / "ray"
        if "ray" in given.steps:
            ray_files(folder, files)
        found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in given.steps}
        for name, *numbers in rounds(given.steps, given.rounds, folder, files):
            found[name].append(tuple(numbers))
            print(name, *(f"{value:.1f}" for value in numbers), flush=True)
        for name, runs in found.items():
            wall, cpu, memory = (statistics.median(values) for values in zip(*runs, strict=True))
            print(f"{name}: {wall:.1f} s, {cpu:.1f} CPU-seconds, {memory:.0f} MB at most")
        page = folder / "report.html"
        print(f"journal {sum(f.stat().st_size for f in (folder / 'journal').iterdir()) / 1e6:.0f} MB", end=", ")
        print(f"page {page.stat().st_size / 1e6:.1f} MB" if page.exists() else "no page")


if __name__ == "__main__":
    main()
