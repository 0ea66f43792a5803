"""What W&B is told of the study itself: its own run with tables, plots and artifacts.

To add one, add a row to `TABLES`, `PLOTS` or `PARCELS`. What shows single images is marked and stays here where
`tracking.private` is set.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cvtune import history, study
from cvtune.confirm import final
from cvtune.durable import read_json
from cvtune.history import FAILED, History
from cvtune.noise import noise_floor
from cvtune.schedulers import STRENGTHS
from cvtune.study import Study
from cvtune.track import runs
from cvtune.track.runs import Run

WEIGHTS = (".safetensors", ".onnx")
ERRORS = 50  # rows of the table of the worst errors


@dataclass(frozen=True)
class Material:
    """A study as it lies in its folder."""

    study: Study
    folder: Path
    provenance: Mapping[str, Any]
    history: History

    @classmethod
    def read(cls, folder: Path) -> Material:
        """What the folder of a study holds."""
        told = read_json(folder / "study.json") or {}
        return cls(study.read(folder / "study.json"), folder, told.get("provenance", {}), history.load(folder))


@dataclass(frozen=True)
class Table:
    """Rows to look at."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]


@dataclass(frozen=True)
class Parcel:
    """One artifact: files by their names in it, and texts that become files. `used`: the study took it, not made it."""

    name: str
    type: str
    files: Mapping[str, Path] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    used: bool = False

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each file."""
        sizes = {name: path.stat().st_size for name, path in self.files.items()}
        return sizes | {name: len(text.encode()) for name, text in self.texts.items()}


def describe(of: Material) -> Run:
    """The run of the study."""
    kept = ("versions", "git_commit", "data_fingerprint", "classes", "images")
    return Run(
        key=runs.STUDY,
        id=runs.run_id(of.study, of.provenance, runs.STUDY),
        name=of.study.name,
        group=of.study.name,
        job_type=runs.STUDY,
        tags=runs.tags(of.study, of.provenance),
        config={
            "study": of.study.model_dump(mode="json", exclude={"tracking"}),
            "provenance": {key: of.provenance.get(key) for key in kept},
        },
    )


def summary(of: Material) -> dict[str, Any]:
    """How far the study is and what it found."""
    study, history = of.study, of.history
    records = list(history.trials.values())
    floor, best = noise_floor(study, history), history.best(study)
    found: dict[str, Any] = {
        "objective": study.objective,
        "mode": study.better,
        "trials": len(records),
        "failed": sum(r.reason in FAILED for r in records),
        "epochs": sum(len(r.epochs) for r in records),
        "total_seconds": float(sum(e["seconds"] or 0.0 for r in records for e in r.epochs)),
        "complete": history.complete,
        "ended": history.terms[-1]["ended"] if history.terms else None,
        "noise_floor": floor and floor.sd,
        "best": best and study.score(best[1]),
        "best_trial": best and best[0].trial,
        "winner": history.winners[-1]["label"] if history.winners else None,
    }
    for recipe in (read_json(of.folder / "best" / "comparison.json") or {}).get("recipes", ()):
        found |= {f"test/{recipe['label']}/{key}": recipe[key] for key in ("mean", "low", "high")}
    return {key: value for key, value in found.items() if value is not None}


def trials(of: Material) -> Table | None:
    """Every trial, one row each."""
    searched = tuple(of.study.space.domains)
    ended = ("reason", "epochs", "attempts", "best", "best_step", "last", "total_seconds")
    made = []
    for record in of.history.trials.values():
        told = runs.summary(of.study, record)
        values = [record.values.get(name) for name in searched]
        made.append((record.trial, record.role, record.label, *(told.get(key) for key in ended), *values))
    return Table(("trial", "role", "label", *ended, *searched), tuple(made)) if made else None


def worst_errors(of: Material) -> Table | None:
    """The test images that the winner is most wrong about; of the seed that is best on the validation images.

    `sample` is the number of the image within the test part, `loss` minus the logarithm of the probability that the
    right class was given.
    """
    winner = of.history.winners[-1]["label"] if of.history.winners else None
    sign = 1 if of.study.better == "max" else -1
    seeds = [r for r in of.history.trials.values() if r.test is not None and (r.label or "default") == winner]
    seeds = [r for r in seeds if (of.folder / "trials" / r.trial / "test.npz").is_file()]
    if not seeds:
        return None
    best = max(seeds, key=lambda r: sign * final(of.study, r))
    with np.load(of.folder / "trials" / best.trial / "test.npz", allow_pickle=False) as content:
        if "labels" not in content.files:  # of masks and tags an image has no one right class
            return None
        probabilities, labels = content["probabilities"], content["labels"]
    classes = list(of.provenance.get("classes") or ()) or [str(i) for i in range(probabilities.shape[1])]
    predicted = probabilities.argmax(1)
    right = np.maximum(probabilities[np.arange(len(labels)), labels], np.finfo(np.float32).tiny)
    wrong = np.flatnonzero(predicted != labels)
    worst = wrong[np.argsort(right[wrong], kind="stable")][:ERRORS]
    made = [
        (int(i), classes[labels[i]], classes[predicted[i]], float(probabilities[i, predicted[i]]), -math.log(right[i]))
        for i in worst
    ]
    return Table(("sample", "label", "predicted", "probability", "loss"), tuple(made))


def schedule(of: Material) -> Any:
    """A plotly figure of the schedule that a population leaves; None for other studies."""
    content = read_json(of.folder / "schedule.json")
    if content is None:
        return None
    from cvtune.report import curves  # plotly is slow to import and rarely needed

    return curves.schedule_figure(content)


def points(of: Material) -> Any:
    """A plotly figure of the trials over the two strengths; None where a study does not search both."""
    if not all(axis in of.study.space.domains for axis in STRENGTHS):
        return None
    found = [(r, runs.summary(of.study, r)) for r in of.history.of("search") if all(a in r.values for a in STRENGTHS)]
    points = [(*(r.values[a] for a in STRENGTHS), s["best"], s["epochs"], r.trial) for r, s in found if "best" in s]
    if not points:
        return None
    from cvtune.report import curves

    return curves.points_figure(points, STRENGTHS, of.study.objective)


def surface(of: Material) -> Any:
    """A plotly figure of the expected score over the two strengths, as the report has drawn it; None without one."""
    content = read_json(of.folder / "report" / "surface.json")
    if content is None:
        return None
    from cvtune.report import curves

    return curves.figure_of(content)


def data_manifest(of: Material) -> Parcel | None:
    """Which images the study was trained on: fingerprint, classes and counts, not the images.

    Named by the fingerprint, so that all studies of the same images share it.
    """
    fingerprint = of.provenance.get("data_fingerprint")
    if not fingerprint:
        return None
    told = {key: of.provenance.get(key) for key in ("data_fingerprint", "classes", "images")}
    text = json.dumps({"format": 1, **told}, indent=2)
    return Parcel(f"data-{str(fingerprint)[:12]}", "dataset", texts={"data.json": text}, used=True)


def results(of: Material) -> Parcel | None:
    """The tables and the study's definition."""
    tables = sorted((of.folder / "tables").glob("*.parquet"))
    kept = [path for path in tables if not (of.study.tracking.private and path.stem == "predictions")]
    files = {f"tables/{path.name}": path for path in kept} | _existing(of.folder, "study.json", "schedule.json")
    return Parcel(f"{of.study.name}-results", "results", files=files)


