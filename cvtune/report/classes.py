"""Classes: what the winner gets right class by class on the test images, what it mixes up, and its worst errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cvtune.analysis.tables import Tables
from cvtune.ranking import average_precisions

ERRORS = 16  # images that are shown
MIXED = 10  # pairs of classes that are listed
SQUARE = 24  # classes up to which the whole table of confusions is shown

Floats = npt.NDArray[np.float64]
Stored = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class ClassScore:
    """One class: its test images (of masks: pixels), the score, and what it is usually taken for instead."""

    name: str
    support: int
    score: float
    mistaken: str = ""


@dataclass(frozen=True)
class WorstImage:
    """One test image: its number in the test part, what it is, what it was taken for, and how far off that was."""

    sample: int
    is_: str
    taken: str
    note: str


@dataclass(frozen=True)
class ClassReport:
    """What single classes come to, of the winner: mean over its seeds.

    Attributes:
        label: of the winning recipe.
        seeds: trained models that it is averaged over.
        measure: what the score of a class is, in words.
        classes: the lowest score first.
        confusion: (K, K) share of each class (rows) taken for each (columns), in percent; None with too many classes
            to show, with tags and with masks.
        names: K names, in the order of the data.
        mixed: the most frequent confusions, in words.
        errors: the worst images, the worst first.
    """

    label: str
    seeds: int
    measure: str
    classes: tuple[ClassScore, ...]
    confusion: tuple[tuple[float, ...], ...] | None
    names: tuple[str, ...]
    mixed: tuple[str, ...]
    errors: tuple[WorstImage, ...]


def of_winner(folder: Path, tables: Tables) -> ClassReport | None:
    """From what is kept of the winner's models on the test images; None before they were scored."""
    label = str((tables.comparison or {}).get("winner", ""))
    stored = list(_stored(folder, tables, label))
    if not stored:
        return None
    names = [str(name) for name in tables.provenance.get("classes") or ()]
    if "counts" in stored[0]:
        return _of_masks(label, stored, names)
    if "tags" in stored[0]:
        return _of_tags(label, stored, names)
    return _of_labels(label, stored, names)


def _stored(folder: Path, tables: Tables, label: str) -> Sequence[Stored]:
    """The arrays of each seed of a recipe that was scored: see `stored` of the sums in `tasks/`."""
    found = []
    columns = ("trial", "role", "label")
    for trial, role, its_label in zip(*(tables.column(name).tolist() for name in columns), strict=True):
        is_seed = its_label == label if role == "confirm" else role == "noise" and label == "default"
        path = folder / "trials" / str(trial) / "test.npz"
        if label and is_seed and path.is_file():
            with np.load(path, allow_pickle=False) as content:
                found.append({name: content[name] for name in content.files})
    return found


def _of_labels(label: str, stored: Sequence[Stored], names: Sequence[str]) -> ClassReport:
    truth = stored[0]["labels"].astype(int)
    chance = np.mean([one["probabilities"] for one in stored], axis=0)
    count = chance.shape[1]
    names = _named(names, count)
    table = np.zeros((count, count))
    for one in stored:
        np.add.at(table, (truth, one["probabilities"].argmax(1)), 1 / len(stored))
    support = np.bincount(truth, minlength=count)
    share = table / np.maximum(support, 1)[:, None]
    off = share - np.diag(np.diag(share))
    classes = [
        ClassScore(names[k], int(support[k]), float(share[k, k]), _mistaken(off[k], names))
        for k in range(count)
        if support[k]
    ]
    confusion = tuple(map(tuple, (100 * share).round(1).tolist())) if count <= SQUARE else None
    mixed = _mixed(off, names)
    errors = tuple(_worst(truth, chance, names))
    ordered = tuple(sorted(classes, key=lambda one: one.score))
    return ClassReport(label, len(stored), "recall", ordered, confusion, tuple(names), mixed, errors)


def _mistaken(off: Floats, names: Sequence[str]) -> str:
    most = int(off.argmax())
    return f"{names[most]} ({off[most]:.1%})" if off[most] > 0 else ""


