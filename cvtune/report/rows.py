"""Rows: the trials of a study as a table to look at, and their learning curves, as plain values for a page."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from cvtune.analysis.tables import Tables
from cvtune.epoch import METRICS
from cvtune.history import FAILED, REASONS, ROLES
from cvtune.recipe import FIELDS

CURVE_POINTS = 60_000  # of all curves together; beyond it each keeps every second, third, ... report and its last
SCORE_DIGITS = 5  # significant ones: what the embedded data keep of a score

Form = Literal["text", "whole", "score", "number"]


@dataclass(frozen=True)
class Column:
    """One column: its dotted or short name, how its values are written, and what they are.

    `searched`: whether it is a searched value; `log`: whether its domain is logarithmic.
    """

    name: str
    form: Form
    hint: str
    unit: str = ""
    searched: bool = False
    log: bool = False


@dataclass(frozen=True)
class Rows:
    """Every trial of a study, in the order of proposal.

    Attributes:
        columns: see `Column`; the first is the trial's name.
        rows: a value for each column; None where a trial has none.
        curves: of each trial the objective at its reports 1, 1 + `every`, ... and at its last; None where not finite.
        every: see `CURVE_POINTS`.
    """

    columns: tuple[Column, ...]
    rows: tuple[tuple[Any, ...], ...]
    curves: tuple[tuple[float | None, ...], ...]
    every: int

    def column(self, name: str) -> list[Any]:
        """The values of a column.

        Raises:
            ValueError: there is no such column.
        """
        place = [column.name for column in self.columns].index(name)
        return [row[place] for row in self.rows]

    @property
    def searched(self) -> tuple[Column, ...]:
        """The columns of searched values."""
        return tuple(column for column in self.columns if column.searched)

    @property
    def has_test(self) -> bool:
        """Whether any trial was scored on the test images."""
        return any(column.name == "test" for column in self.columns)


def of_tables(tables: Tables) -> Rows:
    """The trials of a study with what a reader compares: state, epochs, scores, cost, searched values."""
    curves = _curves(tables)
    total = sum(map(len, curves))
    every = max(1, -(-total // CURVE_POINTS))
    columns = _columns(tables)
    values = [_values_of(tables, column.name) for column in columns]
    return Rows(columns, tuple(zip(*values, strict=True)), tuple(_thinned(c, every) for c in curves), every)


def ranked(rows: Rows, better: str, roles: Sequence[str] = ("search", "control")) -> list[int]:
    """Numbers of the trials with a score and one of these roles that did not fail, the best first."""
    scores, role, state = rows.column("best"), rows.column("role"), rows.column("state")
    kept = [i for i, s in enumerate(scores) if s is not None and role[i].split()[0] in roles and state[i] not in FAILED]
    return sorted(kept, key=lambda i: -scores[i] if better == "max" else scores[i])


def _columns(tables: Tables) -> tuple[Column, ...]:
    study = tables.study
    score = METRICS[study.objective].description if study.objective in METRICS else ""
    told = [Column("test", "score", f"{_test_name(tables)} on the test images.")] if _tested(tables) else []
    made = [
        Column("trial", "text", "Name of the trial."),
        Column("role", "text", "What it was for. " + " ".join(f"{name}: {text}." for name, text in ROLES.items())),
        Column("state", "text", "Why it ended. " + " ".join(f"{name}: {text}." for name, text in REASONS.items())),
        Column("epochs", "whole", "Reports of the trial."),
        Column("best", "score", f"Best {study.objective}. {score}"),
        Column("last", "score", f"Last {study.objective}."),
        *told,
        Column("verdicts", "text", "What is wrong with it by its reports; see Health."),
        Column("minutes", "number", "Minutes spent training and evaluating."),
    ]
    for name, domain in study.space.domains.items():
        doc = FIELDS[name]
        form: Form = "text" if doc.kind in (str, bool) else "whole" if doc.kind is int else "number"
        is_log = "log" in type(domain).__name__.lower()
        made.append(Column(name, form, doc.description, doc.unit, searched=True, log=is_log))
    return tuple(made)


def _test_name(tables: Tables) -> str:
    return tables.study.objective.replace("val_", "test_")


def _tested(tables: Tables) -> bool:
    values = tables.column(_test_name(tables))
    return any(isinstance(v, float) and math.isfinite(v) for v in values.tolist())


def _values_of(tables: Tables, name: str) -> list[Any]:
    """The values of one column, one per trial."""
    if name == "role":
        pairs = zip(tables.column("role").tolist(), tables.column("label").tolist(), strict=True)
        return [" ".join(filter(None, pair)) for pair in pairs]
    if name == "state":
        return [reason or "not over" for reason in tables.column("reason").tolist()]
    if name == "minutes":
        return [_short(seconds / 60, 4) for seconds in tables.column("seconds").tolist()]
    if name == "test":
        return [_short(v, SCORE_DIGITS) for v in tables.column(_test_name(tables)).tolist()]
    if name in tables.study.space.domains:
        return _searched(tables, name)
    return [_short(v, SCORE_DIGITS) for v in tables.column(name).tolist()]


def _searched(tables: Tables, name: str) -> list[Any]:
    """The value in force at each trial's best report; None where the trial's space did not have it."""
    proposed = [json.loads(text) if text else {} for text in tables.column("searched").tolist()]
    found = tables.column(name).tolist()
    moved = _at_best(tables, name) if np.nansum(_numbers(tables.column("exploits"))) else {}
    made = []
    for trial, role, values, value in zip(
        tables.column("trial").tolist(), tables.column("role").tolist(), proposed, found, strict=True
    ):
        lacks = role in ("search", "control") and values and name not in values
        made.append(None if lacks else _short(moved.get(trial, value), 6))
    return made


def _at_best(tables: Tables, name: str) -> dict[str, Any]:
    """Trial -> effective value at its best report: a population changes values while it trains."""
    best = dict(zip(tables.column("trial").tolist(), tables.column("best_step").tolist(), strict=True))
    columns = (tables.epochs["trial"].tolist(), tables.epochs["step"].tolist(), tables.epochs[name].tolist())
    return {trial: value for trial, step, value in zip(*columns, strict=True) if best.get(trial) == step}


def _curves(tables: Tables) -> list[list[float | None]]:
    """The objective at each report of each trial, in the order of `trials`."""
    told: dict[str, list[float | None]] = {trial: [] for trial in tables.column("trial").tolist()}
    steps, scores = _numbers(tables.epochs["step"]), _numbers(tables.epochs[tables.study.objective])
    names = tables.epochs["trial"]
    for row in np.lexsort((steps,)).tolist():
        told[names[row]].append(_short(float(scores[row]), SCORE_DIGITS))
    return list(told.values())


def _thinned(curve: Sequence[float | None], every: int) -> tuple[float | None, ...]:
    kept = list(curve[::every])
    return tuple(kept if (len(curve) - 1) % every == 0 or not curve else [*kept, curve[-1]])


def _numbers(values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Numbers, NaN for None."""
    return np.array([math.nan if v is None else float(v) for v in values.tolist()], np.float64)


def _short(value: Any, digits: int) -> Any:
    """A value as JSON takes it: whole numbers as such, others with so many significant digits, not finite as None."""
    if isinstance(value, bool | str) or value is None:
        return value
    if not math.isfinite(value):
        return None
    return int(value) if float(value).is_integer() and abs(value) < 2**53 else float(f"{value:.{digits}g}")


def as_json(rows: Rows) -> Mapping[str, Any]:
    """What the page's script is given."""
    return {
        "columns": [vars(column) for column in rows.columns],
        "rows": rows.rows,
        "curves": rows.curves,
        "every": rows.every,
    }