def best(of: Material) -> Parcel | None:
    """What stands in `best/`; of a private study without the weights, from which single images may be recovered.

    (Fredrikson et al. 2015, "Model inversion attacks"; Carlini et al. 2019, "The secret sharer".)
    """
    files = {path.name: path for path in sorted((of.folder / "best").glob("*")) if path.is_file()}
    if of.study.tracking.private:
        files = {name: path for name, path in files.items() if path.suffix not in WEIGHTS}
    return Parcel(f"{of.study.name}-best", "model", files=files) if files else None


def report(of: Material) -> Parcel | None:
    """The report; it shows single images."""
    if of.study.tracking.private:
        return None
    files = _existing(of.folder, "report.html")
    return Parcel(f"{of.study.name}-report", "report", files=files) if files else None


# name, what makes it of the material, whether it shows single images
TABLES: tuple[tuple[str, Callable[[Material], Table | None], bool], ...] = (
    ("trials", trials, False),
    ("worst_errors", worst_errors, True),
)
PLOTS: tuple[tuple[str, Callable[[Material], Any], bool], ...] = (
    ("schedule", schedule, False),
    ("trials_over_strengths", points, False),
    ("surface", surface, False),
)
PARCELS: tuple[Callable[[Material], Parcel | None], ...] = (data_manifest, results, best, report)


def tables(of: Material) -> dict[str, Table]:
    """The tables that may leave, by name."""
    made = {name: make(of) for name, make, shows in TABLES if not (shows and of.study.tracking.private)}
    return {name: table for name, table in made.items() if table is not None}


def plots(of: Material) -> dict[str, Any]:
    """The plotly figures that may leave, by name."""
    made = {name: make(of) for name, make, shows in PLOTS if not (shows and of.study.tracking.private)}
    return {name: figure for name, figure in made.items() if figure is not None}


def parcels(of: Material) -> list[Parcel]:
    """The artifacts that there is something for."""
    return [parcel for make in PARCELS if (parcel := make(of)) is not None]


def _existing(folder: Path, *names: str) -> dict[str, Path]:
    return {name: folder / name for name in names if (folder / name).is_file()}
