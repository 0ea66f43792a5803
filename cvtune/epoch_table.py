"""The table `epochs`: one row per trial and step, with the effective recipe. Made column by column, part by part.

A study may have hundreds of thousands of reports with a hundred columns each, so no row is ever built.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cvtune.compact import Gathered, gathered
from cvtune.epoch import METRICS
from cvtune.event import Event
from cvtune.history import TrialRecord
from cvtune.recipe import FIELDS
from cvtune.regularize import resolve

PART = 10_000  # rows, about: what is in memory at a time, and one row group of the file


def parts(study: str, records: Iterable[TrialRecord], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """The rows of these trials, the reports of each in their order."""
    taken: list[TrialRecord] = []
    rows = 0
    for record in records:
        if not record.epochs:  # a study that failed at once has reported nothing
            continue
        if taken and (rows >= PART or _own_loop(record) != _own_loop(taken[0])):
            yield _part(study, taken, schema)
            taken, rows = [], 0
        taken.append(record)
        rows += len(record.epochs)
    if taken:
        yield _part(study, taken, schema)


def _own_loop(record: TrialRecord) -> bool:
    """Whether a loop of the user's own trained it; candidates may have another one than the study's recipe."""
    return record.recipe.train.loop is not None


def _part(study: str, records: Sequence[TrialRecord], schema: pa.Schema) -> pa.RecordBatch:
    events, recipes = [event for record in records for event in record.epochs], _recipes(records, schema)
    rows = gathered(events)
    column = _told(events) if rows is None else _copied(rows)
    own = _own_loop(records[0])

    def made(field: pa.Field) -> pa.Array:
        if field.name in recipes:
            return recipes[field.name]
        if field.name == "study":
            return pa.repeat(study, len(events))
        if field.name == "time":
            return pc.round(pc.multiply(column("t", pa.float64(), None), 1000.0)).cast(pa.int64()).cast(field.type)
        return column(field.name, field.type, _null(field.name, own))

    return pa.record_batch([made(field) for field in schema], schema=schema)


def _null(name: str, own_loop: bool) -> float | None:
    """What the journal's null means: NaN of a metric that every task has, for JSON knows no NaN.

    A loop of the user's own may leave out all but the losses.
    """
    doc = METRICS.get(name)
    every = doc is not None and doc.kind is float and not doc.lacking
    return math.nan if every and (not own_loop or name in ("train_loss", "val_loss")) else None


Columns = Callable[[str, pa.DataType, float | None], pa.Array]  # of a key, as a type, with this for null


def _copied(rows: Gathered) -> Columns:
    """Columns of events that were read from copies of the journal by column."""

    def column(name: str, kind: pa.DataType, null: float | None) -> pa.Array:
        values = rows.column(name, kind)
        if null is None or not values.null_count:
            return values
        return pc.if_else(pc.and_(values.is_null(), rows.has(name)), pa.scalar(null, kind), values)

    return column


def _told(events: Sequence[Event]) -> Columns:
    """Columns of any events; what an earlier version did not count is null, whatever the journal's null means."""
    told = Event.columns(events, ...)

    def column(name: str, kind: pa.DataType, null: float | None) -> pa.Array:
        values = told.get(name)
        if values is None:
            return pa.nulls(len(events), kind)
        if None in values or ... in values:
            values = [None if value is ... else null if value is None else value for value in values]
        return pa.array(values, kind)

    return column


def _recipes(records: Iterable[TrialRecord], schema: pa.Schema) -> dict[str, pa.Array]:
    """The columns of the effective recipe, which is made once for each exploit and change, not for each row."""
    flat: list[dict[str, Any]] = []
    places: list[int] = []
    for record in records:
        if not record.exploits and not record.recipe.changes:
            places += [len(flat)] * len(record.epochs)
            flat.append(resolve(record.recipe).flat())
            continue
        known: dict[tuple[int, int], int] = {}
        for event in record.epochs:
            recipe, age = record.recipe_at(event["step"]), event["epoch"] - 1
            key = (id(recipe), sum(start <= age for start, _ in recipe.changes))
            if key not in known:
                known[key] = len(flat)
                flat.append(resolve(recipe.at(age)).flat())
            places.append(known[key])
    rows = pa.array(places, pa.int64())
    return {name: pa.array([values[name] for values in flat], schema.field(name).type).take(rows) for name in FIELDS}
