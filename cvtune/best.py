"""`best/`: the best model as something one can use: weights, recipe, metrics with intervals, classes, a model card."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cvtune import checkpoint, confirm, model_file, schedule
from cvtune.bootstrap import metrics_of
from cvtune.card import Card, write_card
from cvtune.durable import read_json, replaced, write_whole
from cvtune.epoch import METRICS
from cvtune.history import History, TrialRecord
from cvtune.printable import csv_cell
from cvtune.ranking import average_precisions
from cvtune.recipe import Recipe
from cvtune.results import test_predictions
from cvtune.schedulers import PB2, PBT
from cvtune.study import Study

if TYPE_CHECKING:
    from cvtune.data.listing import Task

FORMAT = 1  # of metrics.json; the keys of a report stand beside it
ROUNDS = 1000  # of the bootstrap of each metric
Row = dict[str, Any]


@dataclass(frozen=True)
class Tested:
    """What the weights in `best/` make of the test images.

    Attributes:
        metrics: name without `test_` -> value and the ends of its 95 % interval over the choice of the images.
        classes: a row each: class, part, support, predicted, right, precision, recall, and iou or average_precision.
        confusion: int64 (K, K), rows are the true classes; None where an image or a pixel is not of one class, or of
            masks, whose pixels are not kept.
        images: how many.
    """

    metrics: dict[str, tuple[float, float, float]]
    classes: list[Row]
    confusion: npt.NDArray[np.int64] | None
    images: int


def write_best(study: Study, folder: Path, history: History) -> None:
    """`best/`, whole or not at all: of the confirmation's winner, or of the best trial where nothing was confirmed.

    The confirmed (or else the best) trial of a population is written as a schedule as well (`schedule.json`,
    `schedule.html`): which values its weights were trained with at which epoch.
    """
    best = winner_of(study, history)
    if best is None:
        return
    record, report = best
    noted = (read_json(folder / "study.json") or {}).get("provenance", {})
    provenance = {"task": _task_of(report), **noted}  # a study that was begun by an earlier version did not note it
    recipe = record.recipe if record.role == "confirm" else schedule.as_changes(study, history, record.trial)
    classes = names_of(provenance, report)
    tested = tested_by(study, folder, record, classes) if record.test is not None else None
    rows = tested.classes if tested else _on_validation(report, classes)
    compared = comparison(study, folder, history)
    with replaced(folder / "best") as place:
        weights = _write_weights(place, study, folder, history, record, recipe, provenance)
        _write_json(place / "recipe.json", recipe.model_dump(mode="json"))
        _write_json(place / "metrics.json", _metrics(study, history, record, report, weights, tested))
        if rows:
            _write_csv(place / "per_class.csv", list(rows[0]), (row.values() for row in rows))
        if tested and tested.confusion is not None:
            counts = zip(classes, tested.confusion.tolist(), strict=True)
            _write_csv(place / "confusion.csv", ["true class", *classes], ([name, *row] for name, row in counts))
        if compared:
            _write_json(place / "comparison.json", compared.to_json())
        said = compared.sentences() if compared else []
        card = Card(study, recipe, provenance, weights, report, tested.metrics if tested else {}, rows, said)
        (place / "README.md").write_text(write_card(card))
    _write_schedule(study, folder, history, record)


def winner_of(study: Study, history: History) -> tuple[TrialRecord, Mapping[str, Any]] | None:
    """The trial with the best objective and its report; once confirmed, the winner's best seed and its last report."""
    if not history.winners:
        return history.best(study)
    sign = 1 if study.better == "max" else -1
    record = max(_seeds_of_winner(study, history), key=lambda r: sign * confirm.final(study, r))
    return record, record.epochs[-1]


def comparison(study: Study, folder: Path, history: History) -> confirm.Comparison | None:
    """The confirmed recipes compared on the test images; None before they were scored."""
    if not history.winners:
        return None
    tested = confirm.compared(study, history)
    if not tested or any(record.test is None for record in tested):
        return None
    predictions: dict[str, list[np.ndarray]] = {}
    for record in tested:
        stored = test_predictions(folder, record)
        made, truth = confirm.made_and_truth(stored)
        predictions.setdefault(record.label or "default", []).append(made)
    groups, winner = stored.get("groups"), history.winners[-1]["label"]
    return confirm.compare(study, predictions, truth, groups, study.objective, winner, seed=study.recipe.seed)


def tested_by(study: Study, folder: Path, record: TrialRecord, classes: Sequence[str]) -> Tested:
    """What a confirmed trial makes of the test images."""
    stored = test_predictions(folder, record)
    made, truth = confirm.made_and_truth(stored)
    metrics = {}
    for name in metrics_of(truth, made):
        compared = confirm.compare(
            study, {"": [made]}, truth, stored.get("groups"), name, "", study.recipe.seed, ROUNDS
        )
        own = compared.recipes[0]
        metrics[name] = (own.mean, own.low, own.high)
    confusion = None
    if "labels" in stored:
        confusion = np.zeros((len(classes), len(classes)), np.int64)
        np.add.at(confusion, (truth, made.argmax(1)), 1)
    return Tested(metrics, list(_by_class(classes, made, truth, confusion)), confusion, len(truth))


