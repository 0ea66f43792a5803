"""Do the verdicts of `cvtune/health.py` say what happened? Many short runs whose outcome is known, labelled and judged.

    uv run python tests/bench/health.py FOLDER            # trains, a line per run to FOLDER/runs.jsonl
    uv run python tests/bench/health.py FOLDER --score    # judges the runs of FOLDER/runs.jsonl, prints the table

It goes on where it was broken off.

Data are scikit-learn's digits and, with `--photos DIR`, the sets of DIR that `SETS` names. The labels were laid down
before the first run was made. They come from the outcome on test images that no verdict sees, and from a network's
loss before its first step, which no report holds:

- *Outcome* of a run: the lowest loss on the test images over its reports; that of the untrained network if it is lower
  or none is finite. In a group (same data, architecture, optimizer) the *optimum* is the rate, or strength, of the
  lowest mean outcome over seeds; s is the standard deviation over seeds at the optimum and its neighbors, pooled. A run
  is *worse* if its outcome exceeds the optimum's mean by more than two standard errors, 2 s sqrt(1 + 1/seeds), and by
  more than a tenth of what training gains (untrained minus optimum): the smallest effect that is of interest. Where
  only one of the two holds it is *unclear*, neither positive nor negative; the tables count such runs.
- learning rate too high: worse, and the rate lies above the optimum. Too low: worse, and below.
- diverged: a loss that is not finite, or at the end a loss on the training images, not augmented, above the untrained
  network's.
- augmentation too strong: worse, and the strength lies above the optimum.
- overfitting: not diverged, and the loss on the test images at the end exceeds the lowest over the reports by more than
  two standard errors of the difference image by image, and by more than a tenth of what training gains; unclear where
  only one of the two holds.
- underfitting: worse, and the loss on the training images at the end exceeds the mean at the optimum by more than a
  quarter of the way to the untrained network's.
- collapsed to the majority class: at the end one class is predicted for 90 % of the test images or more, of which it
  makes up less than 60 %.

Two of these lines were changed once, after the runs of `DEVELOPMENT` and before the first one of `TEST`: a large effect
within the noise was a negative before, though nothing is known of it, and a diverged run could count as overfitting.

Thresholds were set on the groups of `DEVELOPMENT` alone. Those of `TEST` are of other data (TrashNet at 24 instead of
16 px, its images drawn anew; patches of nuclei; drawn shapes), of two architectures and two optimizers that
`DEVELOPMENT` has not, and with Adam the rate stays at its peak. Runs of rates judge all verdicts but *augmentation too
strong*, runs of strengths that one, runs of few images *overfitting* (and no verdict that compares with an optimum).
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
    "adagrad": (1e-3, 5e-3, 2e-2, 6e-2, 0.2, 1.0, 10.0, 100.0),
}
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
WHOLE = ("rate", "strength", "few")  # arms
PLACES = (("fashion", "patches"), ("signs", "small_resnet"), ("fashion", "small_resnet"), ("signs", "patches"))
DEVELOPMENT = [
    (("digits", "small_resnet", "adamw"), WHOLE),
    (("trashnet", "small_resnet", "sgd"), WHOLE),
    *(
        ((*place, name), WHOLE if name == "adamw" else ("rate",))
        for name in ("rmsprop", "sgd", "adamw")
        for place in PLACES
    ),
]
FRESH = {"adagrad": ("rate", "few"), "adam": WHOLE, "sgd": ("rate",)}
TEST = [
    ((data, model, name), arms)
    for data in ("nuclei", "trashnet24", "shapes")
    for model in ("plain", "grouped")
    for name, arms in FRESH.items()
]
PARTS = {"development": DEVELOPMENT, "test": TEST}
GOOD = {"adamw": 1e-2, "rmsprop": 3e-3, "sgd": 0.3, "adam": 5e-3, "adagrad": 3e-2}  # where the rate is not swept
SEEDS = 3
RARE = 0.1  # share of ill runs for which the last column gives the precision
RELEVANT = 0.1  # of what training gains: the smallest difference that is of interest


@dataclasses.dataclass(frozen=True)
class Job:
    """One run to make. `arm`: rate, strength or few."""

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
        return (self.arm, self.data, self.model, self.optimizer)


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
    else:  # one after the other, for want of something to sweep
        yield from (Job(part, arm, *group, good, 0.0, SEEDS * seed + number) for number in range(3))


def recipe_of(job: Job) -> Recipe:
    few = job.arm == "few"
    values: dict[str, Any] = {
        **MODELS[job.model],
        "optim.name": job.optimizer,
        "optim.lr": job.rate,
        "optim.schedule": "constant" if job.optimizer == "adam" else "cosine",
        "augment.strength": job.strength,
        "augment.flip": "none",
        "regularize.strength": 0.0 if few else 0.3,
        "data.image_size": SETS[job.data][1],
        "data.batch_size": 16 if few else 32,
        "max_epochs": 24 if few else 10,
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


@dataclasses.dataclass(frozen=True)
class Group:
    """What the runs of one arm, data, architecture and optimizer came to."""

    value: float  # rate or strength of the optimum
    outcome: float  # its mean
    error: float  # standard error of one run minus that mean
    gain: float  # what training gains: mean outcome of the untrained networks minus `outcome`
    trained: float  # mean loss on the training images at the end, at the optimum
    spread: float  # standard error of one run minus `trained`
    untrained: float  # mean loss on the training images before the first step


def outcome(run: dict[str, Any]) -> float:
    """The lowest finite loss on the test images, the untrained network's included."""
    return min(x for x in (run["start"]["test"], *run["test"]) if math.isfinite(x))


