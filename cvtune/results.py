"""Journal -> Parquet tables: typed columns that carry their description and unit, each file written whole.

`tables/epochs.parquet` has one row per trial and step with the *effective* recipe (changes applied, the bundle
expanded); `trials` one row per trial with its one terminal reason; `decisions` every stop, promotion and retry;
`studies` one row.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from cvtune import journal, study
from cvtune.durable import aside_name, read_json, sync_folder
from cvtune.epoch import METRICS
from cvtune.errors import ConfigError
from cvtune.journal import History, TrialRecord
from cvtune.recipe import FIELDS
from cvtune.regularize import resolve

FORMAT = 1
ARROW = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string()}
TIME = pa.timestamp("ms", tz="UTC")


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
    Column("segment", pa.int64(), "Rises at each restart of the trial, from 0."),
    Column("time", TIME, "When the driver received the report."),
)
TRIALS = (
    *KEYS,
    Column("index", pa.int64(), "Order of proposal, from 0."),
    Column("reason", pa.string(), "The one terminal reason; null while the trial is not finished."),
    Column("message", pa.string(), "What was said when it ended (an error's text)."),
    Column("searched", pa.string(), "The searched values as a JSON object."),
    Column("epochs", pa.int64(), "Reports of this trial.", "epochs"),
    Column("attempts", pa.int64(), "Processes that worked on it."),
    Column("best", pa.float64(), "Best value of the objective."),
    Column("best_step", pa.int64(), "Report that had it."),
    Column("last", pa.float64(), "Last value of the objective."),
    Column("seconds", pa.float64(), "Time spent training and evaluating.", "s"),
    Column("node", pa.string(), "Machine that trained it last."),
    Column("proposed", TIME, "When the searcher proposed it."),
    Column("ended", TIME, "When it ended."),
    Column("augment_mapping", pa.int64(), "Version of the mapping from augment.strength to settings."),
    Column("regularize_mapping", pa.int64(), "Version of the mapping from regularize.strength to settings."),
)
DECISIONS = (
    *KEYS,
    Column("step", pa.int64(), "Report after which it was decided."),
    Column("action", pa.string(), "stop, promote or retry."),
    Column("reason", pa.string(), "Why."),
    Column("time", TIME, "When."),
)
STUDIES = (
    KEYS[0],
    Column("objective", pa.string(), "Metric that decides which trial is better."),
    Column("mode", pa.string(), "Direction of the objective: max or min."),
    Column("trials", pa.int64(), "Trials proposed."),
    Column("epochs", pa.int64(), "Epochs trained by all trials.", "epochs"),
    Column("complete", pa.bool_(), "Whether the study ended because nothing was left to do."),
    Column("definition", pa.string(), "The study as JSON."),
    Column("provenance", pa.string(), "Versions, commit, data fingerprint and hardware as JSON."),
)


def write_tables(folder: Path, history: History | None = None) -> dict[str, int]:
    """Write every table of the study in `folder` from its journal. Returns the number of rows of each."""
    content = read_json(folder / "study.json") or {}
    settings = study.read(folder / "study.json")
    history = history or journal.load(folder)
    provenance = content.get("provenance", {})
    rows: dict[str, tuple[tuple[Column, ...], Iterable[dict[str, Any]]]] = {
        "studies": (STUDIES, [_study_row(settings, provenance, history)]),
        "trials": (TRIALS + RECIPE, (_trial_row(settings, r, provenance) for r in history.trials.values())),
        "epochs": (EPOCHS + RECIPE, (row for r in history.trials.values() for row in _epoch_rows(settings.name, r))),
        "decisions": (DECISIONS, _decision_rows(settings.name, history)),
    }
    return {
        name: _write(folder / "tables" / f"{name}.parquet", columns, data) for name, (columns, data) in rows.items()
    }


def export(folder: Path, target: str) -> list[str]:
    """Write the tables and copy `study.json` to a folder or a URL that pyarrow or fsspec reaches.

    Raises:
        ConfigError: the target's scheme is not known or it cannot be written.
    """
    write_tables(folder)
    files = [*sorted((folder / "tables").glob("*.parquet")), folder / "study.json"]
    try:
        system, root = _filesystem(target)
        system.create_dir(root, recursive=True)
        for file in files:
            with system.open_output_stream(f"{root}/{file.name}") as out:
                out.write(file.read_bytes())
    except (OSError, ValueError, ImportError, pa.ArrowException) as error:
        raise ConfigError(
            f"--to {target!r} cannot be written ({error}). Give a folder or a URL such as s3://bucket/path, "
            "file:///path or gs://bucket/path; install the fsspec driver of other schemes (for example adlfs for az://)."
        ) from None
    return [f"{target.rstrip('/')}/{file.name}" for file in files]


def _filesystem(target: str) -> tuple[pafs.FileSystem, str]:
    if "://" not in target:
        return pafs.LocalFileSystem(), str(Path(target).resolve())
    try:
        system, root = pafs.FileSystem.from_uri(target)
        return system, root.rstrip("/")
    except pa.ArrowInvalid:  # a scheme that pyarrow does not know
        import fsspec

        other, root = fsspec.core.url_to_fs(target)
        return pafs.PyFileSystem(pafs.FSSpecHandler(other)), root.rstrip("/")


def _write(path: Path, columns: tuple[Column, ...], rows: Iterable[dict[str, Any]]) -> int:
    schema = pa.schema(
        [
            pa.field(c.name, c.kind, metadata={"description": c.description, **({"unit": c.unit} if c.unit else {})})
            for c in columns
        ],
        metadata={"cvtune.format": str(FORMAT)},
    )
    data = list(rows)
    table = pa.Table.from_pydict(
        {c.name: pa.array([row[c.name] for row in data], c.kind) for c in columns}, schema=schema
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = aside_name(path)
    try:
        pq.write_table(table, aside)
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)
    return len(data)


def _epoch_rows(name: str, record: TrialRecord) -> Iterable[dict[str, Any]]:
    effective = _cached_by_change(record)
    for event in record.epochs:
        numbers = {metric: math.nan if event[metric] is None else event[metric] for metric in METRICS}
        identity = {"study": name, "trial": record.trial, "attempt": event["attempt"], "segment": event["segment"]}
        yield {**identity, "time": _time(event["t"]), **numbers, **effective(event["epoch"] - 1)}


def _cached_by_change(record: TrialRecord) -> Callable[[int], dict[str, Any]]:
    """The effective recipe at an epoch; made once per change, not once per row."""
    starts = [0, *(epoch for epoch, _ in record.recipe.changes)]
    flat = {start: resolve(record.recipe.at(start)).flat() for start in starts}
    return lambda epoch: flat[max(s for s in starts if s <= max(epoch, 0))]


def _trial_row(settings: study.Study, record: TrialRecord, provenance: Mapping[str, Any]) -> dict[str, Any]:
    sign = 1 if settings.better == "max" else -1
    scored = [e for e in record.epochs if e[settings.objective] is not None]
    best = max(scored, key=lambda e: sign * e[settings.objective]) if scored else None
    return {
        "study": settings.name,
        "trial": record.trial,
        "index": record.index,
        "reason": record.reason,
        "message": record.message,
        "searched": json.dumps(record.values),
        "epochs": len(record.epochs),
        "attempts": record.attempt,
        "best": best[settings.objective] if best else None,
        "best_step": best["step"] if best else None,
        "last": record.epochs[-1][settings.objective] if record.epochs else None,
        "seconds": float(sum(e["seconds"] or 0.0 for e in record.epochs)),
        "node": record.node,
        "proposed": _time(record.proposed),
        "ended": _time(record.ended),
        "augment_mapping": provenance.get("augment_mapping"),
        "regularize_mapping": provenance.get("regularize_mapping"),
        **record.recipe.flat(),
    }


def _decision_rows(name: str, history: History) -> Iterable[dict[str, Any]]:
    for call in history.calls:
        if call.get("action"):
            identity = {"study": name, "trial": call["trial"], "step": call["step"], "time": _time(call["t"])}
            yield {**identity, "action": call["action"], "reason": call["why"]}


def _study_row(settings: study.Study, provenance: Mapping[str, Any], history: History) -> dict[str, Any]:
    return {
        "study": settings.name,
        "objective": settings.objective,
        "mode": settings.better,
        "trials": len(history.trials),
        "epochs": sum(len(r.epochs) for r in history.trials.values()),
        "complete": history.complete,
        "definition": settings.model_dump_json(),
        "provenance": json.dumps(provenance),
    }


def _time(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
