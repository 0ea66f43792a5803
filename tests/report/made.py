"""Study folders made up for the tests of the report: journal, tables and predictions as a run leaves them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cvtune.analysis.findings import Axis, Dots, Findings, Importance, Interval, Point, Ridge, Surface
from cvtune.best import write_best
from cvtune.epoch import METRICS
from cvtune.history import load
from cvtune.journal import Journal
from cvtune.recipe import Recipe
from cvtune.results import write_tables
from cvtune.space import Choice, LogUniform, Uniform, space
from cvtune.study import Study

ODD = "<img src=x onerror=\"document.title='broken'\"> & \"quoted\" 'é' </script>"
CLASSES = (ODD, "cat", "dog", "a rather long name of a class that nobody would want to read twice")
EPOCHS, IMAGES = 9, 200
FAILED = {5: "diverged", 11: "code_error"}


def study_of(name: str = "made", trials: int = 40) -> Study:
    """Both strengths, a rate and a choice."""
    axes = {
        "augment.strength": Uniform(0, 1),
        "regularize.strength": Uniform(0, 1),
        "optim.lr": LogUniform(1e-4, 1e-1),
        "optim.name": Choice("adamw", "sgd"),
    }
    fields: dict[str, Any] = {"objective": "val_accuracy", "noise_seeds": 0}
    return Study(name=name, recipe=Recipe(max_epochs=EPOCHS), space=space(axes), **fields).set(
        {"budget.trials": trials}
    )


def write_study(
    root: Path, name: str = "made", trials: int = 40, tested: bool = True, complete: bool = True, noise: int = 0
) -> Path:
    """A study folder. Its best setting lies where both strengths add up to 0.7, at a rate of 0.003.

    `noise`: trials of the default recipe, where none is tested.
    """
    study, folder, rng = study_of(name, trials), root / name, np.random.default_rng(trials)
    (folder / "journal").mkdir(parents=True)
    about = {"classes": CLASSES, "images": {"train": 700, "val": 100, "test": IMAGES if tested else 0}}
    (folder / "study.json").write_text(study.to_json({"augment_mapping": 1, "regularize_mapping": 1, **about}))
    journal = Journal(folder / "journal" / "0001.jsonl")
    journal.append("open", {"term": 1, "host": "here"})
    scores = {index: _trial(journal, study, index, rng) for index in range(trials)}
    if tested:
        _confirm(journal, study, folder, max(scores, key=lambda i: scores[i]), trials, rng)
    for place in range(0 if tested else noise):
        _epochs(journal, _proposed(journal, study, trials + place, "noise", "", {}), 0.8, EPOCHS)
    if complete:
        journal.append("close", {"why": "complete", "ended": f"budget.trials = {trials}"})
    journal.close()
    history = load(folder)
    write_tables(folder, history)
    write_best(study, folder, history)
    for trial in ("00000", "00001", "00002"):
        media = folder / "trials" / trial / "1" / "media"
        media.mkdir(parents=True)
        Image.new("P", (400, 60)).save(media / "1.png")
    return folder


def _trial(journal: Journal, study: Study, index: int, rng: np.random.Generator) -> float:
    """One searched trial, stopped after 1, 3 or 9 epochs, or failed. Returns its best score."""
    a, r, u = rng.random(3)
    values = {"augment.strength": a, "regularize.strength": r, "optim.lr": 10 ** (3 * u - 4)}
    values["optim.name"] = ("adamw", "sgd")[index % 2]
    final = 0.95 - 0.5 * (a + r - 0.7) ** 2 - 0.1 * (u - 0.5) ** 2 + rng.normal(0, 0.004)
    name, reached = (
        _proposed(journal, study, index, "search", "", values),
        (1, 3, EPOCHS)[min(2, int(3 * final**4 / 0.8))],
    )
    if index in FAILED:
        journal.append("end", {"trial": name, "reason": FAILED[index], "message": "ValueError: made up", "acts": []})
        return -1.0
    return _epochs(journal, name, final, reached)


def _proposed(journal: Journal, study: Study, index: int, role: str, label: str, values: dict[str, Any]) -> str:
    name = f"{index:05d}"
    recipe = study.trial(index, values).model_dump(mode="json", exclude_defaults=True)
    about = {"role": role, "label": label, "values": values, "recipe": recipe, "waiting": False}
    journal.append("trial", {"trial": name, "index": index, **about})
    journal.append("segment", {"trial": name, "segment": 0, "attempt": 1, "step": 0, "node": "n", "pid": 1})
    return name


def _epochs(journal: Journal, name: str, final: float, reached: int) -> float:
    score = 0.0
    for epoch in range(1, reached + 1):
        score = final * (1 - math.exp(-0.9 * epoch))
        plain = {name: None if doc.kind is list else 0.5 for name, doc in METRICS.items()}
        numbers = {**plain, "step": epoch, "epoch": epoch, "val_accuracy": score, "seconds": 2.0}
        numbers |= {"clean_accuracy": min(1.0, score + 0.02), "val_recall": [score] * len(CLASSES)}
        over = epoch == reached
        reason = None if not over else "completed" if reached == EPOCHS else "stopped_scheduler"
        decided = {"answer": "stop" if over else "go", "acts": [], "reason": reason, "message": ""}
        journal.append("epoch", {"trial": name, "attempt": 1, "segment": 0, **numbers, **decided})
    return score


def _confirm(journal: Journal, study: Study, folder: Path, best: int, after: int, rng: np.random.Generator) -> None:
    """Three seeds of the best recipe and of the default one, scored on test images."""
    labels, winner = rng.integers(len(CLASSES), size=IMAGES), f"{best:05d}"
    trials: dict[str, float] = {}
    for place, (label, right) in enumerate([(winner, 0.93), ("default", 0.9)] * 3):
        name = _proposed(journal, study, after + place, "confirm", label, {})
        _epochs(journal, name, right, EPOCHS)
        trials[name] = right
    scores = {label: [0.9, 0.91, 0.9] for label in (winner, "default")}
    journal.append("winner", {"label": winner, "scores": scores, "failed": {}, "tied": []})
    hard = rng.random(IMAGES) < 0.04  # wrong whatever the seed
    for name, right in trials.items():
        guess = np.where(rng.random(IMAGES) < right, labels, rng.integers(len(CLASSES), size=IMAGES))
        guess = np.where(hard, (labels + 1) % len(CLASSES), guess)
        chance = np.full((IMAGES, len(CLASSES)), 0.02, np.float32)
        chance[np.arange(IMAGES), guess] = 1 - 0.02 * (len(CLASSES) - 1)
        place = folder / "trials" / name
        place.mkdir(parents=True, exist_ok=True)
        np.savez(place / "test.npz", probabilities=chance, labels=labels)
        journal.append("test", {"trial": name, "test_accuracy": float((guess == labels).mean())})


def findings(side: int = 31) -> Findings:
    """What an analysis of such a study may say."""
    line = np.linspace(0, 1, side)
    x, y = np.meshgrid(line, line)
    mean = 0.95 - 0.5 * (x + y - 0.7) ** 2
    rng = np.random.default_rng(0)
    spots = rng.random((40, 2))
    dots = Dots(
        tuple(f"{i:05d}" for i in range(40)),
        spots[:, 0],
        spots[:, 1],
        0.95 - 0.5 * (spots.sum(1) - 0.7) ** 2 - 0.05 * rng.random(40),
        rng.choice([1, 3, 9], 40),
        ("search",) * 40,
    )
    best = Point(0.35, 0.35, Interval(0.95, 0.94, 0.96))
    surface = Surface(
        Axis("augment.strength", line, False),
        Axis("regularize.strength", line, False),
        *(mean, mean - 0.01, mean + 0.01, mean + 0.005),
        blank=x + y > 1.7,
        extrapolated=x * y > 0.6,
        region=mean > 0.945,
        near=np.clip(1 - 100 * (0.95 - mean), 0, 1),
        epsilon=0.004,
        best=best,
        best_profile=best,
        dots=dots,
        epochs=EPOCHS,
    )
    ridge = Ridge(line[:20], 0.7 - line[:20], 0.6 - line[:20], 0.8 - line[:20], Interval(-0.9, -1.1, -0.7), "augment 1")
    shares = (("regularize.strength",), 0.4), (("augment.strength",), 0.35), (("augment.strength", "optim.lr"), 0.1)
    important = tuple(Importance(names, Interval(s, 0.6 * s, 1.4 * s)) for names, s in shares)
    left_out = dict.fromkeys(("interaction", "ties", "per_class", "ablation", "gap", "rungs", "third", "costs"))
    return Findings(
        *("made", "val_accuracy", "max", surface, ridge),
        importances=important,
        **left_out,
        missing=dict.fromkeys(left_out, "made up"),
        warnings=("This study was made up.",),
        sentences=("Made-up sentence.", "And a second one."),
    )