def group_of(runs: list[dict[str, Any]]) -> Group:
    swept = "strength" if runs[0]["job"]["arm"] == "strength" else "rate"
    values = sorted({run["job"][swept] for run in runs})
    by_value = [[run for run in runs if run["job"][swept] == value] for value in values]
    means = [np.mean([outcome(run) for run in some]) for some in by_value]
    best = int(np.argmin(means))
    near, seeds = by_value[max(0, best - 1) : best + 2], len(by_value[best])
    ends = [[min(run["train"], run["start"]["train"]) if math.isfinite(run["train"]) else run["start"]["train"]
             for run in some] for some in near]  # fmt: skip

    def error(kinds: list[list[float]]) -> float:
        return float(np.sqrt(np.mean([np.var(kind, ddof=1) for kind in kinds]) * (1 + 1 / seeds)))

    start = {part: float(np.mean([run["start"][part] for run in runs])) for part in ("train", "test")}
    return Group(
        value=values[best],
        outcome=float(means[best]),
        error=error([[outcome(run) for run in some] for some in near]),
        gain=start["test"] - float(means[best]),
        trained=float(np.mean([run["train"] for run in by_value[best]])),
        spread=error(ends),
        untrained=start["train"],
    )


def labels(run: dict[str, Any], group: Group) -> dict[str, bool | None]:
    """Verdict -> whether it is right of a run by its outcome, None: unclear. Those that its arm judges, see above."""
    arm, end = run["job"]["arm"], run["train"]
    excess = outcome(run) - group.outcome
    worse = both(excess > 2 * group.error, excess > RELEVANT * group.gain)
    gap, gap_error = run["gap"]
    share, there = run["top"]
    diverged = not all(map(math.isfinite, (*run["test"], end))) or end > run["start"]["train"]
    risen = both(gap > 2 * gap_error, gap > RELEVANT * group.gain)
    found: dict[str, bool | None] = {
        "diverged": diverged,
        "overfitting": False if diverged else risen,
        "collapsed to the majority class": share >= 0.9 and there < 0.6,
    }
    value = run["job"]["strength" if arm == "strength" else "rate"]
    if arm == "rate":
        found["learning rate too high"] = worse if value > group.value else False
        found["learning rate too low"] = worse if value < group.value else False
        unfit = not math.isfinite(end) or (
            end - group.trained > max(2 * group.spread, 0.25 * (group.untrained - group.trained))
        )
        found["underfitting"] = False if not unfit else worse
    elif arm == "strength":
        found["augmentation too strong"] = worse if value > group.value else False
    return found


def both(beyond_noise: bool, of_interest: bool) -> bool | None:
    """Whether an effect is there; None, unclear, where only one of the two holds."""
    return beyond_noise if beyond_noise == of_interest else None


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
    parser.add_argument("--part", choices=("development", "test"), default="")
    parser.add_argument("--score", action="store_true")
    arguments = parser.parse_args()
    if arguments.score:
        show(arguments.folder, arguments.part or "test")
    else:
        make(arguments.folder, arguments.photos, arguments.part)
