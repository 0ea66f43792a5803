"""Runs that somebody already has, as plain values; and the tables (CSV, Parquet) that hold them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from cvtune.errors import ConfigError

NAMES = ("trial", "run_id", "ID", "id", "Name", "name")  # columns that tell runs apart, the first one present counts
STATES = ("state", "State", "status")


@dataclass(frozen=True)
class PastRun:
    """One run: what is said of it once, and what it reported, both by the names that its owner gave.

    Attributes:
        once: settings and results; those in groups under dotted names, 'optimizer.lr'.
        rows: its reports in order; empty where only its end is known.
        state: how it ended, in its owner's words; '' if unknown.
        created: seconds since 1970.
    """

    name: str
    once: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]] = ()
    state: str = ""
    created: float | None = None

    def says(self) -> set[str]:
        """Every name that has a value somewhere."""
        return {name for part in (self.once, *self.rows) for name, value in part.items() if not is_missing(value)}


def read_table(path: Path, trial: str | None) -> list[PastRun]:
    """The runs in a CSV or Parquet file: a row for each, or a row per report where the column `trial` repeats.

    `trial` is the column that tells runs apart; None: the first of NAMES that is there, else each row is a run.

    Raises:
        ConfigError: the file is missing or cannot be read, has no rows, or no such column.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such file. Check the path; runs of W&B are named ENTITY/PROJECT.")
    try:
        table = pq.read_table(path) if path.suffix.lower() == ".parquet" else pa.csv.read_csv(path)
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(f"{path}: not readable as {path.suffix[1:]} ({str(error).splitlines()[0]}).") from None
    if trial is not None and trial not in table.column_names:
        raise ConfigError(f"--map trial={trial}: {path} has no such column, only {', '.join(table.column_names)}.")
    if not table.num_rows:
        raise ConfigError(f"{path}: has no rows. Export the runs again.")
    column = trial or next((name for name in NAMES if name in table.column_names), None)
    groups: dict[str, list[dict[str, Any]]] = {}
    for number, row in enumerate(table.to_pylist()):
        groups.setdefault(str(number) if column is None or row[column] is None else str(row[column]), []).append(row)
    return [_run(name, rows) for name, rows in groups.items()]


def _run(name: str, rows: list[dict[str, Any]]) -> PastRun:
    once = dict(flat(rows[-1]))
    state = next((str(once[key]) for key in STATES if not is_missing(once.get(key))), "")
    return PastRun(name, once, [dict(flat(row)) for row in rows] if len(rows) > 1 else (), state)


def flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of a tree by dotted names."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def is_missing(value: Any) -> bool:
    """Whether a cell says nothing: empty, null or NaN."""
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))
