"""The table `epochs`: one row per trial and step, with the effective recipe. Made column by column, part by part.

A study may have hundreds of thousands of reports with a hundred columns each, so no row is ever built.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa

from cvtune.epoch import METRICS
from cvtune.history import TrialRecord
from cvtune.journal import Event
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
    told = Event.columns((event for record in records for event in record.epochs), ...)
    own = _own_loop(records[0])
    recipes, rows = _recipes(records, schema), len(told.get("step", ()))

    def column(name: str) -> pa.Array | list[Any]:
        if name in recipes:
            return recipes[name]
        if name == "study":
            return [study] * rows
        if name == "time":
            return pa.array([round(1000 * t) for t in told["t"]], pa.int64())
        return _metric(name, told.get(name, [None] * rows), own) if name in METRICS else told[name]

    made = ((column(field.name), field.type) for field in schema)
    arrays = [values.cast(kind) if isinstance(values, pa.Array) else pa.array(values, kind) for values, kind in made]
    return pa.record_batch(arrays, schema=schema)


def _metric(name: str, values: list[Any], own_loop: bool) -> list[Any]:
    """A metric as a column holds it: what every task has was NaN where the journal has null, as JSON knows no NaN.

    A loop of the user's own may leave out all but the losses, and an earlier version did not count everything.
    """
    if None not in values and ... not in values:
        return values
    doc = METRICS[name]
    every = doc.kind is float and not doc.lacking and (not own_loop or name in ("train_loss", "val_loss"))
    null = math.nan if every else None
    return [None if value is ... else null if value is None else value for value in values]


def _recipes(records: Iterable[TrialRecord], schema: pa.Schema) -> dict[str, pa.Array]:
    """The columns of the effective recipe, which is made once for each exploit and change, not for each row."""
    flat: list[dict[str, Any]] = []
    places: list[int] = []
    for record in records:
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
