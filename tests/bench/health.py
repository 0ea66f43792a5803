"""Do the verdicts of `cvtune/health.py` say what happened? Many short runs whose outcome is known, labelled and judged.

    uv run python tests/bench/health.py FOLDER --photos DIR     # trains, a line per run to FOLDER/runs.jsonl
    uv run python tests/bench/health.py FOLDER --score          # judges the runs of FOLDER/runs.jsonl, prints the table

It goes on where it was broken off. What each verdict means is defined in `health_labels.py`; images and networks are in
`health_sets.py`.

Thresholds were set on the groups of `DEVELOPMENT`, those of *too low* and *too strong* then on these and `TEST`; the
groups of `AGAIN` judge the latter. Those of `TEST` are of other data (MNIST, drawn letters), of
three architectures and two optimizers that `DEVELOPMENT` has not; with Adam the rate stays at its peak. Runs of rates
judge all verdicts but *augmentation too strong*, runs of strengths that one and *underfitting*, runs of few images
*overfitting*. Those that train four times as long say what can be reached, and more seeds of the highest rates are
judged by *diverged* and *collapsed* alone: they would make ill runs seem more frequent than a sweep has them.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from health_labels import group_of, labels
from health_sets import MODELS, SETS, few_of, opened
from torch import nn

from cvtune.data import Dataset, Part
from cvtune.evaluation import predict
from cvtune.health import RULES, verdicts
from cvtune.recipe import Recipe
from cvtune.train import Run, train

RATES = {  # at most 100, which the recipe allows
    "adamw": (2e-4, 2e-3, 1e-2, 5e-2, 0.3, 1.5, 8.0, 40.0),
    "rmsprop": (2e-4, 2e-3, 1e-2, 5e-2, 0.3, 1.5, 8.0, 40.0),
    "sgd": (2e-3, 2e-2, 0.1, 0.5, 2.0, 8.0, 30.0, 100.0),
    "adam": (2e-4, 1e-3, 5e-3, 2e-2, 0.1, 1.0, 5.0, 20.0, 50.0, 100.0),
    "plain_sgd": (2e-3, 2e-2, 0.1, 0.5, 2.0, 8.0, 30.0, 100.0),
    "adagrad": (1e-3, 5e-3, 2e-2, 6e-2, 0.2, 1.0, 10.0, 100.0),
}
STRENGTHS = (0.0, 0.15, 0.3, 0.5, 0.75, 1.0)
WHOLE = ("rate", "long", "strength", "few")  # arms
SHORT = ("rate", "long", "few")
HIGHEST, MORE_SEEDS = 3, 4  # the arm `high`: more seeds of the highest rates, for want of runs that diverge
DEVELOPMENT = [
    (("fashion", "small_resnet", "adamw"), WHOLE),
    (("signs", "patches", "sgd"), WHOLE),
    (("trashnet24", "plain", "adamw"), WHOLE),
    (("nuclei", "grouped", "rmsprop"), WHOLE),
    (("signs", "grouped", "adamw"), WHOLE),
    (("fashion", "plain", "sgd"), WHOLE),
    (("nuclei", "small_resnet", "sgd"), SHORT),
    (("trashnet24", "grouped", "sgd"), SHORT),
    (("fashion", "patches", "rmsprop"), SHORT),
    (("nuclei", "plain", "adamw"), SHORT),
    (("signs", "small_resnet", "rmsprop"), SHORT),
    (("trashnet24", "patches", "adamw"), SHORT),
]
FRESH = {"adagrad": ("rate", "long", "strength"), "adam": WHOLE, "sgd": SHORT}
TEST = [
    ((data, model, name), (*arms, "high"))
    for data in ("mnist", "letters")
    for model in ("separable", "shortcuts", "attention")
    for name, arms in FRESH.items()
]
AGAIN = [
    ((data, model, name), ("rate", "long", "strength") if name == "rmsprop" else ("rate", "long"))
    for data in ("digits", "waves")
    for model in ("pooled", "concatenated")
    for name in ("rmsprop", "plain_sgd")
]
PARTS = {"development": DEVELOPMENT, "test": TEST, "again": AGAIN}
GOOD = {
    "adamw": 1e-2,
    "rmsprop": 3e-3,
    "sgd": 0.05,
    "plain_sgd": 0.5,
    "adam": 5e-3,
    "adagrad": 3e-2,
}  # where the rate is not swept
EPOCHS, LONGER = 24, 4  # a run has 24 reports, one of the arm `long` four times as many
SEEDS = 3
RARE = 0.1  # share of ill runs for which the last column gives the precision


@dataclasses.dataclass(frozen=True)
class Job:
    """One run to make. `arm`: rate, high, long, strength or few."""

    part: str
    arm: str
    data: str
    model: str
    optimizer: str
    rate: float
    strength: float
    seed: int

    @property
    def key(self) -> str:
        return "|".join(map(str, dataclasses.astuple(self)))

    @property
    def group(self) -> tuple[str, ...]:
        return (self.part, self.data, self.model, self.optimizer)


def jobs() -> Iterator[Job]:
    """Every run, a whole group after the other."""
    for part, groups in PARTS.items():
        for group, arms in groups:
            for seed in range(SEEDS):
                yield from (job for arm in arms for job in of_arm(part, arm, group, seed))


def of_arm(part: str, arm: str, group: tuple[str, str, str], seed: int) -> Iterator[Job]:
    """The runs of one arm and seed of a group."""
    good = GOOD[group[2]]
    if arm == "rate":
        yield from (Job(part, arm, *group, rate, 0.0, seed) for rate in RATES[group[2]])
    elif arm == "strength":
        yield from (Job(part, arm, *group, good, strength, seed) for strength in STRENGTHS)
    elif arm == "high":
        seeds = range(SEEDS, SEEDS + MORE_SEEDS) if seed == 0 else ()
        yield from (Job(part, arm, *group, rate, 0.0, n) for n in seeds for rate in RATES[group[2]][-HIGHEST:])
    elif arm == "long":
        yield Job(part, arm, *group, good, 0.0, seed)
    else:  # one after the other, for want of something to sweep
        yield from (Job(part, arm, *group, good, 0.0, SEEDS * seed + number) for number in range(2))


def recipe_of(job: Job) -> Recipe:
    few = job.arm == "few"
    values: dict[str, Any] = {
        **MODELS[job.model],
        "optim.name": job.optimizer.removeprefix("plain_"),
        "optim.lr": job.rate,
        "optim.schedule": "constant" if job.optimizer == "adam" else "cosine",
        **({"optim.momentum": 0.0} if job.optimizer == "plain_sgd" else {}),
        "augment.strength": job.strength,
        "augment.flip": "none",
        "regularize.strength": 0.0 if few else 0.3,
        "data.image_size": SETS[job.data][1],
        "data.batch_size": 16,
        "max_epochs": EPOCHS * (LONGER if job.arm == "long" else 1),
        "seed": job.seed,
    }
    return Recipe().replace(values)


def run_of(job: Job, data: Dataset) -> dict[str, Any]:
    """Trains; what the labels and the verdicts need of it, as JSON."""
    data = few_of(data) if job.arm == "few" else data
    run, began = Run(recipe_of(job), data, device="cpu"), time.process_time()
    start = {part: float(losses(run, getattr(data, part)).mean()) for part in ("train", "test")}
    reports, tests = [], []
    for epoch in train(run):
        reports.append({name: value for name, value in epoch.numbers().items() if value is not None})
        tests.append(losses(run, data.test))
        if not epoch.is_finite():
            break
    logits, labels = predict(run, data.test)
    top = int(torch.bincount(logits.nan_to_num().argmax(1)).argmax())
    best = min(range(len(tests)), key=lambda i: float(np.nan_to_num(tests[i].mean(), nan=math.inf)))
    gap = tests[-1] - tests[best]
    return {
        "job": dataclasses.asdict(job),
        "reports": reports,
        "start": start,
        "test": [float(t.mean()) for t in tests],
        "train": float(losses(run, data.train).mean()),
        "gap": [float(gap.mean()), float(gap.std(ddof=1) / math.sqrt(len(gap)))],
        "top": [float((logits.argmax(1) == top).float().mean()), float((labels == top).float().mean())],
        "seconds": time.process_time() - began,
    }


def losses(run: Run, part: Part) -> np.ndarray:
    """Cross-entropy of each image, nats, (N,)."""
    logits, labels = predict(run, part)
    return nn.functional.cross_entropy(logits, labels, reduction="none").numpy().astype(float)


def make(folder: Path, photos: Path, only: str) -> None:
    """Train what FOLDER/runs.jsonl does not have yet, one thread."""
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    path, opened_sets = folder / "runs.jsonl", {}
    done = {Job(**r["job"]).key for r in read(folder)} if path.exists() else set()
    for job in jobs():
        if job.key in done or (only and job.part != only):
            continue
        if job.data not in opened_sets:
            opened_sets[job.data] = opened(job.data, photos, folder / "cache")
        line = json.dumps(run_of(job, opened_sets[job.data]))
        with path.open("a") as file:
            file.write(line + "\n")


def read(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "runs.jsonl").read_text().splitlines()]


def is_complete(runs: list[dict[str, Any]]) -> bool:
    """Whether every run of a group was made: one that was broken off has no optimum."""
    first = Job(**runs[0]["job"])
    return len(runs) == sum(job.group == first.group for job in jobs())


def score(folder: Path, part: str) -> list[tuple[str, int, int, int, int, int, int]]:
    """Of each verdict its name and the runs of complete groups: hit, missed, false alarm, rightly silent, unclear, of
    these said.
    """
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for run in read(folder):
        if run["job"]["part"] == part:
            groups.setdefault(Job(**run["job"]).group, []).append(run)
    counts = {rule.name: [0] * 6 for rule in RULES}
    for runs in filter(is_complete, groups.values()):
        group = group_of(runs)
        for run in runs:
            said = {verdict.name for verdict in verdicts(run["reports"])}
            for name, label in labels(run, group).items():
                place = 4 if label is None else (0 if name in said else 1) if label else (2 if name in said else 3)
                counts[name][place] += 1
                counts[name][5] += label is None and name in said
    return [(name, *found) for name, found in counts.items()]  # type: ignore[misc]


def wilson(hits: int, of: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927)."""
    if not of:
        return 0.0, 1.0
    z, share = 1.959964, hits / of
    middle, half = share + z * z / (2 * of), z * math.sqrt(share * (1 - share) / of + z * z / (4 * of * of))
    return (middle - half) / (1 + z * z / of), (middle + half) / (1 + z * z / of)


