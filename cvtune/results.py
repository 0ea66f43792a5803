"""Journal -> Parquet tables: typed columns that carry their description and unit, each file written whole.

`tables/epochs.parquet` has one row per trial and step with the *effective* recipe (changes applied, the bundle
expanded); `trials` one row per trial with its one terminal reason; `decisions` every stop, promotion, exploit and
retry; `predictions` one row per test image and confirmed trial; `studies` one row.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cvtune import epoch_table, health, study
from cvtune import history as histories
from cvtune.analysis.tables import Columns, Tables
from cvtune.controls import would_have_stopped
from cvtune.durable import aside_name, read_json, sync
from cvtune.epoch import METRICS
from cvtune.errors import ConfigError
from cvtune.history import History, TrialRecord
from cvtune.noise import noise_floor
from cvtune.recipe import FIELDS

FORMAT = 1
ARROW = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string(), list: pa.list_(pa.float64())}
TIME = pa.timestamp("ms", tz="UTC")
TOLD = ("trial", "label", "sample", "target", "predicted")  # of predictions, what is analysed: probabilities are many


@dataclass(frozen=True)
class Column:
    name: str
    kind: pa.DataType
    description: str
    unit: str = ""


KEYS = (
    Column("study", pa.string(), "Name of the study."),
    Column("trial", pa.string(), "Name of the trial within the study."),
)
RECIPE = tuple(Column(name, ARROW[doc.kind], doc.description, doc.unit) for name, doc in FIELDS.items())
EPOCHS = (
    *KEYS,
    *(Column(name, ARROW[doc.kind], doc.description, doc.unit) for name, doc in METRICS.items()),
    Column("attempt", pa.int64(), "Which process's try this was, from 1."),
    Column("segment", pa.int64(), "Rises at each restart or exploit of the trial, from 0."),
    Column("time", TIME, "When the driver received the report."),
)
TRIALS = (
    *KEYS,
    Column("index", pa.int64(), "Order of proposal, from 0."),
    Column("role", pa.string(), "noise, control, search or confirm: what the trial was for."),
    Column("label", pa.string(), "Of a confirming trial: the recipe that it repeats."),
    Column("reason", pa.string(), "The one terminal reason; null while the trial is not finished."),
    Column("message", pa.string(), "What was said when it ended (an error's text)."),
    Column("searched", pa.string(), "The searched values as a JSON object."),
    Column("epochs", pa.int64(), "Reports of this trial.", "epochs"),
    Column("attempts", pa.int64(), "Processes that worked on it."),
    Column("best", pa.float64(), "Best value of the objective; with folds its last mean over them."),
    Column("best_step", pa.int64(), "Report that had it."),
    Column("last", pa.float64(), "Last value of the objective."),
    Column("verdicts", pa.string(), "What its reports say is wrong with it, see docs/health.md; empty: nothing."),
    Column("evidence", pa.string(), "What each of the verdicts is seen by."),
    Column("seconds", pa.float64(), "Time spent training and evaluating.", "s"),
    Column("exploits", pa.int64(), "Times that it took over another trial's weights."),
    Column("node", pa.string(), "Machine that trained it last."),
    Column("proposed", TIME, "When the searcher proposed it."),
    Column("ended", TIME, "When it ended."),
    *(
        Column(name.replace("val_", "test_"), ARROW[doc.kind], doc.description.replace("validation", "test"), doc.unit)
        for name, doc in METRICS.items()
        if name.startswith("val_")
    ),
    Column("augment_mapping", pa.int64(), "Version of the mapping from augment.strength to settings."),
    Column("regularize_mapping", pa.int64(), "Version of the mapping from regularize.strength to settings."),
)
DECISIONS = (
    *KEYS,
    Column("step", pa.int64(), "Report after which it was decided."),
    Column("action", pa.string(), "stop, promote, exploit, retry, or would_stop (a control trial that went on)."),
    Column("reason", pa.string(), "Why, with the numbers compared."),
    Column("arrival", pa.int64(), "How many trials had reached this rung before; an early one meets no opponents."),
    Column("donor", pa.string(), "Trial whose weights were taken over."),
    Column("donor_step", pa.int64(), "Report of the donor after which these weights were saved."),
    Column("values", pa.string(), "Searched values from here on, as a JSON object."),
    Column("time", TIME, "When."),
)
PREDICTIONS = (
    *KEYS,
    Column("label", pa.string(), "The recipe: the trial that found it, default, trivial, or a candidate's name."),
    Column("sample", pa.int64(), "Number of the image within the test part."),
    Column("target", pa.int64(), "Number of its class; null where it may have several, or has a mask."),
    Column("predicted", pa.int64(), "Number of the class with the highest probability; null as target."),
    Column("probabilities", pa.list_(pa.float32()), "Predicted probability of each class; null of masks."),
    Column("tags", pa.list_(pa.float32()), "Where it may have several: whether each class is there; NaN: not known."),
    Column("intersection", pa.list_(pa.int64()), "Of masks: pixels of each class that were told right.", "px"),
    Column("union", pa.list_(pa.int64()), "Of masks: pixels of each class in mask or prediction.", "px"),
)
STUDIES = (
    KEYS[0],
    Column("objective", pa.string(), "Metric that decides which trial is better."),
    Column("mode", pa.string(), "Direction of the objective: max or min."),
    Column("trials", pa.int64(), "Trials proposed."),
    Column("epochs", pa.int64(), "Epochs trained by all trials.", "epochs"),
    Column("noise_floor", pa.float64(), "Standard deviation of the default recipe's score over seeds."),
    Column("ended", pa.string(), "What ended the search."),
    Column("complete", pa.bool_(), "Whether the study ended because nothing was left to do."),
    Column("definition", pa.string(), "The study as JSON."),
    Column("provenance", pa.string(), "Versions, commit, data fingerprint and hardware as JSON."),
)


def write_tables(folder: Path, history: History | None = None) -> dict[str, int]:
    """Write every table of the study in `folder` from its journal. Returns the number of rows of each."""
    content = read_json(folder / "study.json") or {}
    settings = study.read(folder / "study.json")
    history = history or histories.load(folder)
    provenance = content.get("provenance", {})
    records = history.trials.values()
    rows: dict[str, tuple[tuple[Column, ...], Iterable[dict[str, Any]]]] = {
        "studies": (STUDIES, [_study_row(settings, provenance, history)]),
        "trials": (TRIALS + RECIPE, (_trial_row(settings, record, provenance) for record in records)),
        "decisions": (DECISIONS, _decision_rows(settings.name, history)),
        "predictions": (PREDICTIONS, _prediction_rows(settings.name, folder, history)),
    }
    made = {name: (schema := _schema(columns), _batches(schema, data)) for name, (columns, data) in rows.items()}
    schema = _schema(EPOCHS + RECIPE)
    made["epochs"] = schema, epoch_table.parts(settings.name, records, schema)
    return {name: _write(folder / "tables" / f"{name}.parquet", *parts) for name, parts in made.items()}


def read_tables(folder: Path) -> Tables:
    """The tables of a study folder as `cvtune.analysis` takes them, as they were last written.

    Raises:
        ConfigError: they were never written.
    """
    files = {path.stem: path for path in sorted((folder / "tables").glob("*.parquet"))}
    if missing := {"trials", "epochs"} - files.keys():
        raise ConfigError(
            f"{str(folder / 'tables')!r} lacks {', '.join(f'{name}.parquet' for name in sorted(missing))}. They are "
            "written at the end of a run, and by `cvtune export`."
        )
    settings = study.read(folder / "study.json")
    history = histories.load(folder) if (folder / "journal").is_dir() else None
    return Tables(
        settings,
        **{name: _columns(files[name]) for name in ("trials", "epochs", "decisions") if name in files},
        **({"predictions": _columns(files["predictions"], TOLD)} if "predictions" in files else {}),
        provenance=(read_json(folder / "study.json") or {}).get("provenance", {}),
        comparison=read_json(folder / "best" / "comparison.json"),
        controls=would_have_stopped(settings, history) if history is not None else None,
    )


def _columns(path: Path, names: Sequence[str] | None = None) -> Columns:
    """The columns of a file; `names`: of these, those that it has."""
    known = None if names is None else [name for name in names if name in pq.read_schema(path).names]
    table = pq.read_table(path, columns=known)
    return {name: _column(table[name]) for name in table.column_names}


def _column(values: pa.ChunkedArray) -> np.ndarray:
    """Numbers as float64, null as NaN; what is no number (and a column without any) as objects."""
    kind = values.type
    if pa.types.is_floating(kind) or pa.types.is_integer(kind):
        return np.asarray(values.cast(pa.float64()).to_numpy())
    if pa.types.is_string(kind) or pa.types.is_boolean(kind):
        return np.asarray(values.to_numpy(), object)
    made = np.empty(len(values), object)  # of lists NumPy would make a matrix where all are of one length
    made[:] = values.to_pylist()
    return made


def _schema(columns: Iterable[Column]) -> pa.Schema:
    fields = (
        pa.field(c.name, c.kind, metadata={"description": c.description, **({"unit": c.unit} if c.unit else {})})
        for c in columns
    )
    return pa.schema(list(fields), metadata={"cvtune.format": str(FORMAT)})


def _batches(schema: pa.Schema, rows: Iterable[dict[str, Any]]) -> Iterator[pa.RecordBatch]:
    left = iter(rows)
    while some := list(itertools.islice(left, epoch_table.PART)):
        yield pa.record_batch([pa.array([row[f.name] for row in some], f.type) for f in schema], schema=schema)


def _write(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside, rows = aside_name(path), 0
    try:
        with pq.ParquetWriter(aside, schema) as writer, ThreadPoolExecutor(1) as beside:
            written: Future[None] | None = None
            for batch in batches:  # the next one is made while this one is encoded
                if written is not None:
                    written.result()
                written = beside.submit(writer.write_batch, batch)
                rows += batch.num_rows
            if written is not None:
                written.result()
        sync(aside)
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    sync(path.parent)
    return rows


def _trial_row(settings: study.Study, record: TrialRecord, provenance: Mapping[str, Any]) -> dict[str, Any]:
    best, found = record.best(settings), health.of_trial(record)
    return {
        "study": settings.name,
        "trial": record.trial,
        "index": record.index,
        "role": record.role,
        "label": record.label,
        "reason": record.reason,
        "message": record.message,
        "searched": json.dumps(record.values),
        "epochs": len(record.epochs),
        "attempts": record.attempt,
        "best": settings.score(best) if best else None,
        "best_step": best["step"] if best else None,
        "last": record.last(settings),
        "verdicts": health.names_of(found),
        "evidence": health.told(found),
        "seconds": float(sum(e["seconds"] or 0.0 for e in record.epochs)),
        "exploits": len(record.exploits),
        "node": record.node,
        "proposed": _time(record.proposed),
        "ended": _time(record.ended),
        "augment_mapping": provenance.get("augment_mapping"),
        "regularize_mapping": provenance.get("regularize_mapping"),
        **{c.name: (record.test or {}).get(c.name) for c in TRIALS if c.name.startswith("test_")},
        **record.recipe.flat(),
    }


def _decision_rows(name: str, history: History) -> Iterable[dict[str, Any]]:
    for made in history.decisions:
        known = {key: made.get(key) for key in ("arrival", "donor", "donor_step")}
        values = json.dumps(made["values"]) if "values" in made else None
        yield {"study": name, "trial": made["trial"], "step": made["step"], "time": _time(made["t"]), **known} | {
            "action": made["action"],
            "reason": made["why"],
            "values": values,
        }


def _prediction_rows(name: str, folder: Path, history: History) -> Iterable[dict[str, Any]]:
    for record in history.trials.values():
        if record.test is None:
            continue
        about = {"study": name, "trial": record.trial, "label": record.label or "default"}
        for sample, told in enumerate(_told(test_predictions(folder, record))):
            yield {**about, "sample": sample, **NOTHING_TOLD, **told}


NOTHING_TOLD = dict.fromkeys(("target", "predicted", "probabilities", "tags", "intersection", "union"))


def _told(stored: Mapping[str, np.ndarray]) -> Iterator[dict[str, Any]]:
    """Image by image what a row of `predictions` says of it, from what the task has stored."""
    if "counts" in stored:
        right, predicted, there = (stored["counts"][..., k].astype(np.int64) for k in range(3))
        for row in range(len(right)):
            yield {"intersection": right[row], "union": predicted[row] + there[row] - right[row]}
    elif "tags" in stored:
        for probabilities, tags in zip(stored["probabilities"], stored["tags"], strict=True):
            yield {"probabilities": probabilities, "tags": tags}
    else:
        for probabilities, label in zip(stored["probabilities"], stored["labels"], strict=True):
            guess = int(probabilities.argmax())
            yield {"probabilities": probabilities, "target": int(label), "predicted": guess}


def test_predictions(folder: Path, record: TrialRecord) -> dict[str, np.ndarray]:
    """What is kept of a confirmed trial on the N test images: see `stored` of the sums in `tasks/`."""
    with np.load(folder / "trials" / record.trial / "test.npz", allow_pickle=False) as content:
        return {name: content[name] for name in content.files}


def _study_row(settings: study.Study, provenance: Mapping[str, Any], history: History) -> dict[str, Any]:
    floor = noise_floor(settings, history)
    return {
        "study": settings.name,
        "objective": settings.objective,
        "mode": settings.better,
        "trials": len(history.trials),
        "epochs": sum(len(r.epochs) for r in history.trials.values()),
        "noise_floor": floor.sd if floor else None,
        "ended": history.terms[-1]["ended"] if history.terms else None,
        "complete": history.complete,
        "definition": settings.model_dump_json(),
        "provenance": json.dumps(provenance),
    }


def _time(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
