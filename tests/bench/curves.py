"""Whole learning curves of recipes that nobody stopped: the table that searches are replayed on.

    uv run python tests/bench/curves.py digits FOLDER                  # trains; goes on where it was broken off
    uv run python tests/bench/curves.py digits FOLDER --table OUT.parquet

Recipes are drawn at random from the built-in space of the data (`cvtune run DATA` searches it); each is trained to the
end with three seeds, then the best ones (by their mean last score) with five more, so that what a search finds can be
told from luck. Every process trains with one thread and appends a line per run to a file of its own in FOLDER. Images
for validation are drawn once from all images, and at least 1,000, so that a score of 0.9 has a standard error of 0.01.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from cvtune import study
from cvtune.data import Dataset, Part, open_dataset
from cvtune.recipe import Recipe
from cvtune.train import Run, train

SETTINGS: dict[str, dict[str, Any]] = {  # by the name of the source
    "digits": {"data.image_size": 16, "model.width": 8},
    "sign_digits": {"data.image_size": 16, "model.width": 8, "augment.flip": "none"},
}
EPOCHS, RECIPES, SEEDS = 9, 300, 3
TOP, MORE_SEEDS = 30, 5
VAL = 1000  # images
METRICS = ("val_accuracy", "val_loss", "train_loss", "seconds")


@dataclasses.dataclass(frozen=True, order=True)
class Job:
    """One training. `recipe`: number of the draw."""

    seed: int
    recipe: int


def study_of(source: str) -> study.Study:
    """The built-in study of these images, small."""
    settings = {**SETTINGS[Path(source).name], "max_epochs": EPOCHS}
    return study.for_data(source).set(settings).settled("val_accuracy")


def values_of(source: str) -> list[dict[str, Any]]:
    """The draws, the same at every call: from all of the space alike, whatever it says is likely."""
    drawn, rng = study_of(source).space, np.random.default_rng(0)
    return [drawn.pick({name: float(rng.random()) for name in drawn.domains}) for _ in range(RECIPES)]


def images_of(source: str, cache: Path) -> Dataset:
    """All images in two parts, drawn once; in memory."""
    found = open_dataset(study_of(source).data, study_of(source).recipe.largest, cache, None, 1)
    images = [image for part in (found.train, found.val, found.test) for image in part.images]
    labels = np.concatenate([part.labels for part in (found.train, found.val, found.test)])
    order = np.random.default_rng(0).permutation(len(labels))

    def some(rows: np.ndarray) -> Part:
        return Part([np.array(images[int(row)]) for row in rows], labels[rows])

    return dataclasses.replace(found, train=some(order[VAL:]), val=some(order[:VAL]), test=some(order[:0]), store=None)


def run_of(job: Job, recipe: Recipe, data: Dataset) -> dict[str, Any]:
    """One training; its `seconds` are CPU time of its one thread, which a busy machine does not change much."""
    torch.set_num_threads(1)
    reports, before = [], time.process_time()
    for epoch in train(Run(recipe.replace({"seed": job.seed}), data, device="cpu")):
        reports.append({**epoch.numbers(), "seconds": time.process_time() - before})
        before = time.process_time()
    curves = {name: [report[name] for report in reports] for name in METRICS}
    return {**dataclasses.asdict(job), **curves}


def read(folder: Path) -> dict[Job, dict[str, Any]]:
    """What was trained so far; a line that was torn by a kill is left out."""
    found = {}
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text().split("\n"):
            if line.endswith("}"):
                run = json.loads(line)
                found[Job(run["seed"], run["recipe"])] = run
    return found


def jobs(done: dict[Job, dict[str, Any]]) -> Iterator[Job]:
    """What is left to train: every recipe with the first seeds, then the best ones with more."""
    first = [Job(seed, recipe) for seed in range(SEEDS) for recipe in range(RECIPES)]
    left = [job for job in first if job not in done]
    if not left:
        last = {r: np.mean([done[Job(s, r)]["val_accuracy"][-1] for s in range(SEEDS)]) for r in range(RECIPES)}
        best = sorted(last, key=lambda r: -last[r])[:TOP]
        left = [Job(SEEDS + s, r) for s in range(MORE_SEEDS) for r in best if Job(SEEDS + s, r) not in done]
    yield from left


def work(source: str, folder: Path, number: int, processes: int) -> None:
    """Every `processes`-th of what is left, until nothing is."""
    torch.set_num_threads(1)
    data, base = images_of(source, folder / "cache"), study_of(source).recipe
    values = values_of(source)
    for job in list(jobs(read(folder)))[number::processes]:
        line = json.dumps(run_of(job, base.replace(values[job.recipe]), data))
        with (folder / f"{number}.jsonl").open("a") as file:
            file.write(f"\n{line}")


def make(source: str, folder: Path, processes: int) -> None:
    """Both rounds: all recipes, then the best of them."""
    folder.mkdir(parents=True, exist_ok=True)
    images_of(source, folder / "cache")
    context = multiprocessing.get_context("spawn")
    for _ in range(2):
        workers = [context.Process(target=work, args=(source, folder, n, processes)) for n in range(processes)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()


def write(source: str, folder: Path, path: Path) -> None:
    """One row per report, with the recipe's drawn values."""
    values, rows = values_of(source), []
    for job, run in sorted(read(folder).items(), key=lambda pair: pair[0]):
        for epoch, numbers in enumerate(zip(*(run[name] for name in METRICS), strict=True), 1):
            told = dict(zip(METRICS, numbers, strict=True))
            rows.append({"recipe": job.recipe, "seed": job.seed, "epoch": epoch, **told, **values[job.recipe]})
    about = {"source": Path(source).name, "epochs": str(EPOCHS), "settings": json.dumps(SETTINGS[Path(source).name])}
    about["space"] = study_of(source).space.model_dump_json()
    table = pa.Table.from_pylist(rows).replace_schema_metadata(about)
    single = {c: table[c].cast(pa.float32()) for c in table.column_names if pa.types.is_floating(table[c].type)}
    kept = {name: single.get(name, table[name]) for name in table.column_names if name not in values[0]}
    pq.write_table(
        pa.table({**kept, **{name: table[name] for name in values[0]}}, metadata=about), path, compression="zstd"
    )
    print(f"{path}: {len(rows)} reports of {len(read(folder))} runs, {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--table", type=Path)
    given = parser.parse_args()
    if given.table:
        write(given.source, given.folder, given.table)
    else:
        make(given.source, given.folder, given.processes)