def show(folder: Path, part: str) -> None:
    """Print the table of a part as Markdown."""
    print("| verdict | runs with it | without | unclear (said) | recall | false alarms | precision | in | at 10 % |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, hit, missed, alarm, silent, unclear, said in score(folder, part):
        ill, well = hit + missed, alarm + silent
        shares = [interval(hit, ill), interval(alarm, well), interval(hit, hit + alarm)]
        recall, false = hit / max(1, ill), alarm / max(1, well)
        usual = RARE * recall / max(1e-9, RARE * recall + (1 - RARE) * false)
        cells = [name, ill, well, f"{unclear} ({said})", *shares, f"{ill / max(1, ill + well):.2f}", f"{usual:.2f}"]
        print("| " + " | ".join(map(str, cells)) + " |")


def interval(hits: int, of: int) -> str:
    """A share with its 95 % interval."""
    low, high = wilson(hits, of)
    return f"{hits / of:.2f} ({low:.2f} to {high:.2f})" if of else "-"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--photos", type=Path, default=Path("data"))
    parser.add_argument("--part", choices=tuple(PARTS), default="")
    parser.add_argument("--score", action="store_true")
    arguments = parser.parse_args()
    if arguments.score:
        show(arguments.folder, arguments.part or "test")
    else:
        make(arguments.folder, arguments.photos, arguments.part)