def names_of(provenance: Mapping[str, Any], report: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the classes; of a study that did not note them their numbers."""
    counted = len(report.get("val_recall") or ())
    return tuple(provenance.get("classes") or map(str, range(counted)))


def _by_class(
    classes: Sequence[str],
    made: npt.NDArray[Any],
    truth: npt.NDArray[Any],
    confusion: npt.NDArray[np.int64] | None,
) -> Iterator[Row]:
    """Precision and recall of each class, None where there is nothing to divide by."""
    more: dict[str, npt.NDArray[Any]] = {}
    if confusion is not None:
        right, told, there = np.diag(confusion), confusion.sum(0), confusion.sum(1)
    elif made.ndim == 3:
        right, told, there = (made[..., kind].sum(0).astype(np.int64) for kind in range(3))
        more["iou"] = right / np.maximum(told + there - right, 1)
    else:
        known = ~np.isnan(truth)
        guess, tags = (made > 0.5) & known, truth >= 0.5
        right, told, there = ((guess & tags).sum(0), guess.sum(0), tags.sum(0))
        more["average_precision"] = average_precisions(made, truth)[:, 0]
    for k, name in enumerate(classes):
        row: Row = {"class": name, "part": "test", "support": int(there[k])}
        row |= {"predicted": int(told[k]), "right": int(right[k])}
        row |= {
            "precision": right[k] / told[k] if told[k] else None,
            "recall": right[k] / there[k] if there[k] else None,
        }
        yield row | {key: float(values[k]) if there[k] else None for key, values in more.items()}


def _on_validation(report: Mapping[str, Any], classes: Sequence[str]) -> list[Row]:
    """What the report of a trial that was not tested says of each class."""
    lists = {key: report[f"val_{key}"] for key in ("recall", "iou") if report.get(f"val_{key}")}
    return [
        {"class": name, "part": "val", **{key: values[k] for key, values in lists.items()}}
        for k, name in enumerate(classes)
        if lists
    ]


def _task_of(report: Mapping[str, Any]) -> Task:
    """The task whose metrics a report has."""
    if report.get("val_mean_iou") is not None:
        return "segment"
    return "multilabel" if report.get("val_map") is not None else "classify"


def _seeds_of_winner(study: Study, history: History) -> list[TrialRecord]:
    label = history.winners[-1]["label"]
    return [r for r in confirm.compared(study, history) if (r.label or "default") == label]


def _write_weights(
    place: Path,
    study: Study,
    folder: Path,
    history: History,
    record: TrialRecord,
    recipe: Recipe,
    provenance: Mapping[str, Any],
) -> dict[str, Any]:
    """Write `model.safetensors` from the trial's furthest intact checkpoint, which is what was tested.

    Returns:
        What `metrics.json` says of them under "weights"; "file" is None and "why" says why where there are none.
    """
    seeds = len(_seeds_of_winner(study, history)) if history.winners else 0
    told: dict[str, Any] = {"trial": record.trial, "label": record.label or record.role, "seed": recipe.seed}
    told |= {"confirmed": bool(seeds), "seeds": seeds, "objective": study.objective}
    why = f"trial {record.trial} left no intact checkpoint"
    for at in checkpoint.newest(folder / "trials" / record.trial):
        try:
            tensors, pixels = checkpoint.evaluated(at, packed=True)
        except checkpoint.CheckpointError as error:
            why = str(error)
            continue
        kept = next((e for e in record.epochs if e["step"] == int(at.name)), record.epochs[-1])
        told |= {"step": kept["step"], "epoch": kept["epoch"], "score": kept[study.objective]}
        origin = {"name": study.name, "trial": record.trial, "step": kept["step"]}
        about = model_file.About(
            provenance["task"],
            names_of(provenance, record.epochs[-1]),
            recipe,
            provenance.get("data_fingerprint") or "",
            provenance.get("code") or {},
            origin,
            pixels,
        )
        model_file.save(place / model_file.FILE, about, tensors)
        return {"file": model_file.FILE, **told}
    return {"file": None, "why": why, **told}


def _metrics(
    study: Study,
    history: History,
    record: TrialRecord,
    report: Mapping[str, Any],
    weights: Mapping[str, Any],
    tested: Tested | None,
) -> dict[str, Any]:
    """The report that the trial was chosen for; of which trial the weights are; the test metrics, and those by seed."""
    told = {key: report[key] for key in ("trial", "attempt", "segment", *METRICS) if key in report}
    found: dict[str, Any] = {"format": FORMAT, **told, "weights": weights}
    if tested is None:
        return found
    ends = ("value", "low", "high")
    test = {name: dict(zip(ends, values, strict=True)) for name, values in tested.metrics.items()}
    of_seeds = [r.test for r in (_seeds_of_winner(study, history) if history.winners else [record]) if r.test]
    seeds = {f"test_{name}": [test.get(f"test_{name}") for test in of_seeds] for name in tested.metrics}
    seeds = {name: values for name, values in seeds.items() if None not in values}
    return found | {"test": {"images": tested.images, **test}, "seeds": seeds}


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2))


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Iterable[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        for row in (header, *rows):
            csv.writer(file).writerow([csv_cell(cell) if isinstance(cell, str) else cell for cell in row])


def _write_schedule(study: Study, folder: Path, history: History, record: TrialRecord) -> None:
    found = history.trials.get(record.label) or next((r for r, _ in history.ranked(study) if r.role == "search"), None)
    if isinstance(study.scheduler, PBT | PB2) and found is not None:
        from cvtune.report import curves  # plotly is slow to import and rarely needed

        content = schedule.to_json(study, history, found.trial)
        write_whole(folder / "schedule.json", json.dumps(content, indent=2))
        curves.write_html(curves.schedule_figure(content), folder / "schedule.html")
