"""Which of somebody else's names means what here: `--map ours=theirs`, applied to past runs."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cvtune.epoch import METRICS
from cvtune.errors import ConfigError, did_you_mean
from cvtune.past import PastRun, is_missing
from cvtune.recipe import FIELDS, Value
from cvtune.space import BUNDLE, KNOBS

TRIAL = "trial"  # what tells runs apart
NAMES = (*FIELDS, *(name for name, doc in METRICS.items() if doc.kind is not list), TRIAL)
_SCALED = re.compile(r"(.+?)\s*([*/])\s*(\d+(?:\.\d+)?(?:e-?\d+)?)")
_YES = {"true": True, "false": False, "1": True, "0": False}


@dataclass(frozen=True)
class Theirs:
    """A name of theirs, and what its numbers are multiplied by to be ours."""

    name: str
    factor: float = 1.0


Mapped = Mapping[str, Theirs]  # ours -> theirs


def parse(texts: Sequence[str]) -> dict[str, Theirs]:
    """`ours=theirs`, also `ours=theirs/100` or `ours=theirs*0.1`.

    Raises:
        ConfigError: it has no '=', or ours is not a name of cvtune.
    """
    found: dict[str, Theirs] = {}
    for text in texts:
        ours, equals, theirs = (part.strip() for part in text.partition("="))
        if not equals or not theirs:
            raise ConfigError(f"--map {text!r}: write ours=theirs, for example --map optim.lr=learning_rate.")
        if ours not in NAMES:
            raise ConfigError(f"--map {text!r}: {ours!r} is neither a value of a recipe nor a metric. {_near(ours)}")
        scaled = _SCALED.fullmatch(theirs)
        factor = 1.0 if scaled is None else float(scaled[3]) if scaled[2] == "*" else 1 / float(scaled[3])
        found[ours] = Theirs(theirs, 1.0) if scaled is None else Theirs(scaled[1], factor)
    return found


def _near(name: str) -> str:
    return did_you_mean(name, NAMES, 3)


def complete(given: Mapped, runs: Sequence[PastRun]) -> tuple[dict[str, Theirs], list[str]]:
    """The mapping with every name that is the same on both sides; and the names of theirs that nothing is mapped to.

    Raises:
        ConfigError: a mapped name occurs in no run.
    """
    there = set().union(*(run.says() for run in runs))
    for ours, theirs in given.items():
        if ours != TRIAL and theirs.name not in there:
            raise ConfigError(
                f"--map {ours}={theirs.name}: no run has a value of {theirs.name!r}. "
                f"{did_you_mean(theirs.name, there, 3)}"
            )
    same = [name for name in NAMES if name in there and name != TRIAL]
    if BUNDLE in {*same, *given}:  # a table of ours holds what it expands to as well
        same = [name for name in same if name not in KNOBS]
    mapped = {**{name: Theirs(name) for name in same}, **given}
    used = {theirs.name for theirs in mapped.values()}
    return mapped, sorted(there - used)


def settings(run: PastRun, mapped: Mapped) -> dict[str, Value]:
    """The values of a recipe that a run says, missing ones left out.

    Raises:
        ConfigError: a value is none of its kind.
    """
    values: dict[str, Value] = {}
    first = run.rows[0] if run.rows else {}
    for ours, theirs in mapped.items():
        value = run.once.get(theirs.name, first.get(theirs.name))
        if ours in FIELDS and not is_missing(value):
            values[ours] = _value(ours, value, theirs.factor)
    return values


def _value(name: str, value: Any, factor: float) -> Value:
    kind = FIELDS[name].kind
    try:
        if kind is str:
            return str(value)
        if kind is bool:
            return _YES[str(value).lower()]
        number = float(value) * factor
        if kind is int and number != int(number):
            raise ValueError
        return int(number) if kind is int else number
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"{name} = {value!r} is no {kind.__name__}") from None


def reports(run: PastRun, mapped: Mapped, objective: str) -> list[dict[str, float | None]]:
    """The reports of a run that have the objective, in order, each with its metrics; `epoch` if it is known.

    Raises:
        ConfigError: a metric is no number, or a share is above 1.
    """
    rows = [*run.rows] if any(not is_missing(row.get(mapped[objective].name)) for row in run.rows) else [run.once]
    found = [{ours: _metric(ours, row, theirs) for ours, theirs in mapped.items() if ours in METRICS} for row in rows]
    scored = [row for row in found if row[objective] is not None]
    if all(row.get("epoch") is not None for row in scored):
        scored.sort(key=lambda row: row["epoch"] or 0)
    return scored


def _metric(name: str, row: Mapping[str, Any], theirs: Theirs) -> float | None:
    value = row.get(theirs.name)
    if is_missing(value):
        return None
    try:
        number = float(value) * theirs.factor  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise ConfigError(f"{name} = {value!r} is no number") from None
    if METRICS[name].goal == "max" and number > 1:
        raise ConfigError(
            f"{name} = {number:g} is above 1. Shares are 0 to 1; of percent write --map {name}={theirs.name}/100."
        )
    return number if math.isfinite(number) else None


def lacking(mapped: Iterable[str]) -> list[str]:
    """What the mapping does not give, and what cannot be told without it, in words."""
    names = set(mapped)
    wanted = {
        "augment.strength": "no surface over both strengths",
        "regularize.strength": "no surface over both strengths",
        "optim.lr": "its effect hides in the others'",
        "epoch": "curves are counted by report",
        "train_loss": "no overfitting gap",
        "seconds": "no cost",
        "seed": "repeats are known by equal values only",
    }
    return [f"{name} ({what})" for name, what in wanted.items() if name not in names]
