"""Class by class: what is read of the winner's test predictions, for labels, tags and masks."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from cvtune.report.classes import ClassReport, of_winner

NAMES = ["cat", "dog", "owl"]


def report_of(tmp_path: Path, *seeds: dict[str, np.ndarray]) -> ClassReport:
    """The report of a winner with these stored arrays, one for each seed."""
    for number, arrays in enumerate(seeds):
        folder = tmp_path / "trials" / f"{number:05d}"
        folder.mkdir(parents=True)
        np.savez(folder / "test.npz", **arrays)
    columns = {
        "trial": np.array([f"{number:05d}" for number in range(len(seeds))], object),
        "role": np.array(["confirm"] * len(seeds), object),
        "label": np.array(["best"] * len(seeds), object),
    }
    tables: Any = SimpleNamespace(comparison={"winner": "best"}, provenance={"classes": NAMES}, column=columns.get)
    found = of_winner(tmp_path, tables)
    assert found is not None
    return found


def test_the_worst_masks_are_faulty_ones_and_never_empty_ones(tmp_path: Path) -> None:
    counts = np.zeros((4, 3, 4))  # right, predicted, there, loss
    counts[0, 0, :3] = 9, 10, 9  # IoU 0.9
    counts[1, :2, :3] = [[5, 5, 5], [1, 2, 3]]  # 1 and 0.25
    counts[2, 0, :3] = 7, 7, 7  # without a fault
    # the last image has no pixel of any class: all of it is ignored
    found = report_of(tmp_path, {"counts": counts})
    assert [error.sample for error in found.errors] == [1, 0]
    assert (found.errors[0].is_, found.errors[0].taken, found.errors[0].note) == ("IoU 0.62", "lowest: dog", "0.25")
    assert [one.name for one in found.classes] == ["dog", "cat"], "the lowest first; of owls there are none"


def test_the_worst_tags_are_those_told_wrong(tmp_path: Path) -> None:
    tags = np.array([[1, 0, 0], [0, 1, np.nan], [1, 1, 0]], np.float32)
    right = np.array([[0.9, 0.1, 0.2], [0.1, 0.8, 0.9], [0.3, 0.9, 0.1]], np.float32)
    found = report_of(tmp_path, {"tags": tags, "probabilities": right})
    assert [error.sample for error in found.errors] == [2], "what is unknown is no error"
    assert found.errors[0].taken == "dog" and found.errors[0].note == "cat: 30%"
    assert found.measure == "average precision"


def test_the_worst_labels_are_those_told_wrong(tmp_path: Path) -> None:
    labels = np.array([0, 1, 2])
    seed = np.array([[0.8, 0.1, 0.1], [0.7, 0.2, 0.1], [0.1, 0.1, 0.8]])
    found = report_of(tmp_path, {"labels": labels, "probabilities": seed}, {"labels": labels, "probabilities": seed})
    assert found.seeds == 2 and [error.sample for error in found.errors] == [1]
    assert found.mixed == ("100.0% of dog are taken for cat",)