def _mixed(off: Floats, names: Sequence[str]) -> tuple[str, ...]:
    order = np.argsort(-off, axis=None, kind="stable")[:MIXED]
    pairs = [(int(k) // len(names), int(k) % len(names)) for k in order]
    return tuple(f"{off[a, b]:.1%} of {names[a]} are taken for {names[b]}" for a, b in pairs if off[a, b] > 0)


def _worst(truth: npt.NDArray[np.int64], chance: Floats, names: Sequence[str]) -> list[WorstImage]:
    """The images whose right class got the least probability, of those that were told wrong."""
    right, guess = chance[np.arange(len(truth)), truth], chance.argmax(1)
    wrong = np.flatnonzero(guess != truth)
    order = wrong[np.argsort(right[wrong], kind="stable")][:ERRORS]
    return [
        WorstImage(int(i), names[truth[i]], names[guess[i]], f"{chance[i, guess[i]]:.0%} against {right[i]:.0%}")
        for i in order
    ]


def _of_tags(label: str, stored: Sequence[Stored], names: Sequence[str]) -> ClassReport:
    tags = stored[0]["tags"]
    names = _named(names, tags.shape[1])
    there, known = tags >= 0.5, ~np.isnan(tags)
    ones = np.ones((len(tags), 1))
    scores = np.mean([average_precisions(one["probabilities"], tags, ones)[:, 0] for one in stored], axis=0)
    chance = np.mean([one["probabilities"] for one in stored], axis=0)
    missed = np.where(known, np.abs(np.where(there, 1.0, 0.0) - chance), 0.0)
    worst = [i for i in np.argsort(-missed.max(1), kind="stable")[:ERRORS] if missed[i].max() >= 0.5]
    errors = [_worst_tags(int(i), there[i], chance[i], int(missed[i].argmax()), names) for i in worst]
    classes = [ClassScore(names[k], int(there[:, k].sum()), float(scores[k])) for k in np.flatnonzero(there.any(0))]
    ordered = tuple(sorted(classes, key=lambda one: one.score))
    return ClassReport(label, len(stored), "average precision", ordered, None, tuple(names), (), tuple(errors))


def _worst_tags(i: int, there: npt.NDArray[np.bool_], chance: Floats, k: int, names: Sequence[str]) -> WorstImage:
    said = ", ".join(name for name, p in zip(names, chance, strict=True) if p > 0.5) or "none"
    true = ", ".join(name for name, t in zip(names, there, strict=True) if t) or "none"
    return WorstImage(i, true, said, f"{names[k]}: {chance[k]:.0%}")


def _of_masks(label: str, stored: Sequence[Stored], names: Sequence[str]) -> ClassReport:
    """Intersection over union; counts are (N, K, 4): right, predicted, there, loss."""
    counts = np.mean([one["counts"][..., :3] for one in stored], axis=0)
    names = _named(names, counts.shape[1])
    right, union = counts[..., 0], counts[..., 1] + counts[..., 2] - counts[..., 0]
    pixels = counts[..., 2].sum(0)
    scores = right.sum(0) / np.maximum(union.sum(0), 1)
    classes = [ClassScore(names[k], int(pixels[k]), float(scores[k])) for k in np.flatnonzero(pixels)]
    each = np.where(union > 0, right / np.maximum(union, 1), 1.0)  # a class that is neither there nor told is no error
    mean = each.sum(1, where=union > 0) / np.maximum((union > 0).sum(1), 1)
    faulty = np.flatnonzero((each < 1).any(1))
    errors = []
    for i in faulty[np.argsort(mean[faulty], kind="stable")][:ERRORS]:
        low = int(each[i].argmin())
        errors.append(WorstImage(int(i), f"IoU {mean[i]:.2f}", f"lowest: {names[low]}", f"{each[i, low]:.2f}"))
    ordered = tuple(sorted(classes, key=lambda one: one.score))
    measure = "intersection over union"
    return ClassReport(label, len(stored), measure, ordered, None, tuple(names), (), tuple(errors))


def _named(names: Sequence[str], count: int) -> list[str]:
    return list(names) if len(names) == count else [str(k) for k in range(count)]
