"""How well rules like *too low* and *too strong* can do: thresholds searched without some runs, judged on these.

    uv run python tests/bench/health_search.py FOLDER

FOLDER/runs.jsonl is what `health.py` has made; its parts `development` and `test` are used. In turn the runs of one
data set, one architecture and one optimizer are left out; thresholds are searched on the others and judged on those.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from health import Job, is_complete, read
from health_labels import group_of, labels

from cvtune.health import Curves, verdicts

Counts = np.ndarray  # hit, missed, false alarm, rightly silent
LEFT_OUT = ("data set", "architecture", "optimizer")


@dataclass(frozen=True)
class Judged:
    """A run: its group, what is right of it, and the curves that a rule looks at."""

    group: tuple[str, ...]  # data set, architecture, optimizer
    right: dict[str, bool | None]
    curves: Curves
    too_high: bool


Rule = Callable[..., bool]


def too_low(run: Judged, slow: float, grown: float) -> bool:
    known = run.curves.last(run.curves.known)
    return known > slow * run.curves.chance and run.curves.growth < grown and not run.too_high


def too_strong(run: Judged, known: float, same: float, over: float) -> bool:
    train, val, clean = (run.curves.last(name) / run.curves.chance for name in ("train_loss", "val_loss", "clean_loss"))
    unfit = clean > known and val - clean < same
    return run.curves.last("augment_strength") > 0 and (unfit or train - val > over) and not run.too_high


SLOW = (0.05, 0.08, 0.1, 0.13, 0.15, 0.2, 0.25, 0.3, 0.38)
GROWN = (1.05, 1.08, 1.1, 1.13, 1.16, 1.2, 1.25, 1.3)
KNOWN, SAME = (0.3, 0.33, 0.36, 0.4, 0.45), (0.08, 0.1, 0.13)
OVER = (0.1, 0.12, 0.15, 0.17, 0.2, 0.25, 9.0)
SEARCHED: dict[str, tuple[Rule, tuple[tuple[float, ...], ...]]] = {
    "learning rate too low": (too_low, (SLOW, GROWN)),
    "augmentation too strong": (too_strong, (KNOWN, SAME, OVER)),
}


def judged(folder: Path) -> Iterator[Judged]:
    """The runs of complete groups whose losses are finite; of others no rule says anything."""
    groups: dict[tuple[str, ...], list[dict]] = {}  # type: ignore[type-arg]
    for run in read(folder):
        if run["job"]["part"] in ("development", "test"):
            groups.setdefault(Job(**run["job"]).group, []).append(run)
    for key, runs in groups.items():
        group = group_of(runs) if is_complete(runs) else None
        for run in runs if group else ():
            curves = Curves(run["reports"])
            high = any(verdict.name == "learning rate too high" for verdict in verdicts(run["reports"]))
            yield Judged(key[1:], labels(run, group), curves, high or curves.broken is not None)


def counted(runs: list[Judged], name: str, rule: Rule, values: tuple[float, ...]) -> Counts:
    counts = np.zeros(4, int)
    for run in runs:
        if (right := run.right.get(name)) is not None:
            said = rule(run, *values)
            counts[(0 if said else 1) if right else (2 if said else 3)] += 1
    return counts


def shares(counts: Counts) -> tuple[float, float]:
    """Recall and precision."""
    hit, missed, alarm, _ = counts
    return hit / max(1, hit + missed), hit / max(1, hit + alarm)


def main(folder: Path) -> None:
    runs = list(judged(folder))
    for name, (rule, axes) in SEARCHED.items():
        points = list(itertools.product(*axes))
        groups = sorted({run.group for run in runs})
        table = {(p, g): counted([r for r in runs if r.group == g], name, rule, p) for p in points for g in groups}
        for place, what in enumerate(LEFT_OUT):
            found = np.zeros(4, int)
            for value in sorted({group[place] for group in groups}):
                rest = [group for group in groups if group[place] != value]
                best = max(points, key=lambda p, rest=rest: min(shares(sum(table[p, g] for g in rest))))  # type: ignore
                found += sum(table[best, group] for group in groups if group[place] == value)
            print(
                f"{name}, one {what} left out: recall {shares(found)[0]:.2f}, precision {shares(found)[1]:.2f}", found
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    main(parser.parse_args().folder)
